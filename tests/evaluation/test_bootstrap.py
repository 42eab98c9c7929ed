"""The block bootstrap against what is known of it: closed forms, and how often its interval holds the truth."""

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


def test_identical_maps_differ_by_nothing() -> None:
    ours = np.random.default_rng(0).integers(0, 1000, (30, 4))
    found = f1_difference(ours, ours, 500, 1)
    assert (found.estimate, found.low, found.high, found.blocks, found.resamples) == (0, 0, 0, 30, 500)
    assert not found.worse
    assert not found.better


def test_two_blocks_give_the_three_values_that_they_can() -> None:
    """Draws of two blocks are (a, a), (a, b) or (b, b), with chances of 1/4, 1/2, 1/4: the quantiles are the ends."""
    ours, theirs = counts((10, 0, 0, 0), (0, 0, 10, 0)), counts((5, 5, 5, 0), (0, 0, 10, 0))
    found = f1_difference(ours, theirs, 2000, 3)
    assert (found.low, found.high) == (0, 0.5)  # (b, b): 0 − 0; (a, a): 1 − 10/20
    assert found.estimate == pytest.approx(20 / 30 - 10 / 30)


@pytest.mark.slow
def test_draws_of_the_mean_have_the_bootstraps_variance() -> None:
    """With TP + FN = FP + TP in every block F1 is a mean over blocks: the bootstrap's variance is theirs over n."""
    hits = np.random.default_rng(4).integers(0, 101, 400)
    ours = np.stack([hits, 100 - hits, 100 - hits, np.zeros_like(hits)], axis=1)
    theirs = np.tile(counts((0, 100, 100, 0)), (400, 1))
    found = f1_difference(ours, theirs, 20_000, 5)
    half = 1.959964 * (hits / 100).std() / math.sqrt(400)
    assert found.estimate == pytest.approx(hits.mean() / 100)
    assert (found.low, found.high) == pytest.approx((found.estimate - half, found.estimate + half), abs=1e-3)


BLOCKS, PIXELS, STUDIES = 60, 200, 400


def study(random: np.random.Generator, blocks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The counts of two maps. Blocks err together: each has a rate of its own, so that pixels are no witnesses."""
    slides = random.binomial(PIXELS, random.beta(1, 4, blocks))
    both = []
    for skill in (6, 5):
        found = random.binomial(slides, random.beta(skill, 3, blocks))
        alarms = random.binomial(PIXELS - slides, random.beta(1, 30, blocks))
        both.append(np.stack([found, alarms, slides - found, PIXELS - slides - alarms], axis=1))
    return both[0], both[1]


@pytest.mark.slow
def test_the_interval_holds_the_true_difference_in_about_95_of_100_studies() -> None:
    """A bootstrap of pixels would hold the truth far more rarely."""
    random = np.random.default_rng(6)
    ours, theirs = (scores(counts.sum(axis=0))[SCORES.index("f1")] for counts in study(random, 2_000_000))
    intervals = [f1_difference(*study(random, BLOCKS), 500, seed) for seed in range(STUDIES)]
    held = np.mean([found.low <= ours - theirs <= found.high for found in intervals])
    assert 0.91 <= held <= 0.98  # 0.95 and its error of 0.011; percentile intervals of 60 blocks hold a little less


@pytest.mark.slow
def test_the_interval_of_each_score_holds_the_true_one_in_about_95_of_100_studies() -> None:
    random = np.random.default_rng(7)
    truth = dict(zip(SCORES, scores(study(random, 2_000_000)[0].sum(axis=0)), strict=True))
    found = [score_intervals(study(random, BLOCKS)[0], 500, seed) for seed in range(STUDIES)]
    for name in SCORES:
        held = np.mean([one[name].low <= truth[name] <= one[name].high for one in found])
        assert 0.9 <= held <= 0.98, name  # 0.91 to 0.93 here


@pytest.mark.slow
def test_the_interval_of_a_proportion_is_the_binomial_one() -> None:
    """Blocks of one pixel are independent: precision and recall are then proportions, whose deviation is known."""
    random = np.random.default_rng(8)
    truth, mapped = random.random((2, 3000)) < 0.4
    counts = np.stack([truth & mapped, ~truth & mapped, truth & ~mapped, ~truth & ~mapped], axis=1).astype(np.int64)
    found = score_intervals(counts, 20_000, 9)
    for name, pixels in (("precision", int(mapped.sum())), ("recall", int(truth.sum()))):
        share = found[name].estimate
        half = 1.959964 * math.sqrt(share * (1 - share) / pixels)
        assert (found[name].low, found[name].high) == pytest.approx((share - half, share + half), abs=2e-3)


def test_a_perfect_map_has_no_spread_and_an_empty_one_no_score() -> None:
    blocks = np.random.default_rng(0).integers(1, 9, (25, 1))
    perfect = score_intervals(blocks * [1, 0, 0, 1], 200, 1)
    assert {(found.estimate, found.low, found.high) for found in perfect.values()} == {(1, 1, 1)}
    empty = score_intervals(blocks * [0, 0, 1, 1], 200, 1)
    assert {(found.estimate, found.low, found.high) for found in empty.values()} == {(0, 0, 0)}


@pytest.mark.parametrize("blocks", [0, 1])
def test_fewer_than_two_blocks_say_nothing_of_a_score(blocks: int) -> None:
    found = score_intervals(counts((9, 1, 1, 9))[:blocks], 100, 1)
    assert (found["f1"].low, found["f1"].high, found["mcc"].low, found["mcc"].high) == (0, 1, -1, 1)
    assert found["f1"].estimate == (0.9 if blocks else 0)
    assert found["f1"].blocks == blocks


@given(st.integers(2, 40), st.integers(0, 2**32))
def test_exchanging_the_maps_turns_the_interval_round(blocks: int, seed: int) -> None:
    ours, theirs = np.random.default_rng(seed).integers(0, 50, (2, blocks, 4))
    there, back = f1_difference(ours, theirs, 200, seed), f1_difference(theirs, ours, 200, seed)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there == f1_difference(ours, theirs, 200, seed)


@pytest.mark.parametrize("blocks", [0, 1])
def test_fewer_than_two_blocks_say_nothing(blocks: int) -> None:
    found = f1_difference(counts((9, 0, 0, 0))[:blocks], counts((0, 0, 9, 0))[:blocks], 100, 1)
    assert (found.low, found.high, found.blocks) == (-1, 1, blocks)
    assert not found.better


def test_few_blocks_are_said_to_be_few() -> None:
    ours = np.random.default_rng(0).integers(1, 9, (25, 4))
    assert "over 19 blocks, few" in str(f1_difference(ours[:19], ours[:19], 100, 1))
    assert "few" not in str(f1_difference(ours, ours, 100, 1))


def test_many_blocks_are_drawn_in_parts_without_another_result() -> None:
    from talud.evaluation import bootstrap

    ours, theirs = np.random.default_rng(0).integers(0, 50, (2, 40, 4))
    whole = f1_difference(ours, theirs, 300, 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_MAX_DRAWS_IN_MEMORY", 40 * 7)
        assert f1_difference(ours, theirs, 300, 9) == whole
