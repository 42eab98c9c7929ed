"""Post-processing on images small enough to work out by hand, and what must hold on any."""

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
    """A class map drawn by hand: # landslide, . background, ? not mapped."""
    return np.array([[{"#": 1, ".": 0, "?": 255}[one] for one in row] for row in rows], np.uint8)


def test_hysteresis_keeps_what_touches_a_sure_pixel_at_an_edge_or_a_corner_and_stops_where_nothing_is_mapped():
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
def test_hysteresis_is_each_part_of_the_lower_thresholds_map_that_reaches_the_upper_one(probability, low, high):
    low, high = sorted((low, high))
    found = hysteresis(probability, low, high)
    parts = label(apply_threshold(probability, low) == 1, connectivity=2)
    strong = apply_threshold(probability, high) == 1
    kept = [part for part in range(1, parts.max() + 1) if strong[parts == part].any()]
    np.testing.assert_array_equal(found == 1, np.isin(parts, kept))
    np.testing.assert_array_equal(found == 255, np.isnan(probability))
    np.testing.assert_array_equal(hysteresis(probability, low, low), apply_threshold(probability, low))


def test_thresholds_in_the_wrong_order_are_an_error():
    with pytest.raises(ParamsError, match=r"lower threshold is 0\.7, the upper one 0\.5"):
        hysteresis(np.zeros((2, 2), np.float32), 0.7, 0.5)


@pytest.mark.parametrize(
    ("pixels", "kept"),
    [
        (2, image("#..##?", ".#...#", "#.....", "......", "....##")),
        (3, image("#..##?", ".#...#", "#.....", "......", "......")),
        (4, image(".....?", "......", "......", "......", "......")),
    ],
)
def test_the_unit_keeps_the_objects_of_at_least_its_area(pixels, kept):
    drawn = image("#..##?", ".#...#", "#.....", "......", "....##")  # two of three pixels, one of two
    np.testing.assert_array_equal(minimum_mapping_unit(drawn, pixels * 156.25, 156.25), kept)
    np.testing.assert_array_equal(minimum_mapping_unit(drawn, (pixels - 1) * 156.25 + 1, 156.25), kept)


@given(drawn=classes, area=st.integers(0, 12), more=st.integers(0, 12))
def test_a_larger_unit_keeps_no_more_and_none_is_smaller(drawn, area, more):
    kept, fewer = (minimum_mapping_unit(drawn, unit, 1) for unit in (area, area + more))
    assert ((fewer == 1) <= (kept == 1)).all()
    assert ((kept == 1) <= (drawn == 1)).all()
    np.testing.assert_array_equal(kept == 255, drawn == 255)
    sizes = np.bincount(label(kept == 1, connectivity=2).ravel())[1:]
    assert (sizes >= area).all()
    sizes_before = np.bincount(label(drawn == 1, connectivity=2).ravel())[1:]
    assert sorted(sizes) == sorted(size for size in sizes_before if size >= area)


def test_the_slope_rule_drops_objects_by_their_mean_and_spares_those_of_unknown_slope():
    drawn = image("##..#?", "......", "##...#")
    slope = np.array([[0, 20, 0, 0, 9, 0], [0] * 6, [0, NAN, 0, 0, 0, NAN]], np.float32)
    np.testing.assert_array_equal(slope_rule(drawn, slope, 10), image("##...?", "......", ".....#"))
    np.testing.assert_array_equal(slope_rule(drawn, slope, 9), image("##..#?", "......", ".....#"))


def halves() -> np.ndarray:
    """Two flat halves of another colour, (bands, 12, 12), in units that have nothing to do with 0 to 1."""
    picture = np.empty((3, 12, 12), np.float32)
    picture[:, :, :6], picture[:, :, 6:] = 40, 900
    return picture


@pytest.mark.parametrize(("method", "scale", "parts"), [("felzenszwalb", 20, 2), ("slic", 36, 4)])
def test_no_segment_joins_two_flat_halves(method, scale, parts):
    labels = segments(halves(), method, scale)
    assert len(np.unique(labels)) == parts
    assert not set(labels[:, :6].ravel()) & set(labels[:, 6:].ravel())


def test_each_segment_has_one_vote_which_its_weight_blends_with_the_pixels():
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
def test_segments_do_not_depend_on_the_unit_and_leave_out_what_is_invalid(method, scale):
    picture = np.random.default_rng(5).normal(size=(3, 24, 24)).astype(np.float32)
    picture[:, 4:9, 4:9] += 8
    picture[1, 15:, 15:] = NAN
    labels = segments(picture, method, scale)
    np.testing.assert_array_equal(labels == 0, np.isnan(picture).any(axis=0))
    np.testing.assert_array_equal(segments(picture * 256 - 1024, method, scale), labels)
    assert (segments(np.full_like(picture, NAN), method, scale) == 0).all()


def test_under_cloud_a_pixel_keeps_its_own_probability():
    probability = np.array([[0.1, 0.9, 0.4]], np.float32)
    np.testing.assert_allclose(segment_vote(probability, np.array([[1, 1, 0]]), 1), [[0.5, 0.5, 0.4]], rtol=1e-6)


@given(probability=probabilities)
def test_by_default_only_the_threshold_counts(probability):
    found = postprocess(probability, 0.5, Postprocessing(), WindowContext(156.25))
    np.testing.assert_array_equal(found, apply_threshold(probability, 0.5))


def test_all_of_it_together_on_a_drawn_map():
    # The vote lifts the left half to 0.6 and leaves the right one at 0.3, where one sure pixel draws its neighbours in
    # by hysteresis; the slope rule takes the left half, and the unit a single pixel.
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
    ("options", "said"), [({"segments": "slic"}, "no optical band"), ({"slope_rule": 5}, "no band 'slope'")]
)
def test_an_option_whose_band_is_missing_is_an_error(options, said):
    with pytest.raises(ParamsError, match=said):
        postprocess(np.zeros((2, 2), np.float32), 0.5, Postprocessing(**options), WindowContext(100))
