"""Tests of labelled windows and their assessments."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from sklearn.metrics import confusion_matrix

from small_projects import SOMETHING, write_area, write_model, write_params
from talud.engine.runtime import Model
from talud.measurement.assessment import Assessment
from talud.measurement.sites import Site, assess, labelled_windows, mapped_windows, probability_histogram
from talud.metrics import ThresholdHistogram
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import open_raster

SIDE = 128


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = write_params(tmp_path_factory.mktemp("sites") / "project")
    rows, columns = np.indices((SIDE, SIDE))
    write_area(found, "basin", (rows // 9 + columns // 7) % 5 == 0)
    return found


@pytest.fixture(scope="module")
def site(project: Project) -> Site:
    return Site.of(project, "basin")


@pytest.fixture(scope="module")
def random_model(project: Project, tiny_model: Path) -> Model:
    return Model.load(write_model(project, tiny_model, SOMETHING, areas=("basin",)))


def truth_and_probability(site: Site, model: Model, windows: list[Window]) -> tuple[np.ndarray, np.ndarray]:
    """Read truth and probability of windows with rasterio, flattened."""
    with rasterio.open(site.stack) as stack, rasterio.open(site.mask) as mask:
        truth = [mask.read(1, window=window).ravel() for window in windows]
        probability = [model.probability(stack.read(window=window)).ravel() for window in windows]
    return np.concatenate(truth), np.concatenate(probability)


def test_labelled_windows_match_scikit_learn(site: Site, random_model: Model) -> None:
    windows = site.windows("validation")
    (found,) = assess(labelled_windows(site, windows, random_model), [SOMETHING])
    truth, probability = truth_and_probability(site, random_model, windows)
    tn, fp, fn, tp = confusion_matrix(truth, probability >= SOMETHING).ravel().tolist()
    counts = found.confusion
    assert (counts.tp, counts.fp, counts.fn, counts.tn) == (tp, fp, fn, tn)
    assert (len(found.blocks), found.windows, found.pixels) == (len(windows), len(windows), truth.size)
    expected = ThresholdHistogram.of(probability, truth)
    np.testing.assert_array_equal(found.histogram.landslide, expected.landslide)
    assert found.calibration_error == pytest.approx(expected.bins().calibration_error)


@pytest.mark.slow
def test_assessments_of_disjoint_windows_add_up(site: Site, random_model: Model) -> None:
    windows = site.windows(side=40)
    (whole,) = assess(labelled_windows(site, windows, random_model), [SOMETHING])
    parts = [assess(labelled_windows(site, [window], random_model), [SOMETHING])[0] for window in windows]
    assert reduce(add, parts) == whole
    np.testing.assert_array_equal(reduce(add, parts).histogram.background, whole.histogram.background)
    assert whole.block_counts.shape == (16, 4)
    assert whole.f1 == whole.confusion.f1
    assert Assessment() + whole == whole


def test_models_are_assessed_on_commonly_mapped_pixels(site: Site, random_model: Model) -> None:
    class Half:
        def probabilities(self, windows):
            for window in windows:
                values = np.full((window.height, window.width), 0.9, np.float32)
                values[::2] = np.nan
                yield values

    ours, theirs = assess(labelled_windows(site, site.windows(), random_model, Half()), [SOMETHING, 0.5])
    assert ours.confusion.pixels == theirs.confusion.pixels == SIDE * SIDE / 2
    assert ours.not_mapped == theirs.not_mapped == SIDE * SIDE / 2
    assert theirs.confusion.tp + theirs.confusion.fp == SIDE * SIDE / 2


@pytest.mark.slow
def test_mapped_windows_match_the_map_of_the_site(site: Site, random_model: Model, tmp_path: Path) -> None:
    predict(random_model, site.stack, tmp_path / "map")
    with open_raster(tmp_path / "map" / "probability.tif") as raster:
        expected = raster.read(1)
    for found in mapped_windows(site, site.windows(), random_model):
        np.testing.assert_array_equal(found.probabilities[0], expected[found.window.toslices()])
    alone = next(labelled_windows(site, site.windows(), random_model)).probabilities[0]
    assert (alone != expected[: alone.shape[0], : alone.shape[1]]).any()  # at its edges


def test_window_of_unknown_truth_is_not_a_block(site: Site, random_model: Model) -> None:
    first, second = labelled_windows(site, site.windows()[:2], random_model)
    unknown = replace(first, truth=np.full_like(first.truth, 255))
    (found,) = assess([unknown, second], [SOMETHING])
    assert (found.windows, len(found.blocks), found.pixels) == (1, 1, second.truth.size)
    assert probability_histogram([unknown]).landslide.sum() == 0
