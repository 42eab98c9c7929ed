"""Tests of the review page in Chromium, on a running service."""

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
from service_process import ServiceProcess, add_champion, run_service
from stack_files import grid_of, write_stack
from talud.engine.model_file import read_contract, save_model, weights_digest
from talud.raster import Layout, write_cog
from talud.serving.app import install_page
from talud.serving.database import Database
from talud.serving.keys import KeyStore

pytestmark = pytest.mark.slow

PAGE = ROOT / "page"
PAGE_INDEX = ROOT / "src/talud/serving/static/index.html"
HEIGHT, WIDTH = 160, 208
# Row, column and side of each square.
LANDSLIDES = [
    (20, 20, 26),
    (24, 92, 24),
    (16, 160, 22),
    (92, 24, 20),
    (96, 92, 18),
    (100, 160, 16),
]  # row, column, side
# Red, green, blue.
GROUND, SOIL = (60, 120, 60), (190, 130, 90)
NODATA = (slice(130, 150), slice(60, 120))
SCREEN_SIZES = [(1280, 800), (1024, 768), (768, 1024)]
BUTTONS = {"en": ("Review", "Layers", "All maps"), "es": ("Revisión", "Capas", "Todos los mapas")}
TRUE_POSITIVE_COLOUR = (0, 114, 178)
TIMEOUT_MS = 60_000


@pytest.fixture(scope="session")
def page_index() -> Path:
    """Return the page's index, built if it is missing or older than a source."""
    sources = [path for path in PAGE.rglob("*") if path.is_file() and "node_modules" not in path.parts]
    fresh = PAGE_INDEX.is_file() and max(path.stat().st_mtime for path in sources) <= PAGE_INDEX.stat().st_mtime
    if not fresh or not (PAGE / "node_modules/axe-core").is_dir():
        made = subprocess.run(["make", "page"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
    return PAGE_INDEX


def soil() -> NDArray[np.bool_]:
    where = np.zeros((HEIGHT, WIDTH), bool)
    for row, column, side in LANDSLIDES:
        where[row : row + side, column : column + side] = True
    return where


def stack() -> NDArray[np.float32]:
    """Return squares of bare soil on green ground, with a part without data."""
    values = np.where(soil(), np.reshape(SOIL, (3, 1, 1)), np.reshape(GROUND, (3, 1, 1))).astype(np.float32)
    values += np.random.default_rng(5).uniform(-4, 4, values.shape).astype(np.float32)
    values[:, *NODATA] = np.nan
    return values


def soil_model(tiny: Path, path: Path) -> Path:
    """Write a model that passes red through: 0.95 on bare soil, 0.05 elsewhere."""
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
    save_model(graph, read_contract(tiny).replace(weights=weights_digest(graph)), path)
    return path


def other_bands(model: Path, path: Path) -> Path:
    """Write the model with a band that no raster of the tests has."""
    graph, contract = onnx.load(model), read_contract(model)
    bands = (contract.input.bands[0].model_copy(update={"name": "near_infrared"}), *contract.input.bands[1:])
    del graph.metadata_props[:]
    save_model(graph, contract.replace(bands=bands), path)
    return path


@dataclass(frozen=True)
class ReviewService:
    """Running service that requires API keys.

    Attributes:
        process: process of the service.
        run_key: API key that may run jobs.
        read_key: API key that may only read.
        upload: raster outside the service's data folder.
    """

    process: ServiceProcess
    run_key: str
    read_key: str
    upload: Path

    @property
    def address(self) -> str:
        return f"{self.process.http.base_url}/page/".replace("//page", "/page")

    def make_map(self, threshold: float) -> str:
        """Map basin.tif and return the job's id."""
        job = self.process.ask("basin.tif", model="landslide-unet-soil", threshold=threshold)
        assert self.process.ended(job)["status"] == "successful"
        return job


@pytest.fixture(scope="module")
def service(page_index: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReviewService]:
    root, elsewhere = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("elsewhere")
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
    with Database.open(f"sqlite:///{results / 'service.db'}") as database:
        run_key, read_key = (KeyStore(database).add(scope, scope) for scope in ("run", "read"))
    with run_service(root, {"keys_required": "true"}) as running:
        running.http.headers["X-API-Key"] = run_key
        yield ReviewService(running, run_key, read_key, upload)


@pytest.fixture(scope="module")
def maps(service: ReviewService) -> tuple[str, str]:
    """Return the ids of two finished maps of one raster, with different thresholds."""
    return service.make_map(0.5), service.make_map(0.9)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(WEBGL) as running:
        yield running


@dataclass
class ReviewerPage:
    """Browser page of a reviewer.

    Attributes:
        page: page in the browser.
        faults: console messages, and addresses of requests to other hosts.
        requests: addresses of all requests.
    """

    page: Page
    faults: list[str]
    requests: list[str]

    def pixel(self, right: float = 0.5, down: float = 0.5) -> tuple[int, int, int]:
        """Return the colour of the map at a position, given as shares of its sides."""
        box = self.page.locator(".map").first.bounding_box()
        assert box
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        found = picture.getpixel((int(box["x"] + right * box["width"]), int(box["y"] + down * box["height"])))
        assert isinstance(found, tuple)
        return found[0], found[1], found[2]

    def wait_until(self, condition: Callable[[], bool], failure: str) -> None:
        """Wait for a condition that only the pixels of the map show."""
        end = time.monotonic() + TIMEOUT_MS / 1000
        while not condition():
            assert time.monotonic() < end, failure
            self.page.wait_for_timeout(200)

    def check_accessibility(self) -> None:
        """Check that the page breaks no rule of axe-core."""
        found = self.page.evaluate("async () => (await axe.run(document, { resultTypes: ['violations'] })).violations")
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []

    def open_map(self, address: str, job: str) -> None:
        self.page.goto(f"{address}#/jobs/{job}")
        expect(self.page.locator(".counts")).to_be_visible()

    def value(self, term: str, list_: str = ".counts") -> Locator:
        """Return the value of a term in a description list."""
        return self.page.locator(f"{list_} div:has(> dt:text-is('{term}')) > dd")


@pytest.fixture
def open_page(browser: Browser, service: ReviewService) -> Iterator[Callable[..., ReviewerPage]]:
    """Return a function that opens a browser page; console messages fail the test."""
    opened = []

    def open_browser_page(
        size: tuple[int, int] = (1280, 800), language: str = "en", scheme: str = "light", key: str | None = None
    ) -> ReviewerPage:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            color_scheme=scheme,  # type: ignore[arg-type]
            has_touch=size != SCREEN_SIZES[0],
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        faults: list[str] = []
        requests: list[str] = []
        origin = str(service.process.http.base_url)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("request", lambda made: None if made.url.startswith((origin, "blob:")) else faults.append(made.url))
        page.add_init_script((PAGE / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
        if key:
            context.request.post(f"{origin}/session", data={"key": key})
            page.add_init_script("localStorage.setItem('talud.reviewer', 'Ana Ruiz')")
        opened.append((context, faults))
        return ReviewerPage(page, faults, requests)

    expect.set_options(timeout=TIMEOUT_MS)
    yield open_browser_page
    for context, faults in opened:
        context.close()
        assert faults == []


def test_upload_map_review_and_export(
    service: ReviewService, open_page: Callable[..., ReviewerPage], tmp_path: Path
) -> None:
    reviewer = open_page()
    page = reviewer.page
    page.goto(service.address)

    # The page asks for a key and refuses a wrong one.
    page.get_by_label("API key").fill("talud-wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This API key is not valid")).to_be_visible()
    assert reviewer.faults.pop().startswith("Failed to load resource: the server responded with a status of 401")
    reviewer.check_accessibility()
    page.get_by_label("API key").fill(service.run_key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Signed in as run")).to_be_visible()

    # An upload is selected. Models that are not compatible with it are listed, but disabled.
    page.locator("#file").set_input_files(service.upload)
    expect(page.get_by_text("was uploaded and selected").last).to_be_visible()
    expect(page.get_by_text("Synthetic data: a program generated this area")).to_be_visible()
    unfit = page.locator("optgroup[label='Not compatible with this raster'] option")
    expect(unfit).to_have_text("landslide-unet-infrared, version 1 (champion): missing bands: near_infrared")
    expect(unfit).to_be_disabled()
    page.get_by_label("Model").select_option("landslide-unet-soil/1")
    expect(page.get_by_text("Input bands: red, green, blue.")).to_be_visible()
    reviewer.check_accessibility()
    page.get_by_role("button", name="Map landslides").click()
    page.get_by_role("link", name="Open the map of Quebrada_N.tif").click()

    # The map shows its model, review status and unmapped areas.
    expect(page.get_by_text("Made by a neural network (landslide-unet-soil, version 1).")).to_be_visible()
    expect(page.get_by_text("It has not been reviewed on screen or checked in the field.")).to_be_visible()
    expect(page.get_by_text("Synthetic data.")).to_be_visible()
    expect(page.get_by_text("no data: red, green, blue")).to_be_visible()
    expect(page.locator(".counts")).to_contain_text("Unreviewed")
    expect(reviewer.value("Unreviewed")).to_have_text(str(len(LANDSLIDES)))

    # The largest polygon comes first. The slider changes the colours without loading tiles.
    page.keyboard.press("n")
    expect(page.get_by_text("Selected polygon")).to_be_visible()
    reviewer.wait_until(lambda: reddish(reviewer.pixel()), "the probability is not shown")
    page.wait_for_load_state("networkidle")
    tile_requests = len([url for url in reviewer.requests if "/tiles/" in url])
    page.get_by_label("Probability threshold").fill("0.99")
    reviewer.wait_until(lambda: not reddish(reviewer.pixel()), "the slider does not change the colours")
    assert len([url for url in reviewer.requests if "/tiles/" in url]) == tile_requests
    page.get_by_role("button", name="Reset to the threshold of the map, 0.50").click()

    # The page asks for the name once. Keys save reviews.
    page.keyboard.press("a")
    reviewer.check_accessibility()
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
        expect(reviewer.value(name)).to_have_text(count)

    # Redrawing an outline updates the area.
    page.keyboard.press("p")
    expect(page.locator(".selected")).to_contain_text("Unreviewed")
    before = reviewer.value("Area", ".selected").inner_text()
    page.keyboard.press("e")
    expect(page.locator(".edit-bar")).to_contain_text("drag the corners and edges")
    drag_an_edge(reviewer)
    page.keyboard.press("Enter")
    expect(page.locator(".selected")).to_contain_text("redrawn by a person")
    expect(reviewer.value("Area", ".selected")).not_to_have_text(before)

    # A landslide that the model missed is drawn.
    page.get_by_role("button", name="Whole map").click()
    page.keyboard.press("d")
    expect(page.locator(".edit-bar")).to_contain_text("click each corner")
    box = page.locator(".map").bounding_box()
    assert box
    for right, down in ((0.5, 0.68), (0.6, 0.68), (0.55, 0.76)):
        page.mouse.click(box["x"] + right * box["width"], box["y"] + down * box["height"])
    page.keyboard.press("Enter")
    expect(reviewer.value("Drawn")).to_have_text("1")
    expect(page.locator(".selected")).to_contain_text("a person")
    reviewer.check_accessibility()

    # The export contains accepted and drawn polygons and states the number of others.
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
    """Check if a colour is that of a high probability, on any background."""
    red, green, blue = colour
    return red > 110 and green < 0.6 * red and blue < 0.6 * red


def drag_an_edge(reviewer: ReviewerPage) -> None:
    """Drag the edge right of the centre of the map by 40 pixels."""
    box = reviewer.page.locator(".map").bounding_box()
    assert box
    x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
    found: list[int] = []

    def edge_found() -> bool:
        """Check if the outline is visible, at the same position as before."""
        row = np.asarray(Image.open(io.BytesIO(reviewer.page.screenshot())).convert("RGB"))[y, x : x + 300]
        found.append(x + int(np.argmax(row.min(axis=1) > 225)))
        return len(found) > 1 and found[-2] == found[-1] > x

    reviewer.wait_until(edge_found, "there is no outline to drag")
    edge = found[-1]
    reviewer.page.mouse.move(edge, y)
    reviewer.page.mouse.down()
    reviewer.page.mouse.move(edge + 20, y, steps=4)
    reviewer.page.mouse.move(edge + 40, y, steps=4)
    reviewer.page.mouse.up()


@pytest.fixture
def reviewer(service: ReviewService, maps: tuple[str, str], open_page: Callable[..., ReviewerPage]) -> ReviewerPage:
    """Return a page with the first map open and its first polygon selected."""
    reviewer = open_page(key=service.run_key)
    reviewer.open_map(service.address, maps[0])
    reviewer.page.keyboard.press("n")
    return reviewer


def test_failed_review_is_reported_and_retried(
    service: ReviewService, maps: tuple[str, str], open_page: Callable[..., ReviewerPage]
) -> None:
    reviewer = open_page(key=service.run_key)
    page = reviewer.page
    refusing = True

    def answer(route: Route) -> None:
        if refusing and route.request.method == "PUT":
            route.fulfill(status=503, json={"title": "Service Unavailable", "detail": "the database is locked"})
        else:
            route.continue_()

    # Before the page is opened: Chromium passes a new interception to an open page without waiting for it.
    page.route("**/polygons/*", answer)
    reviewer.open_map(service.address, maps[0])
    page.keyboard.press("n")
    page.keyboard.press("r")
    expect(page.locator(".unsaved")).to_contain_text("1 change was not saved")
    expect(page.locator(".unsaved")).to_contain_text("the database is locked")
    expect(reviewer.value("Rejected")).to_have_text("0")
    reviewer.check_accessibility()
    # Unsaved changes prevent an export, and leaving needs a confirmation.
    page.get_by_role("button", name="Export the review").click()
    expect(page.get_by_text("Save or discard them first")).to_be_visible()
    page.get_by_role("link", name="All maps").click()
    page.get_by_role("button", name="Cancel").click()
    refusing = False
    page.get_by_role("button", name="Try all again").click()
    expect(page.locator(".unsaved")).not_to_contain_text("not saved")
    expect(reviewer.value("Rejected")).to_have_text("1")
    assert any("503" in fault for fault in reviewer.faults)
    reviewer.faults.clear()
    page.keyboard.press("u")
    expect(page.locator(".selected")).to_contain_text("Unreviewed")


def test_map_is_compared_with_inventory_and_another_map(reviewer: ReviewerPage) -> None:
    page = reviewer.page
    page.get_by_label("Map against inventory", exact=True).check()
    page.get_by_label("Opacity of Map against inventory").fill("1")
    page.get_by_label("Polygons", exact=True).uncheck()
    reviewer.wait_until(
        lambda: max(abs(np.subtract(reviewer.pixel(), TRUE_POSITIVE_COLOUR))) < 12,
        "a landslide that is mapped is not a true positive",
    )
    page.get_by_label("Probability threshold").fill("0.99")
    reviewer.wait_until(
        lambda: reviewer.pixel()[0] > 180 and reviewer.pixel()[2] > 120, "a missed landslide is not a false negative"
    )

    page.get_by_label("Compare with another map of this raster").select_option(index=1)
    divider = page.get_by_role("slider", name="Divider between the two maps")
    expect(divider).to_have_attribute("aria-valuenow", "50")
    expect(page.locator(".side.right")).to_contain_text("landslide-unet-soil, version 1 · 0.90")
    reviewer.check_accessibility()
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


@pytest.mark.parametrize("size", SCREEN_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("language", "scheme"), [("en", "dark"), ("es", "light")])
def test_page_fits_all_screen_sizes_in_both_languages(
    size: tuple[int, int],
    language: str,
    scheme: str,
    service: ReviewService,
    maps: tuple[str, str],
    open_page: Callable[..., ReviewerPage],
) -> None:
    reviewer = open_page(size, language, scheme, key=service.run_key)
    page = reviewer.page
    reviewer.open_map(service.address, maps[0])
    review, layers, back = BUTTONS[language]
    assert page.locator("html").get_attribute("lang") == language
    reviewer.check_accessibility()
    if size != SCREEN_SIZES[0]:
        page.get_by_role("button", name=layers).tap()
        expect(page.locator("#map-threshold")).to_be_visible()
        reviewer.check_accessibility()
        page.get_by_role("button", name=review).tap()
    page.keyboard.press("n")
    expect(page.locator(".selected dl")).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    reviewer.check_accessibility()
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    page.get_by_role("link", name=back).click()
    expect(page.locator(".job").first).to_be_visible()
    reviewer.check_accessibility()
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_language_choice_is_stored(reviewer: ReviewerPage) -> None:
    reviewer.page.get_by_label("Language").select_option("es")
    expect(reviewer.page.get_by_role("heading", name="Polígono seleccionado")).to_be_visible()
    expect(reviewer.page.locator("html")).to_have_attribute("lang", "es")
    reviewer.page.reload()
    expect(reviewer.page.get_by_role("heading", name="Revisión")).to_be_visible()


def test_read_key_cannot_start_maps_or_review(
    service: ReviewService, maps: tuple[str, str], open_page: Callable[..., ReviewerPage]
) -> None:
    reviewer = open_page(key=service.read_key)
    reviewer.page.goto(service.address)
    expect(reviewer.page.get_by_text("Your key allows you to view maps, but not to start one.")).to_be_visible()
    reviewer.open_map(service.address, maps[0])
    reviewer.page.keyboard.press("n")
    expect(reviewer.page.locator(".selected dl")).to_be_visible()
    reviewer.page.keyboard.press("a")
    expect(reviewer.page.get_by_role("button", name=re.compile("^Accept"))).to_be_disabled()
    expect(reviewer.page.locator(".selected")).to_contain_text("Unreviewed")


def test_build_lists_licences_of_bundled_libraries(page_index: Path) -> None:
    licences = (page_index.parent / "licences.txt").read_text(encoding="utf-8")
    assert "## ol - " in licences
    assert "Redistribution and use in source and binary forms" in licences


def test_package_lock_names_no_registry() -> None:
    lock = (PAGE / "package-lock.json").read_text(encoding="utf-8")
    assert '"resolved"' not in lock
    assert '"integrity": "sha512-' in lock


def test_service_explains_how_to_build_a_missing_page(tmp_path: Path) -> None:
    app = FastAPI()
    install_page(app, tmp_path)
    answer = TestClient(app).get("/page/")
    assert answer.status_code == 200
    assert "<code>make page</code>" in answer.text


def test_wheel_contains_the_built_page(page_index: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("talud-*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("talud/serving/static/")}
    files = {path.relative_to(page_index.parent).as_posix() for path in page_index.parent.rglob("*") if path.is_file()}
    assert carried == {f"talud/serving/static/{name}" for name in files}
