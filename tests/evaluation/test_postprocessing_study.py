"""Tests of the choice and the scores of post-processing methods."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import yaml
from scipy import ndimage
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from talud.cli.main import app
from talud.errors import ParamsError, StudyError
from talud.evaluation import postprocessing_study
from talud.evaluation.postprocessing import WindowContext
from talud.evaluation.postprocessing_study import (
    COMBINED,
    TEST_BLOCKS,
    THRESHOLD_ONLY,
    ChosenOptions,
    StudyWindow,
    choose_options,
    compare_methods,
    score_methods,
)
from talud.evaluation.scores import evaluate
from talud.params import Postprocessing
from talud.project import Project

pytestmark = pytest.mark.slow  # the tests share a project with maps


def speckled(seed: int, slope: bool = False) -> StudyWindow:
    """Make a window with a detected landslide and one-pixel false alarms.

    The landslide has 100 pixels of 100 m²; all have the same probability.
    """
    random = np.random.default_rng(seed)
    truth = np.zeros((40, 40), np.uint8)
    truth[15:25, 15:25] = 1
    probability = np.where(truth == 1, 0.9, 0.1).astype(np.float32)
    probability[random.integers(1, 12, 20), random.integers(1, 39, 20)] = 0.9
    tilt = np.where(truth == 1, 30, 1).astype(np.float32)
    return StudyWindow(probability, truth, WindowContext(100.0, None, tilt if slope else None))


def row(rows, method):
    return next(one for one in rows if one.method == method)


def test_choose_options_combines_methods_that_improve():
    views = [speckled(1), speckled(2)]
    chosen = choose_options(views, 0.5)
    assert set(chosen) == {THRESHOLD_ONLY, "hysteresis", "minimum mapping unit", COMBINED}
    unit = chosen["minimum mapping unit"]
    assert unit.options.minimum_mapping_unit == 250  # the mildest that drops all false alarms
    assert unit.validation_f1 == unit.validation_object_f1 == 1
    assert chosen[THRESHOLD_ONLY].validation_f1 < 0.95
    assert chosen[COMBINED].options == unit.options
    assert choose_options([speckled(1, slope=True)], 0.5)["slope rule"].options.slope_rule in (2, 5, 8, 10, 15, 20)


def on_the_map(truth: np.ndarray, mapped: np.ndarray) -> StudyWindow:
    return StudyWindow(np.where(mapped == 1, 0.9, 0.1).astype(np.float32), truth, WindowContext(100.0))


def test_choose_options_breaks_ties_by_object_f1():
    truth = np.zeros((80, 80), np.uint8)
    truth[:50, :80] = 1
    mapped = truth.copy()
    truth[60:65, 10:16] = 1  # 30 pixels, of which the map has 9
    mapped[60:63, 10:13] = 1
    mapped[60:62, 40:43] = 1  # a false alarm of 6
    choice = choose_options([on_the_map(truth, mapped)], 0.5)
    # 1,000 m² drops both: 9 true and 6 false pixels, one false alarm and no detected landslide.
    assert choice["minimum mapping unit"].options.minimum_mapping_unit == 1_000
    assert 0 < choice[THRESHOLD_ONLY].validation_f1 - choice["minimum mapping unit"].validation_f1 < 0.005


def test_choose_options_keeps_small_landslides():
    truth = np.zeros((60, 60), np.uint8)
    truth[:30, :40] = 1
    for place in range(10):  # ten landslides of six pixels beside a large one: 5 % of the pixels
        truth[40:42, 3 + 5 * place : 6 + 5 * place] = 1
    chosen = choose_options([on_the_map(truth, truth)], 0.5)
    assert chosen["minimum mapping unit"].options.minimum_mapping_unit == 250
    assert chosen[COMBINED].options == Postprocessing()


def test_score_methods_pairs_differences_by_block():
    views = [speckled(seed) for seed in range(3)]
    ways = {
        THRESHOLD_ONLY: ChosenOptions(options=Postprocessing(), validation_f1=0, validation_object_f1=0),
        "unit": ChosenOptions(
            options=Postprocessing(minimum_mapping_unit=500), validation_f1=0, validation_object_f1=0
        ),
        "slope": ChosenOptions(options=Postprocessing(slope_rule=5), validation_f1=0, validation_object_f1=0),
    }
    plain, unit = score_methods(views, 0.5, ways, block=16, resamples=200, seed=3)  # no slope, so no row for it
    truth = np.concatenate([view.truth.ravel() for view in views])
    mapped = np.concatenate([view.probability.ravel() >= 0.5 for view in views])
    before = f1_score(truth, mapped)
    assert (plain.scores.f1, unit.scores.f1) == (pytest.approx(before, abs=1e-6), 1)
    assert plain.difference is None
    assert unit.difference.blocks == 3 * 9
    assert unit.difference.estimate == pytest.approx(1 - before)
    assert unit.difference.low <= unit.difference.estimate <= unit.difference.high
    assert unit.objects.false_alarms == 0 < plain.objects.false_alarms
    assert unit.objects.detected == plain.objects.detected == 3


def test_threshold_scores_equal_those_of_evaluate(small_project: Project):
    table, usual = compare_methods(small_project, "3band"), evaluate(small_project, "3band")
    assert row(table.places["away"], THRESHOLD_ONLY).scores == usual.areas["away"].model_copy(update={"role": None})
    assert row(table.places[TEST_BLOCKS], THRESHOLD_ONLY).scores.assessment == usual.test_assessment
    assert list(table.places) == [TEST_BLOCKS, "away"]
    assert not table.left_out
    written = json.loads(small_project.postprocessing("3band").read_text())
    assert written == json.loads(table.model_dump_json())
    # All landslides of the other area, judged or not, as SciPy counts them.
    with rasterio.open(small_project.mask("away")) as mask:
        _, count = ndimage.label(mask.read(1) == 1, np.ones((3, 3)))
    for one in table.places["away"]:
        assert sum(each.landslides + each.not_mapped for each in one.objects.classes) == count
        assert one.scores.tp + one.scores.fp + one.scores.fn + one.scores.tn + one.scores.not_mapped_pixels == (
            192 * (192 - 7)
        )


def test_choice_is_independent_of_the_transfer_area(small_project: Project):
    before = compare_methods(small_project, "3band")
    with rasterio.open(small_project.mask("away"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        truth = mask.read(1)
        mask.write(np.where(truth == 255, 255, 1 - (truth == 1)).astype(np.uint8), 1)
    after = compare_methods(small_project, "3band")
    assert after.chosen == before.chosen
    assert after.places[TEST_BLOCKS] == before.places[TEST_BLOCKS]
    assert after.places["away"] != before.places["away"]


def test_patches_of_a_stack_are_processed_separately(small_project: Project, monkeypatch):
    monkeypatch.setattr(postprocessing_study, "CANDIDATES", {})
    whole = row(compare_methods(small_project, "3band").places["away"], THRESHOLD_ONLY)
    with rasterio.open(small_project.stack("away"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
        stack.update_tags(TALUD_PATCH="32")
    cells = row(compare_methods(small_project, "3band").places["away"], THRESHOLD_ONLY)
    assert cells.scores == whole.scores  # this model sees single pixels
    with rasterio.open(small_project.mask("away")) as mask:
        truth = mask.read(1) == 1
    corners = [(top, left) for top in range(0, 192, 32) for left in range(0, 192, 32)]
    count = sum(ndimage.label(truth[top : top + 32, left : left + 32], np.ones((3, 3)))[1] for top, left in corners)
    assert sum(each.landslides + each.not_mapped for each in cells.objects.classes) == count
    assert cells.objects.cut > whole.objects.cut


def configured(project: Project, **options) -> Project:
    path = project.root / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"postprocessing": options}))
    return Project.find(project.root)


def test_options_of_params_yaml_are_scored_too(small_project: Project, monkeypatch):
    monkeypatch.setattr(postprocessing_study, "CANDIDATES", {})
    table = compare_methods(configured(small_project, minimum_mapping_unit=1_000), "3band")
    ours = row(table.places["away"], "params.yaml")
    assert ours.scores.tp + ours.scores.fp < sum(
        (one.scores.tp + one.scores.fp) for one in table.places["away"] if one.method == THRESHOLD_ONLY
    )
    assert [one.method for one in table.places["away"]] == [THRESHOLD_ONLY, COMBINED, "params.yaml"]
    with pytest.raises(ParamsError, match=r"hysteresis_low is 0\.6 but must not exceed hysteresis_high, 0\.3"):
        configured(small_project, hysteresis_low=0.6, hysteresis_high=0.3)


def test_compare_methods_refuses_models_of_other_stacks(small_project: Project):
    small_project.stack_record("home").write_text(json.dumps({"stack_md5": "1" * 32, "mask_md5": "2" * 32}))
    with pytest.raises(StudyError, match="was trained on other stacks"):
        compare_methods(small_project, "3band")
    assert not small_project.postprocessing("3band").exists()


def test_postprocess_prints_tables_or_json(small_project: Project, monkeypatch):
    monkeypatch.chdir(small_project.root)
    monkeypatch.setattr(
        postprocessing_study, "CANDIDATES", {"slope rule": postprocessing_study.CANDIDATES["slope rule"]}
    )
    shown = CliRunner().invoke(app, ["postprocess", "3band"])
    assert shown.exit_code == 0, shown.output
    for text in (
        "parameters chosen on the validation",
        "slope rule",
        "test blocks: pixels",
        "away: landslides detected",
    ):
        assert text in shown.stdout
    result = CliRunner().invoke(app, ["postprocess", "3band", "--json"])
    assert json.loads(result.stdout) == json.loads(small_project.postprocessing("3band").read_text())
