"""Tests of scores on an area, against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
from click.testing import Result
from sklearn.metrics import f1_score, jaccard_score, matthews_corrcoef, precision_score, recall_score
from typer.testing import CliRunner

from talud.cli.main import app
from talud.contract import FineTuning
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.errors import ParamsError, SourceError, StudyError
from talud.evaluation.comparison import compare_blocks
from talud.evaluation.scores import assess_area
from talud.files import md5
from talud.project import Project
from talud.training import export

pytestmark = pytest.mark.slow  # the tests share a project with maps

BIAS, THRESHOLD, BLOCK = -2.0, 0.6, 32
WEIGHTS = np.array([9.0, -4.0, 0.0])[:, np.newaxis, np.newaxis]
SCIKIT_LEARN = {
    "precision": precision_score,
    "recall": recall_score,
    "f1": f1_score,
    "iou": jaccard_score,
    "mcc": matthews_corrcoef,
}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def logistic(project: Project, area: str) -> np.ndarray:
    """Return the small model's probabilities by NumPy; NaN under clouds."""
    return 1 / (1 + np.exp(-((read(project.stack(area))[:3] * WEIGHTS).sum(axis=0) + BIAS)))


def talud(project: Project, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Result:
    monkeypatch.chdir(project.root)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def change_contract(project: Project, **changes: object) -> Model:
    path = project.model("3band")
    contract = Model.load(path).contract.replace(**changes)
    export.save_model(onnx.load(path), contract, path)
    return Model.load(path)


def test_transfer_area_scores_match_scikit_learn(small_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    result = talud(small_project, monkeypatch, "evaluate", "models/3band.onnx", "away", "--json")
    found = json.loads(result.stdout)
    truth, probability = read(small_project.mask("away"))[0], logistic(small_project, "away")
    counted = (truth != 255) & np.isfinite(probability)
    mapped = probability >= THRESHOLD
    for name, score in SCIKIT_LEARN.items():
        assert found[name] == pytest.approx(score(truth[counted], mapped[counted]), abs=1e-6)
        low, high = found["intervals"][name]
        assert low < found[name] < high
    hidden = (truth != 255) & ~counted
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == counted.sum()
    assert found["not_mapped_pixels"] == hidden.sum() > 1000
    assert found["not_mapped_landslide_pixels"] == (truth[hidden] == 1).sum()
    assert (found["source"], found["pixels"], found["blocks"]) == ("away", "the whole area", (192 // BLOCK) ** 2)
    assert (found["threshold"], found["notes"]) == (THRESHOLD, [])
    assert found["model"] == {"name": "3band", "version": "unregistered", "weights": "0" * 64, "network": "unet"}


def test_f1_interval_matches_an_independent_block_bootstrap(small_project: Project) -> None:
    """The reference draws blocks in a loop, with another generator."""
    truth, probability = read(small_project.mask("away"))[0], logistic(small_project, "away")
    known, mapped = (truth != 255) & np.isfinite(probability), probability >= THRESHOLD
    rows = []
    for row in range(0, 192, BLOCK):
        for column in range(0, 192, BLOCK):
            at = np.s_[row : row + BLOCK, column : column + BLOCK]
            t, m, k = truth[at] == 1, mapped[at], known[at]
            rows.append([(t & m & k).sum(), (~t & m & k).sum(), (t & ~m & k).sum()])
    rows = np.array(rows)
    random = np.random.RandomState(3)
    drawn = [rows[random.randint(0, len(rows), len(rows))].sum(axis=0) for _ in range(3000)]
    low, high = np.quantile([2 * tp / (2 * tp + fp + fn) for tp, fp, fn in drawn], [0.025, 0.975])
    found = assess_area(Model.load(small_project.model("3band")), small_project, "away").scores["f1"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.002)


def test_training_area_is_scored_on_its_test_blocks_only(
    small_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(small_project.model("3band"))
    found = assess_area(model, small_project, "home")
    (blocks_of_area,) = compare_blocks([model], small_project, ["home"], "test")
    assert found.assessment == blocks_of_area
    blocks = split_blocks(small_project.mask("home"), small_project.params.split, small_project.params.seed)
    assert found.assessment.windows == sum(block.part == "test" for block in blocks)
    stdout = talud(small_project, monkeypatch, "evaluate", "models/3band.onnx", "home").stdout
    assert f"home: the test blocks ({found.assessment.windows} blocks)" in stdout
    assert "note: the model was trained on home, so only the test blocks are scored" in stdout
    assert f"{found.scores['mcc'].estimate:.3f}" in stdout
    assert f"{found.scores['mcc'].low:.3f} to {found.scores['mcc'].high:.3f}" in stdout
    assert f"note: only {found.assessment.windows} blocks, so" in stdout


def test_assess_area_refuses_test_blocks_of_another_split(small_project: Project) -> None:
    changed = {**small_project.params.split_hyperparameters, "seed": 8}
    with pytest.raises(StudyError, match=r"was trained with seed 8, but params.yaml states 7"):
        assess_area(change_contract(small_project, hyperparameters=changed), small_project, "home")


def test_training_area_of_another_model_is_scored_completely(small_project: Project) -> None:
    found = assess_area(change_contract(small_project, areas=("elsewhere",)), small_project, "home")
    truth = read(small_project.mask("home"))[0]
    assert found.assessment.pixels == (truth != 255).sum()
    assert found.notes == ("home is a training area, but not of this model, so all of it is scored",)


def test_assess_area_leaves_out_fine_tuning_patches(small_project: Project) -> None:
    cells, side = ((0, 0), (40, 100)), 48  # the second cell overlaps four blocks
    made = FineTuning(
        **{"weights": "0" * 64, "model": "3band", "version": "1", "area": "away", "labels": "0" * 32, "patches": 2},
        **{"cells": cells, "side": side, "landslide_pixels": 1, "seed": 1, "steps": 1, "learning_rate": 1e-4},
        **{"recipe": "study", "rehearsed": (), "f1_before": None, "f1_after": None},
    )
    truth, probability = read(small_project.mask("away"))[0], logistic(small_project, "away")
    for row, column in cells:
        truth[row : row + side, column : column + side] = 255
    counted = (truth != 255) & np.isfinite(probability)
    found = assess_area(change_contract(small_project, finetuned=made), small_project, "away")
    expected = f1_score(truth[counted], probability[counted] >= THRESHOLD)
    assert found.scores["f1"].estimate == pytest.approx(expected, abs=1e-6)
    assert found.assessment.pixels - found.assessment.not_mapped == counted.sum()
    assert "which are left out" in found.notes[0]
    assert "have changed since" in found.notes[1]
    same = made.model_copy(update={"labels": md5(small_project.mask("away"))})
    again = assess_area(change_contract(small_project, finetuned=same), small_project, "away")
    assert (again.scores, again.notes) == (found.scores, found.notes[:1])
    elsewhere = assess_area(
        change_contract(small_project, finetuned=made.model_copy(update={"area": "home"})), small_project, "away"
    )
    assert elsewhere.assessment.pixels > found.assessment.pixels


def test_evaluate_reports_unusable_areas(small_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(small_project.model("3band"))
    with pytest.raises(ParamsError, match="no area 'nowhere'"):
        assess_area(model, small_project, "nowhere")
    with rasterio.open(small_project.mask("away"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.write(np.full((1, mask.height, mask.width), 255, np.uint8))
    with pytest.raises(StudyError, match="away: no pixel is both mapped and of known truth"):
        assess_area(model, small_project, "away")
    error = talud(small_project, monkeypatch, "evaluate", "models/3band.onnx", "nowhere").exception
    assert isinstance(error, SourceError)
    assert str(error).startswith("nowhere: is neither an area of params.yaml (home, away) nor a folder")
    usage = talud(small_project, monkeypatch, "evaluate", "models/3band.onnx", "away", "--bands", "red=1")
    assert usage.exit_code == 2
    assert talud(small_project, monkeypatch, "evaluate", "3band", "--json").exit_code == 2


def test_evaluate_without_source_scores_the_band_set(small_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    result = talud(small_project, monkeypatch, "evaluate", "3band")
    assert result.exit_code == 0
    written = json.loads(small_project.scores("3band").read_text())
    truth, probability = read(small_project.mask("away"))[0], logistic(small_project, "away")
    counted = (truth != 255) & np.isfinite(probability)
    expected = matthews_corrcoef(truth[counted], probability[counted] >= THRESHOLD)
    assert written["areas"]["away"]["mcc"] == pytest.approx(expected, abs=1e-6)
    assert f"{expected:.3f}" in result.stdout
