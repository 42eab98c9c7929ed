"""Tests of counts of landslides and false alarms, on drawn masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from talud.evaluation.postprocessing import ObjectCounts, size_bounds


def drawn(*rows: str) -> np.ndarray:
    """Parse a drawn mask: # landslide, . background, ? 255."""
    return np.array([[{"#": 1, ".": 0, "?": 255}[one] for one in row] for row in rows], np.uint8)


def test_landslide_is_detected_from_half_of_its_mapped_pixels():
    truth = drawn(
        "##......#.",  # four pixels of 100 m², and one that touches another at a corner
        "##.......#",
        "..........",
        "####..####",  # four, and four
        "..........",
        "##########",  # ten
    )
    mapped = drawn(
        "##......#.",  # half of the four; half of the two
        "..........",
        "..........",
        "#.....#???",  # a quarter of the four; of the next four less than half is mapped
        "..........",
        "???###...#",  # four of seven mapped ones
    )
    tally = ObjectCounts.of(mapped, truth, 100.0)
    counts = [(each.title, each.landslides, each.detected, each.touched, each.not_mapped) for each in tally.classes]
    assert counts == [
        ("< 400 m²", 1, 1, 1, 0),
        ("400 to 1,000 m²", 2, 1, 2, 1),
        ("1,000 to 10,000 m²", 1, 1, 1, 0),
        ("10,000 to 100,000 m²", 0, 0, 0, 0),
        ("≥ 100,000 m²", 0, 0, 0, 0),
    ]
    assert (tally.landslides, tally.detected) == (4, 3)


def test_false_alarms_touch_no_landslide_on_known_ground():
    truth = drawn("###...", "......", "......", "...???", "......")
    mapped = drawn("..#...", "......", "#..#..", "...##.", ".....?")
    # One object touches the landslide, one is alone, and one has two of three pixels on unknown ground.
    tally = ObjectCounts.of(mapped, truth, 100.0)
    assert (tally.mapped, tally.false_alarms) == (2, 1)
    assert tally.square_metres == (30 - 3 - 1) * 100
    assert tally.false_alarms_per_km2 == pytest.approx(1 / (26 * 100 / 1e6))
    # Only a third of the landslide is mapped, so it is not detected.
    assert tally.f1 == 0


def test_object_f1_is_a_harmonic_mean():
    truth = drawn("#.#.#.#", ".......", ".......")
    mapped = drawn("#.#.#..", ".......", "#......")
    assert ObjectCounts.of(mapped, truth, 100.0).f1 == pytest.approx(2 * 0.75 * 0.75 / 1.5)
    assert ObjectCounts().f1 == ObjectCounts().false_alarms_per_km2 == 0


def test_landslides_at_window_edges_count_as_cut():
    truth = drawn("#...#", ".....", "..#..", "....#", "#####")
    assert ObjectCounts.of(truth, truth, 100.0).cut == 3


@pytest.mark.parametrize(("side", "first"), [(10.0, 400), (20.0, 1_000), (28.5, 1_000), (100.0, 100_000)])
def test_size_bounds_exceed_the_pixel_area(side, first):
    assert size_bounds(side**2)[0] == first


masks = arrays.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 255]))


@pytest.mark.slow
@given(mapped=masks, truth=masks, other=masks)
def test_object_counts_are_consistent_and_additive(mapped, truth, other):
    tally, again = ObjectCounts.of(mapped, truth, 150.0), ObjectCounts.of(other, truth, 150.0)
    for each in tally.classes:
        assert 0 <= each.detected <= each.touched <= each.landslides
    assert 0 <= tally.false_alarms <= tally.mapped
    both = tally + again
    assert both.detected == tally.detected + again.detected
    assert both.square_metres == tally.square_metres + again.square_metres
    assert ObjectCounts() + tally == tally == tally + ObjectCounts()
    perfect = ObjectCounts.of(np.where(truth == 1, 1, 0).astype(np.uint8), truth, 150.0)
    assert perfect.detected == perfect.landslides
    assert perfect.false_alarms == 0
