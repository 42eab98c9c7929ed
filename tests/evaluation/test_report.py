"""Tests of the report: numbers, pictures, and its use in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from playwright.sync_api import Browser, Page

from chromium import chromium, open_page
from talud.confusion_map import PIXEL_CLASS_COLOURS, PixelClass
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation import paper, report
from talud.evaluation.assumptions import assumptions
from talud.evaluation.figures import area_viewer
from talud.evaluation.results import BandSetResult, Trials
from talud.evaluation.scores import evaluate
from talud.products.adaptation_record import AdaptationRecord
from talud.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_template: Path) -> Project:
    """Small project with both band sets evaluated and the report written."""
    import shutil

    root = tmp_path_factory.mktemp("report") / "project"
    shutil.copytree(project_template, root)
    found = Project.find(root)
    for band_set in found.params.band_sets:
        evaluate(found, band_set)
    report.write_report(found)
    return found


@pytest.fixture(scope="module")
def html(project: Project) -> str:
    return project.report.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """Return the visible text of a page."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", without).replace("\u202f", "").split())


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


def test_study_scores_follow_from_its_counts():
    inference = {name: round(model.inference.f1, 3) for name, model in paper.IMAGE_MODELS.items()}
    assert inference == {"3band": 0.445, "5band": 0.361, "7band": 0.378}
    losses = [round(100 * model.f1_loss) for model in paper.IMAGE_MODELS.values()]
    assert (min(losses), max(losses)) == (36, 46)
    # The printed precision and recall of the training zone give the printed F1.
    for model in paper.IMAGE_MODELS.values():
        assert 2 * model.precision * model.recall / (model.precision + model.recall) == pytest.approx(
            model.f1, abs=0.006
        )
        assert model.inference.tp + model.inference.fn == 3279


def test_ranking_sentence_states_ties():
    assert report.ranking_sentence({"a": 0.3, "b": 0.5}) == "b has the highest F1, 0.500, before a 0.300."
    assert report.ranking_sentence({"a": 0.5001, "b": 0.5004}) == "no band set stands out by F1: b 0.500, a 0.500."
    assert report.ranking_sentence({"a": 0.5}) == "a reaches an F1 of 0.500."


def test_transfer_sentence_distinguishes_loss_from_gain():
    assert report.transfer_sentence([0.36, 0.46], "x") == "Transfer to x costs 36 to 46% of the F1."
    assert report.transfer_sentence([0.25], "x") == "Transfer to x costs 25% of the F1."
    assert "costs no F1" in report.transfer_sentence([-0.1, -0.05], "x")
    assert "between +10% and −20%" in report.transfer_sentence([-0.1, 0.2], "x")


def test_report_tables_show_the_scores(project: Project, html: str):
    text = text_of(html)
    for band_set in ("3band", "terrain"):
        scores = json.loads(project.scores(band_set).read_text())
        away, home = scores["areas"]["away"], scores["test"]["home"]
        row = (
            f"{band_set} {away['tp']} {away['fp']} {away['fn']} {away['tn']} {away['precision']:.3f} "
            f"{away['recall']:.3f} {away['f1']:.3f} {away['iou']:.3f}"
        )
        assert row in text
        assert f"0.60 {home['precision']:.3f} {home['recall']:.3f} {home['f1']:.3f} {home['iou']:.3f}" in text
        change = away["f1"] / home["f1"] - 1
        assert f"{row} {100 * change:.1f}%".replace("-", "−") in text
        assert f"{100 * away['not_mapped_share']:.1f}% {away['not_mapped_landslide_pixels']}" in text


def test_report_shows_study_numbers_for_its_band_sets(html: str):
    text = text_of(html)
    assert "3band 1258 1113 2021 38441 0.531 0.384 0.445 0.286 −36.4%" in text
    assert "7band 922 682 2357 38872 0.575 0.281 0.378 0.233" in text
    assert "0.67 0.73 0.70" in text  # Table 3, 3 bands
    assert re.search(r"terrain \d+ \d+ 0\.60 [\d. ]+ – – –", text)
    assert "is the F1 of the training zone" in text


def test_report_shows_a_finding_below_each_table(html: str):
    text = text_of(html)
    for table, reason in (
        (2, "rank of the study’s configuration: not compared with others for 3band, 5band and 7band"),
        (3, "no scores of 5band and 7band"),
        (4, "away: no scores of 5band and 7band"),
    ):
        verdict = f"cannot be judged on this synthetic data: {reason}\\."
        assert re.search(f"The finding of the study’s Table {table}, [^:]* {verdict}", text)


@pytest.mark.slow
def test_findings_use_the_results(project: Project):
    result = report.ReportData.gather(project).results[0]
    results = [
        replace(result, scores=result.scores.model_copy(update={"band_set": name})) for name in paper.IMAGE_MODELS
    ]
    _, training, transfer = paper.check_findings(results, ["away"])
    assert training.reason.startswith(f"F1 3band {result.test.f1:.3f}, 5band {result.test.f1:.3f}")
    assert training.verdict is paper.Verdict.IN_PART  # 3 and 7 bands are equal, and so are 5
    loss = round(100 * result.f1_loss("away"))
    assert f"on away it costs {loss} to {loss}%" in transfer.reason
    page = replace(report.ReportData.gather(project), findings=[training])
    assert "holds in part on this synthetic data, with one seed: F1 3band" in text_of(report.render_report(page))
    partly = replace(page, areas=[replace(page.areas[0], synthetic=False), *page.areas[1:]])
    assert "on this partly synthetic data" in text_of(report.render_report(partly))


def test_strip_plot_places_trials_by_hyperparameter(project: Project, html: str):
    chart = re.search(r'aria-label="Validation F1 by batch size, 3band">(.*?)</svg>', html, re.DOTALL)
    assert chart
    assert re.findall(r">(8|16)</text>", chart[1]) == ["8", "16"]
    dots = re.findall(r'class="dot( kept)?" cx="([\d.]+)" cy="([\d.]+)"', chart[1])
    middles = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="190"', chart[1])]
    assert [(kept, float(x), float(y)) for kept, x, y in dots] == [
        ("", middles[0], pytest.approx(172 - 160 * 0.3 / 0.6, abs=0.1)),
        (" kept", middles[1], pytest.approx(172 - 160, abs=0.1)),
    ]
    assert "by filters, 3band" not in html  # all have 4


def test_strip_plot_has_a_column_for_each_network(project: Project):
    table = Trials.read(project.trials("3band"))
    names = ("unet", "resunet", "pretrained_unet", "attention_unet")  # rising F1
    trials = [
        table.trials[0].model_copy(
            update={"network": name, "learning_rate": rate, "scores": {"f1": 0.1 * place + rate}}
        )
        for place, name in enumerate(names)
        for rate in (0.002, 0.001)
    ]
    networks, rates = report.strip_plots(table.model_copy(update={"trials": tuple(trials)}))
    assert (networks.label, rates.label) == ("Network", "Learning rate")
    assert [column.value for column in networks.columns] == [*reversed(names)]
    assert [column.median for column in networks.columns] == pytest.approx([0.3015, 0.2015, 0.1015, 0.0015])
    assert [column.value for column in rates.columns] == [0.001, 0.002]
    assert (networks.slanted, rates.slanted) == (True, False)  # the names do not fit side by side


def test_report_names_the_network_of_each_model(html: str):
    text = text_of(html)
    assert re.search(r"3band red, green, blue unet 4 0.001 16", text)  # best configuration
    assert "terrain unet home" in text  # models


@pytest.mark.parametrize(
    ("scores", "top"), [([0.004], 0.01), ([0.031, 0.076], 0.1), ([0.2], 0.2), ([0.61], 0.8), ([1.0], 1), ([], 1)]
)
def test_axis_top_is_near_the_highest_score(scores: list[float], top: float) -> None:
    assert report.axis_top(scores) == top


def test_report_names_the_version_of_the_same_weights(project: Project) -> None:
    weights = Model.load(project.model("3band")).contract.origin.weights
    record = project.registration("3band")
    record.parent.mkdir(exist_ok=True)
    for stated, registered in ((weights, "unet-3band version 4 (champion)"), ("f" * 64, "")):
        record.write_text(json.dumps({"name": "unet-3band", "version": "4", "alias": "champion", "weights": stated}))
        assert BandSetResult.read(project, "3band").registered == registered
    record.write_text(json.dumps({"name": "unet-3band", "version": "4", "alias": "champion"}))  # of an earlier talud
    assert BandSetResult.read(project, "3band").registered == ""
    record.unlink()
    assert BandSetResult.read(project, "3band").registered == ""


def test_report_states_assumptions_and_provenance(project: Project, html: str):
    text, version = text_of(html), Model.load(project.model("3band")).contract.origin.data_version
    for words in (
        "16 × 16 pixels (200 m)",
        "32 × 32 pixels (0.4 km)",
        "4 poolings",
        "0.60 for 3band",
        "profile curvature",
    ):
        assert words in text
    assert "SAR processing" not in text  # no band set here reads it
    for words in (version[:12], "0123456789", "2014-12-20", "2015-05-18"):
        assert words in text


@pytest.mark.parametrize("slope", ["horn", "zevenbergen_thorne"])
def test_assumptions_name_the_derivatives_of_curvature(project: Project, slope: str) -> None:
    stack = project.params.stack.model_copy(update={"slope": slope})
    stated = assumptions(project.params.model_copy(update={"stack": stack}), [BandSetResult.read(project, "terrain")])
    choices = {one.choice: one.made for one in stated}
    assert choices["Slope"] == {"horn": "Horn’s derivatives"}.get(slope, "Zevenbergen and Thorne’s derivatives")
    assert choices["Curvature"].endswith("Zevenbergen and Thorne’s derivatives")


@pytest.mark.slow
def test_report_marks_synthetic_areas(project: Project, html: str):
    assert "Synthetic data. home and away were generated by a program." in text_of(html)
    page = report.ReportData.gather(project)
    real = report.render_report(replace(page, areas=[replace(area, synthetic=False) for area in page.areas]))
    assert "ynthetic" not in text_of(real)


@pytest.mark.slow
def test_report_is_reproducible(project: Project, html: str):
    report.write_report(project)
    assert project.report.read_text(encoding="utf-8") == html


def test_report_is_small_and_loads_nothing(html: str):
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", html)
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in html
    assert len(html) < 2_000_000


@pytest.mark.slow
def test_report_escapes_names(project: Project):
    page = report.ReportData.gather(project)
    hostile = replace(page, missing=["<script>alert(1)</script>"])
    assert "<script>alert(1)" not in report.render_report(hostile)


def test_viewer_pictures_match_the_rasters(project: Project):
    viewer = area_viewer(project, "away", ["3band"])
    with rasterio.open(project.confusion_map("3band", "away")) as raster:
        outcomes = raster.read(1)
    shown = picture(viewer.images["outcome-3band"])
    assert shown.shape == (*outcomes.shape, 4)
    for outcome in (PixelClass.TRUE_POSITIVE, PixelClass.FALSE_POSITIVE, PixelClass.FALSE_NEGATIVE):
        assert ((shown == PIXEL_CLASS_COLOURS[outcome]).all(axis=-1) == (outcomes == outcome)).all()
    assert (shown[outcomes == PixelClass.TRUE_NEGATIVE, 3] == 0).all()
    hatched = shown[outcomes == 255]
    assert (hatched[:, 3] == 255).all()
    assert len(np.unique(hatched[:, 0])) == 2
    with rasterio.open(project.stack("away")) as raster:
        clear = ~np.isfinite(raster.read([1, 2, 3])).all(axis=0)
    assert ((picture(viewer.images["base"])[..., 3] == 0) == clear).all()


def test_viewer_lists_landslides_by_size(project: Project):
    viewer = area_viewer(project, "away", ["3band"])
    with rasterio.open(project.mask("away")) as raster:
        truth = raster.read(1) == 1
    assert len(viewer.places) > 5
    sizes = [(right - left) * (bottom - top) for left, top, right, bottom in viewer.places]
    assert sizes == sorted(sizes, reverse=True)
    covered = np.zeros_like(truth)
    for left, top, right, bottom in viewer.places:
        covered[int(top) : int(bottom), int(left) : int(right)] = True
    assert covered[truth].all()
    assert viewer.outlines.count("M") >= len(viewer.places)


@pytest.mark.slow
def test_report_states_reduced_resolution(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("talud.evaluation.figures.MAX_PICTURE_SIDE_PIXELS", 96)
    page = report.ReportData.gather(project)
    assert (page.viewers[0].width, page.viewers[0].metres) == (96, 25.0)
    assert picture(page.viewers[0].images["outcome-3band"]).shape == (96, 96, 4)
    assert "Shown at 25.0 m per pixel; the files have 12.5 m." in text_of(report.render_report(page))


@pytest.mark.slow
def test_report_without_optical_bands_and_transfer_areas(small_project: Project):
    import yaml

    params = yaml.safe_load((small_project.root / "params.yaml").read_text())
    del params["areas"]["away"], params["band_sets"]["3band"]
    (small_project.root / "params.yaml").write_text(yaml.safe_dump(params))
    project = Project.find(small_project.root)
    evaluate(project, "terrain")
    text = text_of(report.write_report(project).read_text(encoding="utf-8"))
    assert "terrain reaches an F1 of" in text
    assert "there are no scores outside the training areas" in text
    assert "Table 4" not in text
    assert paper.INFERENCE_BASIN not in text


@pytest.mark.slow
def test_report_shows_unlabelled_areas_without_scores(small_project: Project):
    with rasterio.open(small_project.mask("away"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.write(np.full((1, mask.height, mask.width), 255, np.uint8))
    evaluate(small_project, "3band")
    page = report.ReportData.gather(small_project)
    text = text_of(report.render_report(page))
    assert "no inventory, so no scores" in text
    assert "Not shown because not evaluated yet: terrain." in text
    away = next(viewer for viewer in page.viewers if viewer.area == "away")
    assert [panel.title for panel in away.comparison] == ["Optical image"]
    assert [panel.title for panel in away.results["3band"]] == ["Probability", "Landslides"]


def test_write_report_refuses_a_project_without_scores(small_project: Project):
    with pytest.raises(StudyError, match="run talud evaluate BAND_SET first"):
        report.write_report(small_project)
    assert not small_project.report.exists()


def test_write_report_names_a_damaged_score_table(small_project: Project):
    evaluate(small_project, "3band")
    small_project.scores("3band").write_text('{"band_set": "3band"}')
    with pytest.raises(StudyError, match=r"3band\.scores\.json: damaged at 'threshold'"):
        report.write_report(small_project)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desktop", "phone"])
def page(request, browser: Browser, project: Project) -> Iterator[Page]:
    """Report in a browser."""
    with open_page(browser, project.report.as_uri(), request.param) as tab:
        tab.wait_for_selector(".viewer[data-ready]")
        yield tab


def pixels(page: Page, number: int) -> bytes:
    """Return the pixels of a canvas of the first viewer."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return base64.b64decode(
        page.locator(".viewer").first.locator("canvas").nth(number).evaluate("(c) => c.toDataURL()").partition(",")[2]
    )


def state(page: Page) -> tuple[float, float, float]:
    x, y, zoom = page.locator(".viewer").first.get_attribute("data-view").split()
    return float(x), float(y), float(zoom)


def test_report_fits_the_window_width(page: Page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_maps_zoom_and_pan_together_and_reset(page: Page):
    canvas = page.locator(".viewer canvas").first
    canvas.scroll_into_view_if_needed()
    before = [pixels(page, number) for number in (0, 2)]
    assert state(page) == (96, 96, 1)
    canvas.hover()
    page.mouse.wheel(0, -100)  # not clicked yet: the wheel scrolls the page
    assert state(page)[2] == 1
    canvas.scroll_into_view_if_needed()
    canvas.click()
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.wait_for_function("Number(document.querySelector('.viewer').dataset.view.split(' ')[2]) > 2")
    x, y, zoom = state(page)
    assert (x, y) == pytest.approx((96, 96), abs=2)
    box = canvas.bounding_box()
    centre = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*centre)
    page.mouse.down()
    page.mouse.move(centre[0] - 20, centre[1] - 10)
    page.mouse.up()
    moved = state(page)
    k = zoom * box["width"] / 192
    assert moved[0] - x == pytest.approx(20 / k, abs=0.5)
    assert moved[1] - y == pytest.approx(10 / k, abs=0.5)
    assert all(pixels(page, number) != image for number, image in zip((0, 2), before, strict=True))
    page.keyboard.press("0")
    assert state(page) == (96, 96, 1)
    assert [pixels(page, number) for number in (0, 2)] == before


def test_zoom_keeps_the_point_under_the_pointer(page: Page):
    canvas = page.locator(".viewer canvas").first
    canvas.click(position={"x": 40, "y": 60})
    box = canvas.bounding_box()

    def under_pointer() -> tuple[float, float]:
        x, y, zoom = state(page)
        k = zoom * box["width"] / 192
        return x + (40 - box["width"] / 2) / k, y + (60 - box["height"] / 2) / k

    before = under_pointer()
    page.mouse.wheel(0, -80)
    page.wait_for_function("Number(document.querySelector('.viewer').dataset.view.split(' ')[2]) > 1.2")
    assert under_pointer() == pytest.approx(before, abs=0.5)  # a screen pixel


@pytest.mark.slow
def test_viewer_works_with_buttons_and_keys(page: Page):
    viewer = page.locator(".viewer").first
    viewer.get_by_role("button", name="Zoom in").click()
    assert state(page)[2] == 1.5
    viewer.focus()
    page.keyboard.press("ArrowRight")
    assert state(page)[0] > 96
    page.keyboard.press("-")
    assert state(page) == (96, 96, 1)
    viewer.get_by_role("button", name="Next landslide").click()
    assert viewer.locator("output").text_content().startswith("1 of ")
    left, top, right, bottom = json.loads(viewer.get_attribute("data-places"))[0]
    x, y, zoom = state(page)
    half = 96 / zoom
    assert x - half <= left < right <= x + half
    assert y - half <= top < bottom <= y + half
    plain = pixels(page, 0)
    viewer.get_by_label("Inventory outlines").check()
    assert pixels(page, 0) != plain


def test_map_panel_can_be_enlarged(page: Page):
    viewer = page.locator(".viewer").first
    button = viewer.get_by_role("button", name="Enlarge Landslides 3band")
    canvas = viewer.get_by_role("img", name="Landslides of 3band")
    before = canvas.bounding_box()["width"]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert canvas.bounding_box()["width"] > 1.5 * before


@pytest.mark.parametrize("page", [(390, 844)], ids=["phone"], indirect=True)
def test_one_finger_scrolls_and_two_fingers_zoom(page: Page):
    canvas = page.locator(".viewer canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    assert canvas.evaluate("(c) => getComputedStyle(c).touchAction") == "pan-y"
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *apart: float) -> None:
        points = (
            [{"x": x + sign * apart[0], "y": y, "id": number} for number, sign in enumerate((-1, 1))] if apart else []
        )
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 20)
    for distance in (24, 30, 40):
        touch("touchMove", distance)
    touch("touchEnd")
    page.wait_for_function("Number(document.querySelector('.viewer').dataset.view.split(' ')[2]) > 1.5")
    assert state(page) == pytest.approx((96, 96, 2), rel=0.1)
    assert canvas.evaluate("(c) => getComputedStyle(c).touchAction") == "none"


def test_adapted_maps_stand_beside_the_others(project: Project, tmp_path: Path) -> None:
    """Show the map of one band set as adapted, and the reason of the other one."""
    import shutil

    import yaml

    root = tmp_path / "project"
    shutil.copytree(project.root, root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["areas"]["away"]["adapt"] = True
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    found = Project.find(root)
    shutil.copytree(found.prediction("3band", "away"), found.adapted_prediction("3band", "away"))
    record = found.adapted_prediction("3band", "away") / "prediction.json"
    stated = json.loads(record.read_text())
    record.write_text(json.dumps(stated | {"notices": ["The map calls 40% of the land a landslide"]}))
    table = json.loads(found.scores("3band").read_text())
    table["adapted"] = {"away": table["areas"]["away"] | {"tp": 4321, "f1": 0.777}}
    found.scores("3band").write_text(json.dumps(table))
    made = {"area": "away", "weights": "0" * 64}
    AdaptationRecord(**made, band_set="3band", adapted=True, chosen="bands aligned").write(
        found.adapted_prediction("3band", "away")
    )
    AdaptationRecord(**made, band_set="terrain", adapted=False, reason="none of the maps is plausible").write(
        found.adapted_prediction("terrain", "away")
    )
    text = text_of(report.render_report(report.ReportData.gather(found)))
    assert re.search(r"3band, adapted 4321 [\d ]+ 0\.\d{3} 0\.\d{3} 0\.\d{3} 0\.\d{3} –", text)
    assert "3band, away: bands aligned." in text
    assert "terrain, away: none of the maps is plausible." in text
    assert "3band, adapted precision" in text
    assert "The map calls 40% of the land a landslide." in text
