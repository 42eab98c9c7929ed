"""Tests of the block bootstrap against closed forms and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from talud.evaluation.bootstrap import f1_difference, score_intervals
from talud.metrics import SCORES, scores


def counts(*rows: tuple[int, int, int, int]) -> NDArray[np.int64]:
    return np.array(rows, np.int64)


def test_f1_difference_of_identical_maps_is_zero() -> None:
    ours = np.random.default_rng(0).integers(0, 1000, (30, 4))
    found = f1_difference(ours, ours, 500, 1)
    assert (found.estimate, found.low, found.high, found.blocks, found.resamples) == (0, 0, 0, 30, 500)
    assert not found.worse
    assert not found.better


def test_interval_of_two_blocks_spans_the_possible_values() -> None:
    """Draws are (a, a), (a, b) or (b, b); the quantiles are the extremes."""
    ours, theirs = counts((10, 0, 0, 0), (0, 0, 10, 0)), counts((5, 5, 5, 0), (0, 0, 10, 0))
    found = f1_difference(ours, theirs, 2000, 3)
    assert (found.low, found.high) == (0, 0.5)  # (b, b): 0 − 0; (a, a): 1 − 10/20
    assert found.estimate == pytest.approx(20 / 30 - 10 / 30)


@pytest.mark.slow
def test_interval_of_a_mean_matches_its_standard_error() -> None:
    """F1 is a mean over blocks here, because FN = FP in every block.

    Its variance is that of the blocks divided by their number.
    """
    hits = np.random.default_rng(4).integers(0, 101, 400)
    ours = np.stack([hits, 100 - hits, 100 - hits, np.zeros_like(hits)], axis=1)
    theirs = np.tile(counts((0, 100, 100, 0)), (400, 1))
    found = f1_difference(ours, theirs, 20_000, 5)
    half = 1.959964 * (hits / 100).std() / math.sqrt(400)
    assert found.estimate == pytest.approx(hits.mean() / 100)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=1e-3)


BLOCKS, PIXELS, STUDIES = 60, 200, 400


def study(random: np.random.Generator, blocks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Simulate the block counts of two maps.

    Each block has its own error rates, so that the errors of its pixels are correlated.
    """
    slides = random.binomial(PIXELS, random.beta(1, 4, blocks))
    both = []
    for skill in (6, 5):
        found = random.binomial(slides, random.beta(skill, 3, blocks))
        alarms = random.binomial(PIXELS - slides, random.beta(1, 30, blocks))
        both.append(np.stack([found, alarms, slides - found, PIXELS - slides - alarms], axis=1))
    return both[0], both[1]


@pytest.mark.slow
def test_difference_interval_covers_the_truth_in_95_percent() -> None:
    """A bootstrap of pixels would cover the truth far less often."""
    random = np.random.default_rng(6)
    ours, theirs = (scores(counts.sum(axis=0))[SCORES.index("f1")] for counts in study(random, 2_000_000))
    intervals = [f1_difference(*study(random, BLOCKS), 500, seed) for seed in range(STUDIES)]
    held = np.mean([found.low <= ours - theirs <= found.high for found in intervals])
    assert 0.91 <= held <= 0.98  # 0.95 ± 0.011; percentile intervals of 60 blocks cover a little less


@pytest.mark.slow
def test_score_intervals_cover_the_truth_in_95_percent() -> None:
    random = np.random.default_rng(7)
    truth = dict(zip(SCORES, scores(study(random, 2_000_000)[0].sum(axis=0)), strict=True))
    found = [score_intervals(study(random, BLOCKS)[0], 500, seed) for seed in range(STUDIES)]
    for name in SCORES:
        held = np.mean([one[name].low <= truth[name] <= one[name].high for one in found])
        assert 0.9 <= held <= 0.98, name  # 0.91 to 0.93 here


@pytest.mark.slow
def test_interval_of_a_proportion_is_binomial() -> None:
    """With blocks of one pixel, precision and recall are proportions."""
    random = np.random.default_rng(8)
    truth, mapped = random.random((2, 3000)) < 0.4
    counts = np.stack([truth & mapped, ~truth & mapped, truth & ~mapped, ~truth & ~mapped], axis=1).astype(np.int64)
    found = score_intervals(counts, 20_000, 9)
    for name, pixels in (("precision", int(mapped.sum())), ("recall", int(truth.sum()))):
        share = found[name].estimate
        half = 1.959964 * math.sqrt(share * (1 - share) / pixels)
        assert (found[name].low, found[name].high) == pytest.approx((share - half, share + half), abs=2e-3)


def test_intervals_of_perfect_and_empty_maps_have_no_width() -> None:
    blocks = np.random.default_rng(0).integers(1, 9, (25, 1))
    perfect = score_intervals(blocks * [1, 0, 0, 1], 200, 1)
    assert {(found.estimate, found.low, found.high) for found in perfect.values()} == {(1, 1, 1)}
    empty = score_intervals(blocks * [0, 0, 1, 1], 200, 1)
    assert {(found.estimate, found.low, found.high) for found in empty.values()} == {(0, 0, 0)}


@pytest.mark.parametrize("blocks", [0, 1])
def test_score_interval_of_one_block_is_the_full_range(blocks: int) -> None:
    found = score_intervals(counts((9, 1, 1, 9))[:blocks], 100, 1)
    assert (found["f1"].low, found["f1"].high, found["mcc"].low, found["mcc"].high) == (0, 1, -1, 1)
    assert found["f1"].estimate == (0.9 if blocks else 0)
    assert found["f1"].blocks == blocks


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_swapping_maps_negates_the_interval(blocks: int, seed: int) -> None:
    ours, theirs = np.random.default_rng(seed).integers(0, 50, (2, blocks, 4))
    there, back = f1_difference(ours, theirs, 200, seed), f1_difference(theirs, ours, 200, seed)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there == f1_difference(ours, theirs, 200, seed)


@pytest.mark.parametrize("blocks", [0, 1])
def test_difference_interval_of_one_block_is_the_full_range(blocks: int) -> None:
    found = f1_difference(counts((9, 0, 0, 0))[:blocks], counts((0, 0, 9, 0))[:blocks], 100, 1)
    assert (found.low, found.high, found.blocks) == (-1, 1, blocks)
    assert not found.better


def test_difference_text_warns_of_few_blocks() -> None:
    ours = np.random.default_rng(0).integers(1, 9, (25, 4))
    assert "over 19 blocks; with so few" in str(f1_difference(ours[:19], ours[:19], 100, 1))
    assert "few" not in str(f1_difference(ours, ours, 100, 1))


def test_drawing_in_chunks_does_not_change_the_interval() -> None:
    from talud.evaluation import bootstrap

    ours, theirs = np.random.default_rng(0).integers(0, 50, (2, 40, 4))
    whole = f1_difference(ours, theirs, 300, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_MAX_DRAWS_IN_MEMORY", 40 * 7)
        assert f1_difference(ours, theirs, 300, 9) == whole
