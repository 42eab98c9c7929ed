"""The review page in a real browser, over a real service: from an upload to the exported review."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import onnx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, expect

from chromium import WEBGL, chromium
from fresh_clone import ROOT
from service_process import Serving, add_champion, serving
from stack_files import grid_of, write_stack
from talud.engine.model_file import contract_of, save, weights_digest
from talud.raster import Layout, write_cog
from talud.serving.app import install_page
from talud.serving.database import Database
from talud.serving.keys import KeyStore

pytestmark = pytest.mark.slow

PAGE = ROOT / "page"
BUILT = ROOT / "src/talud/serving/static/index.html"
HEIGHT, WIDTH = 160, 208
SLIDES = [(20, 20, 26), (24, 92, 24), (16, 160, 22), (92, 24, 20), (96, 92, 18), (100, 160, 16)]  # row, column, side
GROUND, SOIL = (60, 120, 60), (190, 130, 90)  # red, green, blue
UNKNOWN = (slice(130, 150), slice(60, 120))  # without data
SIZES = [(1280, 800), (1024, 768), (768, 1024)]
WORDS = {"en": ("Review", "Layers", "All maps"), "es": ("Revisión", "Capas", "Todos los mapas")}
HIT = (0, 114, 178)
PATIENCE = 60_000  # ms


@pytest.fixture(scope="session")
def built() -> Path:
    """The page, built where it was not, or where a source is newer."""
    sources = [path for path in PAGE.rglob("*") if path.is_file() and "node_modules" not in path.parts]
    fresh = BUILT.is_file() and max(path.stat().st_mtime for path in sources) <= BUILT.stat().st_mtime
    if not fresh or not (PAGE / "node_modules/axe-core").is_dir():
        made = subprocess.run(["make", "page"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    return BUILT


def soil() -> NDArray[np.bool_]:
    where = np.zeros((HEIGHT, WIDTH), bool)
    for row, column, side in SLIDES:
        where[row : row + side, column : column + side] = True
    return where


def stack() -> NDArray[np.float32]:
    """Squares of bare soil on green ground, a part without data."""
    values = np.where(soil(), np.reshape(SOIL, (3, 1, 1)), np.reshape(GROUND, (3, 1, 1))).astype(np.float32)
    values += np.random.default_rng(5).uniform(-4, 4, values.shape).astype(np.float32)
    values[:, *UNKNOWN] = np.nan
    return values


def soil_model(tiny: Path, path: Path) -> Path:
    """The tiny model with weights that pass red through: 0.95 where there is bare soil, 0.05 elsewhere."""
    graph = onnx.load(tiny)
    passing = [f"{block}_{turn}" for block in ("encoder_0", "decoder_0") for turn in ("first", "second")]
    for tensor in graph.graph.initializer:
        layer, _, kind = tensor.name.rpartition("_")
        if layer not in (*passing, "probability"):
            continue
        values = np.zeros_like(numpy_helper.to_array(tensor))
        if kind == "kernel":
            values[0, 0, values.shape[2] // 2, values.shape[3] // 2] = 1.8 if layer == "probability" else 1
        elif layer == "probability":
            values[:] = -3
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    del graph.metadata_props[:]
    save(graph, contract_of(tiny).replace(weights=weights_digest(graph)), path)
    return path


def other_bands(model: Path, path: Path) -> Path:
    """The model with a band that no raster here has."""
    graph, contract = onnx.load(model), contract_of(model)
    bands = (contract.input.bands[0].model_copy(update={"name": "near_infrared"}), *contract.input.bands[1:])
    del graph.metadata_props[:]
    save(graph, contract.replace(bands=bands), path)
    return path


@dataclass(frozen=True)
class Agency:
    """A running service that asks for keys.

    Attributes:
        service: itself.
        secret: of a key that may run jobs.
        looker: of one that may only read.
        upload: a raster that is not in its data folder.
    """

    service: Serving
    secret: str
    looker: str
    upload: Path

    @property
    def address(self) -> str:
        return f"{self.service.http.base_url}/page/".replace("//page", "/page")

    def mapped(self, threshold: float) -> str:
        """The id of a finished map of basin.tif."""
        job = self.service.ask("basin.tif", model="landslide-unet-soil", threshold=threshold)
        assert self.service.ended(job)["status"] == "successful"
        return job


@pytest.fixture(scope="module")
def agency(built: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agency]:
    root, elsewhere = tmp_path_factory.mktemp("agency"), tmp_path_factory.mktemp("elsewhere")
    (root / "stacks").mkdir()
    (root / "params.yaml").write_text("seed: 1\n")
    model = soil_model(tiny_model, elsewhere / "soil.onnx")
    add_champion(root, "soil", model)
    add_champion(root, "infrared", other_bands(model, elsewhere / "infrared.onnx"))
    write_stack(root / "stacks/basin.tif", stack())
    with write_cog(
        root / "stacks/basin.mask.tif", grid_of(HEIGHT, WIDTH), Layout("uint8", 255, ("landslide",))
    ) as mask:
        mask.write(soil()[np.newaxis].astype(np.uint8))
    upload = write_stack(elsewhere / "Quebrada Ñ.tif", stack(), tags={"TALUD_SYNTHETIC": "yes"})
    results = root / ".talud/service"
    results.mkdir(parents=True)
    with Database.opened(f"sqlite:///{results / 'service.db'}") as database:
        secret, looker = (KeyStore(database).add(scope, scope) for scope in ("run", "read"))
    with serving(root, {"keys_required": "true"}) as service:
        service.http.headers["X-API-Key"] = secret
        yield Agency(service, secret, looker, upload)


@pytest.fixture(scope="module")
def maps(agency: Agency) -> tuple[str, str]:
    """Two finished maps of one raster, at two thresholds."""
    return agency.mapped(0.5), agency.mapped(0.9)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(WEBGL) as running:
        yield running


@dataclass
class Reviewer:
    """Somebody at the page.

    Attributes:
        page: the browser's.
        faults: what the console said, and what was asked for elsewhere.
        asked: the addresses that were asked for.
    """

    page: Page
    faults: list[str]
    asked: list[str]

    def pixel(self, right: float = 0.5, down: float = 0.5) -> tuple[int, int, int]:
        """The colour at a place of the map, given as shares of its sides."""
        box = self.page.locator(".map").first.bounding_box()
        assert box
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        found = picture.getpixel((int(box["x"] + right * box["width"]), int(box["y"] + down * box["height"])))
        assert isinstance(found, tuple)
        return found[0], found[1], found[2]

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Wait for something that only the map's picture shows."""
        end = time.monotonic() + PATIENCE / 1000
        while not look():
            assert time.monotonic() < end, what
            self.page.wait_for_timeout(200)

    def accessible(self) -> None:
        """No rule of axe-core is broken."""
        found = self.page.evaluate("async () => (await axe.run(document, { resultTypes: ['violations'] })).violations")
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []

    def open_map(self, address: str, job: str) -> None:
        self.page.goto(f"{address}#/jobs/{job}")
        expect(self.page.locator(".counts")).to_be_visible()

    def beside(self, word: str, list_: str = ".counts") -> Locator:
        """What stands beside a word of a list."""
        return self.page.locator(f"{list_} div:has(> dt:text-is('{word}')) > dd")


@pytest.fixture
def sit(browser: Browser, agency: Agency) -> Iterator[Callable[..., Reviewer]]:
    """Somebody sits down at a browser; what its console says fails the test."""
    opened = []

    def sit_down(
        size: tuple[int, int] = (1280, 800), language: str = "en", scheme: str = "light", key: str | None = None
    ) -> Reviewer:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            color_scheme=scheme,  # type: ignore[arg-type]
            has_touch=size != SIZES[0],
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        faults: list[str] = []
        asked: list[str] = []
        here = str(agency.service.http.base_url)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda made: asked.append(made.url))
        page.on("request", lambda made: None if made.url.startswith((here, "blob:")) else faults.append(made.url))
        page.add_init_script((PAGE / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
        if key:
            context.request.post(f"{here}/session", data={"key": key})
            page.add_init_script("localStorage.setItem('talud.reviewer', 'Ana Ruiz')")
        opened.append((context, faults))
        return Reviewer(page, faults, asked)

    expect.set_options(timeout=PATIENCE)
    yield sit_down
    for context, faults in opened:
        context.close()
        assert faults == []


def test_from_an_upload_to_the_exported_review(agency: Agency, sit: Callable[..., Reviewer], tmp_path: Path) -> None:
    who = sit()
    page = who.page
    page.goto(agency.address)

    # a key is asked for; the service says that it does not know a wrong one
    page.get_by_label("API key").fill("talud-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("does not know this key")).to_be_visible()
    assert who.faults.pop().startswith("Failed to load resource: the server responded with a status of 401")
    who.accessible()
    page.get_by_label("API key").fill(agency.secret)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Signed in as run")).to_be_visible()

    # an upload is chosen; models that do not fit it are there, but cannot be chosen
    page.locator("#file").set_input_files(agency.upload)
    expect(page.get_by_text("is uploaded and chosen").last).to_be_visible()
    expect(page.get_by_text("Synthetic data: this area was made by a program")).to_be_visible()
    unfit = page.locator("optgroup[label='Do not fit this raster'] option")
    expect(unfit).to_have_text("landslide-unet-infrared, version 1 (champion): lacks near_infrared")
    expect(unfit).to_be_disabled()
    page.get_by_label("Model").select_option("landslide-unet-soil/1")
    expect(page.get_by_text("Reads red, green, blue.")).to_be_visible()
    who.accessible()
    page.get_by_role("button", name="Map landslides").click()
    page.get_by_role("link", name="Open the map of Quebrada_N.tif").click()

    # what is said of the map
    expect(page.get_by_text("Made by a neural network (landslide-unet-soil, version 1).")).to_be_visible()
    expect(page.get_by_text("Nobody has checked it")).to_be_visible()
    expect(page.get_by_text("Synthetic data.")).to_be_visible()
    expect(page.get_by_text("no data: red, green, blue")).to_be_visible()
    expect(page.locator(".counts")).to_contain_text("Unreviewed")
    expect(who.beside("Unreviewed")).to_have_text(str(len(SLIDES)))

    # the largest comes first; the slider colours it anew, and asks for nothing
    page.keyboard.press("n")
    expect(page.get_by_text("Selected polygon")).to_be_visible()
    who.until(lambda: reddish(who.pixel()), "the probability is not shown")
    page.wait_for_load_state("networkidle")
    asked = len([url for url in who.asked if "/tiles/" in url])
    page.get_by_label("Probability threshold").fill("0.99")
    who.until(lambda: not reddish(who.pixel()), "the slider does not colour anew")
    assert len([url for url in who.asked if "/tiles/" in url]) == asked
    page.get_by_role("button", name="Back to the map’s own, 0.50").click()

    # the name is asked for once; verdicts are given by keys
    page.keyboard.press("a")
    who.accessible()
    page.get_by_label("Your name").fill("Ana Ruiz")
    page.keyboard.press("Enter")
    expect(page.locator(".selected")).to_contain_text("Accepted")
    expect(page.locator(".selected")).to_contain_text("Ana Ruiz")
    for key, verdict in (("r", "Rejected"), ("a", "Accepted"), ("a", "Accepted")):
        page.keyboard.press("n")
        expect(page.locator(".selected")).to_contain_text("Unreviewed")
        page.keyboard.press(key)
        expect(page.locator(".selected")).to_contain_text(verdict)
    page.keyboard.press("u")
    expect(page.locator(".selected")).to_contain_text("Unreviewed")
    for name, count in (("Unreviewed", "3"), ("Accepted", "2"), ("Rejected", "1")):
        expect(who.beside(name)).to_have_text(count)

    # an outline is redrawn, and the area follows
    page.keyboard.press("p")
    expect(page.locator(".selected")).to_contain_text("Unreviewed")
    before = who.beside("Area", ".selected").inner_text()
    page.keyboard.press("e")
    expect(page.locator(".edit-bar")).to_contain_text("drag the corners and edges")
    drag_an_edge(who)
    page.keyboard.press("Enter")
    expect(page.locator(".selected")).to_contain_text("redrawn by a person")
    expect(who.beside("Area", ".selected")).not_to_have_text(before)

    # a landslide that the model missed is drawn
    page.get_by_role("button", name="Whole map").click()
    page.keyboard.press("d")
    expect(page.locator(".edit-bar")).to_contain_text("corner after corner")
    box = page.locator(".map").bounding_box()
    assert box
    for right, down in ((0.5, 0.68), (0.6, 0.68), (0.55, 0.76)):
        page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    page.keyboard.press("Enter")
    expect(who.beside("Drawn")).to_have_text("1")
    expect(page.locator(".selected")).to_contain_text("a person")
    who.accessible()

    # the export holds what was accepted and drawn, and says what it leaves out
    expect(page.get_by_text("2 unreviewed polygons are left out.")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export the review").click()
    expect(page.locator(".panel").get_by_text("2 unreviewed polygons were left out")).to_be_visible()
    download.value.save_as(tmp_path / "review.gpkg")
    review = geopandas.read_file(tmp_path / "review.gpkg")
    assert sorted(review["origin"]) == ["drawn", "model", "model", "model"]
    assert set(review["reviewed_by"]) == {"Ana Ruiz"}
    assert review.crs.to_epsg() == 32618


def reddish(colour: tuple[int, int, int]) -> bool:
    """Whether it is that of a high probability, over whatever lies below."""
    red, green, blue = colour
    return red > 110 and green < 0.6 * red and blue < 0.6 * red


def drag_an_edge(who: Reviewer) -> None:
    """Pull the edge right of the map's middle by 40 pixels."""
    box = who.page.locator(".map").bounding_box()
    assert box
    x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
    found: list[int] = []

    def seen() -> bool:
        """Whether the outline stands, at the same place as before."""
        row = np.asarray(Image.open(io.BytesIO(who.page.screenshot())).convert("RGB"))[y, x : x + 300]
        found.append(x + int(np.argmax(row.min(axis=1) > 225)))
        return len(found) > 1 and found[-2] == found[-1] > x

    who.until(seen, "there is no outline to drag")
    edge = found[-1]
    who.page.mouse.move(edge, y)
    who.page.mouse.down()
    who.page.mouse.move(edge + 20, y, steps=4)
    who.page.mouse.move(edge + 40, y, steps=4)
    who.page.mouse.up()


@pytest.fixture
def reviewer(agency: Agency, maps: tuple[str, str], sit: Callable[..., Reviewer]) -> Reviewer:
    """A reviewer who has opened the first map and selected its first polygon."""
    who = sit(key=agency.secret)
    who.open_map(agency.address, maps[0])
    who.page.keyboard.press("n")
    return who


def test_a_verdict_that_is_not_saved_is_said_and_tried_again(
    agency: Agency, maps: tuple[str, str], sit: Callable[..., Reviewer]
) -> None:
    who = sit(key=agency.secret)
    page = who.page
    refusing = True

    def answer(route: Route) -> None:
        if refusing and route.request.method == "PUT":
            route.fulfill(status=503, json={"title": "Service Unavailable", "detail": "the database is locked"})
        else:
            route.continue_()

    # Before the page is opened: Chromium passes a new interception to an open page without waiting for it.
    page.route("**/polygons/*", answer)
    who.open_map(agency.address, maps[0])
    page.keyboard.press("n")
    page.keyboard.press("r")
    expect(page.locator(".unsaved")).to_contain_text("1 change was not saved")
    expect(page.locator(".unsaved")).to_contain_text("the database is locked")
    expect(who.beside("Rejected")).to_have_text("0")
    who.accessible()
    # nothing is left by mistake, and nothing half exported
    page.get_by_role("button", name="Export the review").click()
    expect(page.get_by_text("Save or discard them first")).to_be_visible()
    page.get_by_role("link", name="All maps").click()
    page.get_by_role("button", name="Cancel").click()
    refusing = False
    page.get_by_role("button", name="Try all again").click()
    expect(page.locator(".unsaved")).not_to_contain_text("not saved")
    expect(who.beside("Rejected")).to_have_text("1")
    assert any("503" in fault for fault in who.faults)
    who.faults.clear()
    page.keyboard.press("u")
    expect(page.locator(".selected")).to_contain_text("Unreviewed")


def test_the_map_stands_against_its_inventory_and_another_map(reviewer: Reviewer) -> None:
    who, page = reviewer, reviewer.page
    page.get_by_label("Map against inventory", exact=True).check()
    page.get_by_label("Opacity of Map against inventory").fill("1")
    page.get_by_label("Polygons", exact=True).uncheck()
    who.until(lambda: max(abs(np.subtract(who.pixel(), HIT))) < 12, "a landslide that is mapped is not a true positive")
    page.get_by_label("Probability threshold").fill("0.99")
    who.until(lambda: who.pixel()[0] > 180 and who.pixel()[2] > 120, "a missed landslide is not a false negative")

    page.get_by_label("Compare with another map of this raster").select_option(index=1)
    divider = page.get_by_role("slider", name="Divider between the two maps")
    expect(divider).to_have_attribute("aria-valuenow", "50")
    expect(page.locator(".side.right")).to_contain_text("landslide-unet-soil, version 1 · 0.90")
    who.accessible()
    divider.focus()
    page.keyboard.press("ArrowLeft")
    expect(divider).to_have_attribute("aria-valuenow", "48")
    box = divider.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 100, steps=3)
    page.mouse.up()
    assert int(divider.get_attribute("aria-valuenow") or 0) > 55


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("language", "scheme"), [("en", "dark"), ("es", "light")])
def test_it_fits_every_screen_in_both_languages(
    size: tuple[int, int],
    language: str,
    scheme: str,
    agency: Agency,
    maps: tuple[str, str],
    sit: Callable[..., Reviewer],
) -> None:
    who = sit(size, language, scheme, key=agency.secret)
    page = who.page
    who.open_map(agency.address, maps[0])
    review, layers, back = WORDS[language]
    assert page.locator("html").get_attribute("lang") == language
    who.accessible()
    if size != SIZES[0]:
        page.get_by_role("button", name=layers).tap()
        expect(page.locator("#map-threshold")).to_be_visible()
        who.accessible()
        page.get_by_role("button", name=review).tap()
    page.keyboard.press("n")
    expect(page.locator(".selected dl")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    who.accessible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    page.get_by_role("link", name=back).click()
    expect(page.locator(".job").first).to_be_visible()
    who.accessible()
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_the_language_is_changed_and_remembered(reviewer: Reviewer) -> None:
    who = reviewer
    who.page.get_by_label("Language").select_option("es")
    expect(who.page.get_by_role("heading", name="Polígono seleccionado")).to_be_visible()
    expect(who.page.locator("html")).to_have_attribute("lang", "es")
    who.page.reload()
    expect(who.page.get_by_role("heading", name="Revisión")).to_be_visible()


def test_a_key_that_may_only_read_changes_nothing(
    agency: Agency, maps: tuple[str, str], sit: Callable[..., Reviewer]
) -> None:
    who = sit(key=agency.looker)
    who.page.goto(agency.address)
    expect(who.page.get_by_text("Your key may look at maps, but not start any.")).to_be_visible()
    who.open_map(agency.address, maps[0])
    who.page.keyboard.press("n")
    expect(who.page.locator(".selected dl")).to_be_visible()
    who.page.keyboard.press("a")
    expect(who.page.get_by_role("button", name=re.compile("^Accept"))).to_be_disabled()
    expect(who.page.locator(".selected")).to_contain_text("Unreviewed")


def test_the_build_names_the_licence_of_what_is_in_it(built: Path) -> None:
    licences = (built.parent / "licences.txt").read_text(encoding="utf-8")
    assert "## ol - " in licences
    assert "Redistribution and use in source and binary forms" in licences


def test_the_lock_of_the_page_holds_no_registry() -> None:
    lock = (PAGE / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert '"integrity": "sha512-' in lock


def test_where_it_was_not_built_the_service_says_so(tmp_path: Path) -> None:
    app = FastAPI()
    install_page(app, tmp_path)
    answer = TestClient(app).get("/page/")
    assert answer.status_code == 200
    assert "<code>make page</code>" in answer.text


def test_a_wheel_carries_it(built: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("talud-*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("talud/serving/static/")}
    files = {path.relative_to(built.parent).as_posix() for path in built.parent.rglob("*") if path.is_file()}
    assert carried == {f"talud/serving/static/{name}" for name in files}
