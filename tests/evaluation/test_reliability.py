"""Tests of the reliability of probabilities."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import rasterio
from PIL import Image

from talud.evaluation.figures import reliability_diagram
from talud.evaluation.results import Reliability
from talud.evaluation.scores import evaluate
from talud.metrics import CALIBRATION_BINS, ThresholdHistogram
from talud.project import Project

pytestmark = pytest.mark.slow  # the tests share a project with maps


def levels(probability: np.ndarray, truth: np.ndarray) -> ThresholdHistogram:
    """Return a histogram added up from three parts."""
    parts = zip(np.array_split(probability.astype(np.float32), 3), np.array_split(truth, 3), strict=True)
    return sum((ThresholdHistogram.of(*part) for part in parts), start=ThresholdHistogram())


def test_calibrated_probabilities_have_almost_no_error() -> None:
    generator = np.random.default_rng(1)
    probability = generator.beta(0.2, 2, 500_000)
    truth = (generator.random(500_000) < probability).astype(np.uint8)
    found = Reliability.of(levels(probability, truth))
    assert found.expected_calibration_error < 0.002
    for mean, share in found.points():
        assert share == pytest.approx(mean, abs=0.05)


def test_calibration_error_of_an_overconfident_model() -> None:
    """The model states 0.98 for a share of 0.6, and 0.01 for 0.05."""
    probability = np.repeat([0.98, 0.01], [2_000, 8_000])
    truth = np.concatenate([np.arange(2_000) % 5 < 3, np.arange(8_000) % 20 == 0]).astype(np.uint8)
    found = Reliability.of(levels(probability, truth))
    assert found.expected_calibration_error == pytest.approx(0.2 * 0.38 + 0.8 * 0.04, abs=1e-6)
    assert found.points() == [(pytest.approx(0.01), 0.05), (pytest.approx(0.98), 0.6)]


def test_calibration_errors_of_bins_do_not_cancel() -> None:
    """The mean probability is right, but no bin is."""
    probability, truth = np.repeat([0.2, 0.8], 100), np.repeat([1, 0], 100).astype(np.uint8)
    assert Reliability.of(levels(probability, truth)).expected_calibration_error == pytest.approx(0.8)


def test_reliability_of_no_pixels_is_empty() -> None:
    found = Reliability.of(ThresholdHistogram())
    assert (found.expected_calibration_error, found.points(), found.mean_probability) == (
        0,
        [],
        (None,) * CALIBRATION_BINS,
    )


def test_evaluate_writes_reliability_of_blocks_and_areas(small_project: Project) -> None:
    evaluate(small_project, "3band")
    written = json.loads(small_project.scores("3band").read_text())["reliability"]
    assert list(written) == ["test", "away"]
    with rasterio.open(small_project.prediction("3band", "away") / "probability.tif") as raster:
        probability = raster.read(1).astype(np.float64)
    with rasterio.open(small_project.mask("away")) as raster:
        truth = raster.read(1)
    counted = np.isfinite(probability) & (truth != 255)
    probability, truth = probability[counted], truth[counted]
    which = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    error = sum(
        abs(probability[which == each].sum() - (truth[which == each] == 1).sum()) for each in range(CALIBRATION_BINS)
    ) / len(truth)
    assert written["away"]["expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    assert sum(written["away"]["pixels"]) == len(truth)
    assert sum(written["away"]["landslide_pixels"]) == (truth == 1).sum()


def test_reliability_diagram_is_a_reproducible_png() -> None:
    generator = np.random.default_rng(2)
    probability = generator.random(20_000)
    places = {
        name: Reliability.of(levels(probability, (generator.random(20_000) < probability**power).astype(np.uint8)))
        for name, power in (("test", 1), ("away", 3))
    }
    kind, _, content = reliability_diagram(places).partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)
    for colour in ((0, 158, 115), (213, 94, 0)):  # both lines are drawn
        assert (np.abs(pixels - colour).max(axis=-1) < 20).sum() > 300
    assert reliability_diagram(places) == reliability_diagram(dict(places))
