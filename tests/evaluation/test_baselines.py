"""Tests of the random forest baseline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from sklearn.metrics import f1_score, matthews_corrcoef
from typer.testing import CliRunner

from talud.cli.main import app
from talud.data.patches import split_blocks
from talud.errors import ParamsError, StudyError
from talud.evaluation import baselines
from talud.project import Project

pytestmark = pytest.mark.slow  # its tests share a project with maps

THRESHOLDS = np.arange(1, 100) / 100


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TREES", 20)
    monkeypatch.setattr(baselines, "PIXELS_PER_CLASS", 500)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def inside(project: Project, part: str) -> np.ndarray:
    """Return a mask of the blocks of a part in the training area."""
    found = np.zeros((192, 192), dtype=bool)
    for block in split_blocks(project.mask("home"), project.params.split, project.params.seed):
        if block.part == part:
            found[block.window.toslices()] = True
    return found


def probability(forest: baselines.Forest, project: Project, area: str) -> np.ndarray:
    """Return the probability of each pixel, NaN under clouds."""
    pixels = read(project.stack(area))[:3]
    valid = np.isfinite(pixels).all(axis=0)
    found = np.full(valid.shape, np.nan, np.float32)
    found[valid] = forest.classifier.predict_proba(pixels[:, valid].T)[:, 1]
    return found


def corrupt(project: Project, area: str, where: np.ndarray) -> None:
    """Invert the truth in a mask where it is known."""
    with rasterio.open(project.mask(area), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        truth = mask.read(1)
        mask.write(np.where(where & (truth != 255), 1 - truth, truth).astype(np.uint8), 1)


def test_forest_scores_match_scikit_learn(small_project: Project) -> None:
    forest = baselines.fit_forest(small_project, "3band")
    home, away = baselines.assess_forest(small_project, "3band")
    assert (home.source, home.pixels, away.source, away.pixels) == ("home", "the test blocks", "away", "the whole area")
    for found, where in ((home, inside(small_project, "test")), (away, np.ones((192, 192), dtype=bool))):
        truth, levels = read(small_project.mask(found.source))[0], probability(forest, small_project, found.source)
        counted = where & (truth != 255) & np.isfinite(levels)
        mapped = levels >= np.float32(forest.threshold)
        assert found.assessment.not_mapped == (where & (truth != 255) & ~counted).sum() > 0
        scores = {name: score.estimate for name, score in found.scores.items()}
        assert scores["f1"] == pytest.approx(f1_score(truth[counted], mapped[counted]), abs=1e-9)
        assert scores["mcc"] == pytest.approx(matthews_corrcoef(truth[counted], mapped[counted]), abs=1e-9)
        assert scores["f1"] > 0.5  # 0.13 if all pixels are landslide


def test_forest_threshold_is_optimal_on_validation_blocks(small_project: Project) -> None:
    forest = baselines.fit_forest(small_project, "3band")
    truth, levels = read(small_project.mask("home"))[0], probability(forest, small_project, "home")
    counted = inside(small_project, "validation") & (truth != 255) & np.isfinite(levels)
    f1 = [f1_score(truth[counted], levels[counted] >= np.float32(threshold)) for threshold in THRESHOLDS]
    good = THRESHOLDS[np.array(f1) >= max(f1) - 0.005 - 1e-12]
    assert forest.threshold == good[np.argmin(np.abs(good - 0.5))]
    assert forest.threshold > 0.5  # a balanced sample overestimates probabilities


def test_forest_does_not_use_truth_of_test_blocks_or_other_areas(small_project: Project) -> None:
    forest = baselines.fit_forest(small_project, "3band")
    before, _ = baselines.assess_forest(small_project, "3band")
    levels = probability(forest, small_project, "home")
    blocks = small_project.params.split, small_project.params.seed
    dealt = split_blocks(small_project.mask("home"), *blocks)
    corrupt(small_project, "away", np.ones((192, 192), dtype=bool))
    again = baselines.fit_forest(small_project, "3band")
    np.testing.assert_array_equal(probability(again, small_project, "home"), levels)
    assert again.threshold == forest.threshold
    with pytest.MonkeyPatch.context() as patch:  # the split depends on the truth, so it must be kept
        patch.setattr("talud.measurement.sites.split_blocks", lambda *_: dealt)
        corrupt(small_project, "home", inside(small_project, "test"))
        again = baselines.fit_forest(small_project, "3band")
        np.testing.assert_array_equal(probability(again, small_project, "home"), levels)
        after, _ = baselines.assess_forest(small_project, "3band")
    assert after.assessment.confusion.tp == before.assessment.confusion.fp


def test_sample_is_balanced_and_uniform() -> None:
    """Sample from 3,000 numbered landslide pixels and 700 others, some invalid."""
    numbers = np.arange(4000, dtype=np.float32)
    truth = np.where(numbers < 3000, 1, 0).astype(np.uint8)
    truth[::10], values = 255, np.stack([numbers, numbers])
    values[1, 5::10] = np.nan
    views = [(values[:, None, at : at + 400], truth[None, at : at + 400]) for at in range(0, 4000, 400)]
    drawn = []
    for seed in range(40):
        pixels, landslide = baselines._sample_balanced(views, 2, seed)
        assert landslide.sum() == (~landslide).sum() == 500
        assert len(set(pixels[:, 0].tolist())) == 1000
        assert not np.isnan(pixels).any()
        assert not (pixels[:, 0] % 10 == 0).any()
        np.testing.assert_array_equal(landslide, pixels[:, 0] < 3000)
        drawn.append(pixels[landslide, 0])
    share = np.histogram(np.concatenate(drawn), bins=10, range=(0, 3000))[0] / (40 * 500)
    np.testing.assert_allclose(share, 0.1, atol=0.01)  # four standard deviations
    few, classes = baselines._sample_balanced(views[7:8], 2, 1)  # 160 landslide, 160 others
    assert (len(few), classes.sum()) == (320, 160)


def test_baseline_command_prints_a_reproducible_forest(small_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small_project.root)
    printed = CliRunner().invoke(app, ["baseline", "3band", "--method", "random-forest", "--json"]).stdout
    found = json.loads(printed)
    assert printed == CliRunner().invoke(app, ["baseline", "3band", "--method", "random-forest", "--json"]).stdout
    assert [one["source"] for one in found] == ["home", "away"]
    assert found[0]["model"] == {"name": "random forest", "version": "", "weights": "", "network": ""}
    table = CliRunner().invoke(app, ["baseline", "3band", "--method", "random-forest"]).stdout
    assert f"random forest, 3band, threshold {found[0]['threshold']:.2f}" in table
    assert all(f"{one['f1']:.3f}" in table for one in found)


def test_forest_reports_missing_bands(small_project: Project) -> None:
    with pytest.raises(ParamsError, match="no band set '4band'"):
        baselines.assess_forest(small_project, "4band")
    with rasterio.open(small_project.stack("home"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as stack:
        stack.set_band_description(2, "nir")
    with pytest.raises(StudyError, match=r"home.tif: has no band green; it holds red, nir, blue, slope, curvature"):
        baselines.assess_forest(small_project, "3band")
