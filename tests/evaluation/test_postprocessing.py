"""Tests of post-processing on drawn maps, and of its invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import label

from talud.confusion_map import apply_threshold
from talud.errors import ParamsError
from talud.evaluation.postprocessing import (
    WindowContext,
    hysteresis,
    minimum_mapping_unit,
    postprocess,
    segment_vote,
    segments,
    slope_rule,
)
from talud.params import Postprocessing

NAN = np.nan
LEVELS = [0.1, 0.3, 0.5, 0.7, 0.9]
probabilities = arrays.arrays(np.float32, (6, 7), elements=st.sampled_from([*LEVELS, NAN]))
classes = arrays.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 255]))


def image(*rows: str) -> np.ndarray:
    """Parse a drawn class map: # landslide, . background, ? not mapped."""
    return np.array([[{"#": 1, ".": 0, "?": 255}[one] for one in row] for row in rows], np.uint8)


def test_hysteresis_keeps_8_connected_weak_pixels():
    probability = np.array(
        [
            [0.9, 0.4, 0.1, 0.4, 0.4],
            [0.1, 0.1, 0.4, 0.1, 0.1],
            [0.1, 0.1, 0.1, 0.1, 0.4],
            [0.9, NAN, 0.4, 0.1, 0.1],
            [0.1, NAN, 0.1, 0.1, 0.1],
        ],
        np.float32,
    )
    expected = image("##.##", "..#..", ".....", "#?...", ".?...")
    np.testing.assert_array_equal(hysteresis(probability, 0.4, 0.9), expected)


@pytest.mark.slow
@given(probability=probabilities, low=st.sampled_from(LEVELS), high=st.sampled_from(LEVELS))
def test_hysteresis_keeps_weak_objects_with_a_strong_pixel(probability, low, high):
    low, high = sorted((low, high))
    found = hysteresis(probability, low, high)
    parts = label(apply_threshold(probability, low) == 1, connectivity=2)
    strong = apply_threshold(probability, high) == 1
    kept = [part for part in range(1, parts.max() + 1) if strong[parts == part].any()]
    np.testing.assert_array_equal(found == 1, np.isin(parts, kept))
    np.testing.assert_array_equal(found == 255, np.isnan(probability))
    np.testing.assert_array_equal(hysteresis(probability, low, low), apply_threshold(probability, low))


def test_hysteresis_refuses_swapped_thresholds():
    with pytest.raises(ParamsError, match=r"lower threshold 0\.7 is above the upper threshold 0\.5"):
        hysteresis(np.zeros((2, 2), np.float32), 0.7, 0.5)


@pytest.mark.parametrize(
    ("pixels", "kept"),
    [
        (2, image("#..##?", ".#...#", "#.....", "......", "....##")),
        (3, image("#..##?", ".#...#", "#.....", "......", "......")),
        (4, image(".....?", "......", "......", "......", "......")),
    ],
)
def test_minimum_mapping_unit_keeps_objects_of_its_area(pixels, kept):
    drawn = image("#..##?", ".#...#", "#.....", "......", "....##")  # two of three pixels, one of two
    np.testing.assert_array_equal(minimum_mapping_unit(drawn, pixels * 156.25, 156.25), kept)
    np.testing.assert_array_equal(minimum_mapping_unit(drawn, (pixels - 1) * 156.25 + 1, 156.25), kept)


@given(drawn=classes, area=st.integers(0, 12), more=st.integers(0, 12))
def test_minimum_mapping_unit_is_monotonic(drawn, area, more):
    kept, fewer = (minimum_mapping_unit(drawn, unit, 1) for unit in (area, area + more))
    assert ((fewer == 1) <= (kept == 1)).all()
    assert ((kept == 1) <= (drawn == 1)).all()
    np.testing.assert_array_equal(kept == 255, drawn == 255)
    sizes = np.bincount(label(kept == 1, connectivity=2).ravel())[1:]
    assert (sizes >= area).all()
    sizes_before = np.bincount(label(drawn == 1, connectivity=2).ravel())[1:]
    assert sorted(sizes) == sorted(size for size in sizes_before if size >= area)


def test_slope_rule_drops_objects_by_mean_slope():
    drawn = image("##..#?", "......", "##...#")
    slope = np.array([[0, 20, 0, 0, 9, 0], [0] * 6, [0, NAN, 0, 0, 0, NAN]], np.float32)
    np.testing.assert_array_equal(slope_rule(drawn, slope, 10), image("##...?", "......", ".....#"))
    np.testing.assert_array_equal(slope_rule(drawn, slope, 9), image("##..#?", "......", ".....#"))


def halves() -> np.ndarray:
    """Return two flat halves, (bands, 12, 12), in units far from 0 to 1."""
    picture = np.empty((3, 12, 12), np.float32)
    picture[:, :, :6], picture[:, :, 6:] = 40, 900
    return picture


@pytest.mark.parametrize(("method", "scale", "parts"), [("felzenszwalb", 20, 2), ("slic", 36, 4)])
def test_segments_separate_flat_regions(method, scale, parts):
    labels = segments(halves(), method, scale)
    assert len(np.unique(labels)) == parts
    assert not set(labels[:, :6].ravel()) & set(labels[:, 6:].ravel())


def test_segment_vote_blends_means_by_weight():
    labels = segments(halves(), "felzenszwalb", 20)
    probability = np.full((12, 12), 0.2, np.float32)
    probability[:9, 6:] = 0.8  # three quarters of the right half
    probability[0, 0] = NAN
    voted = segment_vote(probability, labels, 1)
    np.testing.assert_allclose(voted[:, 6:], 0.65, rtol=1e-6)
    np.testing.assert_allclose(voted[:, 1:6], 0.2, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(voted), np.isnan(probability))
    blended = segment_vote(probability, labels, 0.25)
    np.testing.assert_allclose(blended[:9, 6:], 0.75 * 0.8 + 0.25 * 0.65, rtol=1e-6)
    np.testing.assert_allclose(blended[9:, 6:], 0.75 * 0.2 + 0.25 * 0.65, rtol=1e-6)


@pytest.mark.parametrize(("method", "scale"), [("felzenszwalb", 20), ("slic", 36)])
def test_segments_ignore_units_and_invalid_pixels(method, scale):
    picture = np.random.default_rng(5).normal(size=(3, 24, 24)).astype(np.float32)
    picture[:, 4:9, 4:9] += 8
    picture[1, 15:, 15:] = NAN
    labels = segments(picture, method, scale)
    np.testing.assert_array_equal(labels == 0, np.isnan(picture).any(axis=0))
    np.testing.assert_array_equal(segments(picture * 256 - 1024, method, scale), labels)
    assert (segments(np.full_like(picture, NAN), method, scale) == 0).all()


def test_segment_vote_keeps_unlabelled_pixels():
    probability = np.array([[0.1, 0.9, 0.4]], np.float32)
    np.testing.assert_allclose(segment_vote(probability, np.array([[1, 1, 0]]), 1), [[0.5, 0.5, 0.4]], rtol=1e-6)


@given(probability=probabilities)
def test_postprocess_applies_only_the_threshold_by_default(probability):
    found = postprocess(probability, 0.5, Postprocessing(), WindowContext(156.25))
    np.testing.assert_array_equal(found, apply_threshold(probability, 0.5))


def test_postprocess_combines_all_methods():
    # Probabilities are 0.6 in the left half and 0.3 in the right half. The threshold maps the left half, hysteresis
    # adds the right half, and the slope rule or the minimum mapping unit drops the left half.
    probability = np.full((12, 12), 0.3, np.float32)
    probability[:, :6] = 0.6
    slope = np.full((12, 12), 30, np.float32)
    slope[:, :6] = 2
    ground = WindowContext(100, halves(), slope)
    votes = {"segments": "felzenszwalb", "segment_scale": 20}
    left = postprocess(probability, 0.5, Postprocessing(**votes), ground)
    assert (left[:, :6] == 1).all()
    assert not left[:, 6:].any()
    assert not postprocess(probability, 0.5, Postprocessing(**votes, slope_rule=10), ground).any()
    wide = Postprocessing(**votes, hysteresis_low=0.3, hysteresis_high=0.6 - 1e-6)
    assert (postprocess(probability, 0.5, wide, ground) == 1).all()
    unit = Postprocessing(**votes, minimum_mapping_unit=7_201)  # the half has 72 pixels of 100 m²
    assert not postprocess(probability, 0.5, unit, ground).any()


@pytest.mark.parametrize(
    ("options", "message"), [({"segments": "slic"}, "no optical band"), ({"slope_rule": 5}, "no band 'slope'")]
)
def test_postprocess_refuses_options_without_their_band(options, message):
    with pytest.raises(ParamsError, match=message):
        postprocess(np.zeros((2, 2), np.float32), 0.5, Postprocessing(**options), WindowContext(100))
