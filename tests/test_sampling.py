"""Tests of area estimates against the worked example of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from talud.metrics import DesignEffect, stratified_estimate


def test_area_estimate_agrees_with_the_worked_example() -> None:
    """Check Olofsson et al. 2014, Table 8 and section 5.2.

    They state 235,086 ± 68,418 pixels of 30 m, that is 21,158 ± 6,158 ha.
    """
    share = stratified_estimate((66, 0, 1, 2), (75, 75, 165, 325), (0.02, 0.015, 0.32, 0.645))
    assert share.estimate * 10_000_000 == pytest.approx(235_086, abs=1)
    assert (share.high - share.estimate) * 10_000_000 == pytest.approx(68_418, abs=3)
    assert share.estimate * 900_000 == pytest.approx(21_158, abs=1)
    assert (share.estimate - share.low) * 900_000 == pytest.approx(6_158, abs=1)


def test_blocks_of_one_pixel_have_no_design_effect() -> None:
    generator = np.random.default_rng(1)
    blocks = np.eye(4, dtype=np.int64)[generator.choice(4, 20_000, p=[0.05, 0.02, 0.03, 0.9])]
    design = DesignEffect.of(blocks)
    assert design.effects == pytest.approx((1, 1), abs=0.02)
    assert design.correlation == pytest.approx(0, abs=0.02)


def test_block_of_equal_pixels_counts_as_one_pixel() -> None:
    generator = np.random.default_rng(2)
    single = np.eye(4, dtype=np.int64)[generator.choice(4, 5_000, p=[0.2, 0.1, 0.1, 0.6])]
    assert DesignEffect.of(100 * single).effects == pytest.approx((100, 100), rel=0.05)


def blocks_of(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return random blocks (count, 4) of 4,096 pixels.

    Each block has its own landslide share and error rates. With more landslides, more are missed and fewer alarms are
    false, so the two shares are correlated.
    """
    landslide = generator.beta(0.6, 6, count)
    missed = np.clip(0.15 + 0.8 * landslide + generator.normal(0, 0.05, count), 0, 1)
    alarms = np.clip(generator.normal(0.03, 0.01, count), 0, 1)
    truth = np.round(4096 * landslide)
    fn, fp = np.round(truth * missed), np.round((4096 - truth) * alarms)
    return np.stack([truth - fn, fp, fn, 4096 - truth - fp], axis=1).astype(np.int64)


@pytest.mark.parametrize(("count", "least"), [(60, 0.93), (20, 0.90)])
def test_interval_contains_the_truth_in_95_of_100_cases(count: int, least: float) -> None:
    """Draw validation blocks from an area, and compare its share with their interval."""
    generator = np.random.default_rng(3)
    everything = blocks_of(generator, 200_000).sum(axis=0)
    weights = (0.1, 0.9)
    truth = 0.1 * everything[0] / everything[:2].sum() + 0.9 * everything[2] / everything[2:].sum()
    held, singly = [], []
    for _ in range(1000):
        sample = blocks_of(generator, count)
        tp, fp, fn, tn = sample.sum(axis=0)
        share = stratified_estimate((tp, fn), (tp + fp, fn + tn), weights, DesignEffect.of(sample), count - 1)
        held.append(share.low <= truth <= share.high)
        naive = stratified_estimate((tp, fn), (tp + fp, fn + tn), weights)
        singly.append(naive.low <= truth <= naive.high)
    assert least <= np.mean(held) <= 0.98
    assert np.mean(singly) < 0.5  # what it would be were pixels drawn one by one
