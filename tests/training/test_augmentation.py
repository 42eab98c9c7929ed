"""Tests of the augmentation of training patches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from talud.data.patches import Patches
from talud.params import Augmentation
from talud.training.batches import Augmenter

BANDS = ("red", "green", "slope", "vv_post")
MEAN, DEVIATION = np.array([100.0, 50.0, 30.0, -8.0]), np.array([20.0, 10.0, 8.0, 3.0])
ALL = np.arange(6)


def patches() -> Patches:
    generator = np.random.default_rng(5)
    stack = generator.normal(MEAN, DEVIATION, (6, 16, 16, 4)).astype(np.float32)
    mask = np.zeros((6, 16, 16), np.uint8)
    mask[:3, 4:9, 5:8] = 1
    mask[4, :2] = 255
    stack[4, :2] = np.nan
    return Patches(stack, mask)


def augment(seed: int = 1, **options: float | bool) -> tuple[Patches, Patches]:
    before = patches()
    augmenter = Augmenter.of(Augmentation(**{"symmetries": False} | options), BANDS, MEAN, DEVIATION)
    after = augmenter(before, ALL, np.random.default_rng(seed))
    assert after.stack.dtype == np.float32
    assert after.mask.dtype == np.uint8
    return before, after


def test_augmenter_without_options_changes_nothing() -> None:
    before, after = augment()
    np.testing.assert_array_equal(after.stack, before.stack)
    np.testing.assert_array_equal(after.mask, before.mask)


def test_paste_adjusts_brightness_only_of_bands_valid_in_both() -> None:
    stack = np.tile(MEAN.astype(np.float32), (2, 4, 4, 1))
    stack[1] += np.float32(5)
    stack[1, ..., :2] = np.nan  # a cloud covers the whole patch
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[0, :2] = 1
    augmenter = Augmenter.of(Augmentation(symmetries=False, paste=1.0), BANDS, MEAN, DEVIATION)
    after = augmenter(Patches(stack, mask), np.tile([1], 20), np.random.default_rng(0))
    pasted = after.stack[after.mask == 1]
    assert len(pasted) > 0
    np.testing.assert_allclose(pasted, np.tile([*MEAN[:3], MEAN[3] + 5], (len(pasted), 1)), rtol=1e-6)


@pytest.mark.parametrize("option", ["gain", "offset", "gamma", "haze"])
def test_radiometric_changes_keep_terrain_truth_and_nan(option: str) -> None:
    before, after = augment(**{option: 0.3})
    np.testing.assert_array_equal(after.mask, before.mask)
    np.testing.assert_array_equal(np.isnan(after.stack), np.isnan(before.stack))
    np.testing.assert_allclose(after.stack[..., 2], before.stack[..., 2], atol=1e-4)  # the slope
    moved = np.nanmax(np.abs(after.stack - before.stack), axis=(0, 1, 2))
    assert (moved[:2] > 1).all()
    assert (moved[3] > 0.1) == (option in ("gain", "offset"))


def test_gain_and_offset_are_affine_per_band_and_patch() -> None:
    before, after = augment(gain=0.3, offset=0.5)
    for patch in range(3):
        for band in (0, 1, 3):
            x, y = before.stack[patch, ..., band].ravel(), after.stack[patch, ..., band].ravel()
            assert np.corrcoef(x, y)[0, 1] == pytest.approx(1, abs=1e-4)
    slopes = [
        np.polyfit(before.stack[patch, ..., 0].ravel(), after.stack[patch, ..., 0].ravel(), 1)[0] for patch in range(3)
    ]
    assert np.ptp(slopes) > 0.01


def test_haze_moves_pixels_towards_its_brightness() -> None:
    before, after = augment(haze=0.9)
    haze = MEAN[0] + 3 * DEVIATION[0]
    x, y = (np.abs(one.stack[:3, ..., 0] - haze) for one in (before, after))
    assert (y <= x + 1e-3).all()
    assert y.mean() < 0.99 * x.mean()


def test_gains_have_requested_spread() -> None:
    flat = Patches(
        np.broadcast_to(MEAN + DEVIATION, (4000, 1, 1, 4)).astype(np.float32), np.zeros((4000, 1, 1), np.uint8)
    )
    augmenter = Augmenter.of(Augmentation(symmetries=False, gain=0.2, per_band=0.0), BANDS, MEAN, DEVIATION)
    stack = augmenter(flat, np.arange(4000), np.random.default_rng(2)).stack
    logarithms = np.log((stack[:, 0, 0, 0] - MEAN[0]) / DEVIATION[0])
    assert logarithms.std() == pytest.approx(0.2, rel=0.05)
    assert logarithms.mean() == pytest.approx(0, abs=0.01)


def test_scale_changes_stack_and_truth_together() -> None:
    before = patches()
    before.stack[..., 2] = before.mask
    augmenter = Augmenter.of(Augmentation(scale=0.5), BANDS, MEAN, DEVIATION)
    after = augmenter(before, ALL, np.random.default_rng(3))
    known = np.isfinite(after.stack[..., 2])
    np.testing.assert_array_equal(after.stack[..., 2][known], after.mask[known])
    assert np.count_nonzero(after.mask == 1) > np.count_nonzero(before.mask == 1)


@given(st.integers(0, 1000))
def test_paste_changes_only_known_pixels_under_landslides(seed: int) -> None:
    before, after = augment(seed, paste=1.0)
    gained = (after.mask == 1) & (before.mask != 1)
    assert (before.mask[gained] == 0).all()
    assert ((before.mask == 255) == (after.mask == 255)).all()
    untouched = after.mask != 1
    np.testing.assert_array_equal(after.stack[untouched], before.stack[untouched])
    assert np.isfinite(after.stack[gained]).all()


def test_augmentation_is_reproducible_by_seed() -> None:
    options = {"gain": 0.2, "paste": 0.5, "scale": 0.2, "symmetries": True}
    first, again, other = (augment(seed, **options)[1].stack.tobytes() for seed in (1, 1, 2))
    assert first == again != other
