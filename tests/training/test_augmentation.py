"""Tests of the augmentation of training patches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import least_squares

from talud.data.patches import Patches
from talud.errors import StudyError
from talud.params import Augmentation
from talud.training.augmentation import Augmenter

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
    before.stack[..., 2] = before.mask == 1
    augmenter = Augmenter.of(Augmentation(scale=0.5), BANDS, MEAN, DEVIATION)
    after = augmenter(before, ALL, np.random.default_rng(3))
    # Of a pixel's interpolated value, a quarter at least is that of the pixel that its class comes from.
    assert (after.stack[..., 2][after.mask == 1] >= 0.25).all()
    assert (after.stack[..., 2][after.mask != 1] <= 0.75).all()
    assert np.count_nonzero(after.mask == 1) > np.count_nonzero(before.mask == 1)


def light_and_hue(x: np.ndarray, gamma: float, gain: np.ndarray, offset: np.ndarray, saturation: float) -> np.ndarray:
    """Return the closed form of light and hue for optical pixels, (pixels, 2)."""
    white = (MEAN + 3 * DEVIATION)[:2]
    levels = np.maximum(x / white, 1e-3) ** gamma * gain + offset
    grey = levels.mean(axis=-1, keepdims=True)
    return np.maximum(grey + saturation * (levels - grey), 0) * white


def fit_light_and_hue(before: np.ndarray, after: np.ndarray, hue: bool) -> np.ndarray:
    """Return gamma, gain, offset and saturation (with hue: gains and offsets) of a patch, by least squares."""

    def split(free: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        return (
            (1.0, np.exp(free[:2]), free[2:4], 1.0) if hue else (np.exp(free[0]), np.exp(free[1:2]), free[2:3], free[3])
        )

    start = np.zeros(4) if hue else np.array([0.0, 0.0, 0.0, 1.0])
    fitted = least_squares(lambda free: (light_and_hue(before, *split(free)) - after).ravel(), start, xtol=1e-12)
    np.testing.assert_allclose(fitted.fun, 0, atol=2e-3)
    return fitted.x


@pytest.mark.parametrize(("option", "limits"), [("light", (0.3, 0.3, 0.09, 0.3)), ("hue", (0.3, 0.3, 0.09, 0.09))])
def test_light_and_hue_have_closed_form_within_limits(option: str, limits: tuple[float, ...]) -> None:
    before, after = augment(**{option: 0.3, "unchanged": 0.0})
    drawn = np.array(
        [
            fit_light_and_hue(x[..., :2].reshape(-1, 2), y[..., :2].reshape(-1, 2), option == "hue")
            for x, y in zip(before.stack[:4], after.stack[:4], strict=True)
        ]
    )
    drawn -= (0, 0, 0, 1) if option == "light" else (0, 0, 0, 0)
    assert (np.abs(drawn) <= np.array(limits) + 1e-3).all()
    assert (np.ptp(drawn, axis=0) > np.array(limits) / 4).all()


def test_light_gains_are_uniform_in_the_logarithm() -> None:
    """Pixels at the white level do not depend on gamma, and grey ones not on saturation."""
    white = (MEAN + 3 * DEVIATION).astype(np.float32)
    flat = Patches(np.tile(np.stack([white, white / 2]), (4000, 2, 1, 1)), np.zeros((4000, 2, 2), np.uint8))
    augmenter = Augmenter.of(Augmentation(symmetries=False, light=0.4, unchanged=0.25), BANDS, MEAN, DEVIATION)
    levels = augmenter(flat, np.arange(4000), np.random.default_rng(2)).stack[:, 0, 0, :2] / white[:2]
    np.testing.assert_allclose(levels[:, 0], levels[:, 1], rtol=1e-5)
    changed = levels[levels[:, 0] != 1, 0]
    assert len(changed) / 4000 == pytest.approx(0.75, abs=0.03)
    assert changed.min() == pytest.approx(np.exp(-0.4) - 0.12, abs=0.02)
    assert changed.max() == pytest.approx(np.exp(0.4) + 0.12, abs=0.05)
    assert changed.mean() == pytest.approx(np.sinh(0.4) / 0.4, abs=0.01)  # mean of exp(u), u uniform in ±0.4


@pytest.mark.parametrize("option", ["light", "hue"])
def test_light_and_hue_keep_terrain_sar_truth_and_nan(option: str) -> None:
    before, after = patches(), patches()
    before.stack[0, 3, 3, 0] = after.stack[0, 3, 3, 0] = np.nan  # invalid in one optical band only
    augmenter = Augmenter.of(Augmentation(symmetries=False, unchanged=0.0, **{option: 0.5}), BANDS, MEAN, DEVIATION)
    after = augmenter(after, ALL, np.random.default_rng(1))
    np.testing.assert_array_equal(after.mask, before.mask)
    np.testing.assert_array_equal(np.isnan(after.stack), np.isnan(before.stack))
    np.testing.assert_array_equal(after.stack[..., 2:], before.stack[..., 2:])
    assert (np.nanmax(np.abs(after.stack - before.stack), axis=(0, 1, 2))[:2] > 1).all()
    assert np.nanmin(after.stack[..., :2]) >= 0


def test_patches_left_unchanged_are_identical() -> None:
    before, after = augment(light=1.0, hue=1.0, unchanged=1.0)
    assert after.stack.tobytes() == before.stack.tobytes()


def test_light_refuses_bands_whose_black_is_not_0() -> None:
    with pytest.raises(StudyError, match="the mean of green is below 0; use gain, offset and gamma instead"):
        Augmenter.of(Augmentation(light=0.1), BANDS, np.array([1.0, -1.0, -1.0, -8.0]), DEVIATION)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 17))
def test_zoomed_patch_is_interpolated_from_the_mirrored_one(seed: int, scale: float, shrink: float, side: int) -> None:
    profiles = np.random.default_rng(seed).random((2, side), np.float32)
    shape = (1, side, side)
    rows, columns = np.broadcast_to(profiles[0, :, np.newaxis], shape), np.broadcast_to(profiles[1], shape)
    before = Patches(np.stack([rows, columns], axis=-1), np.broadcast_to(np.arange(side, dtype=np.uint8), shape))
    options = Augmentation(symmetries=False, scale=scale, shrink=shrink)
    after = Augmenter.of(options, ("red", "slope"), MEAN[:2], DEVIATION[:2])(
        before, ALL[:1], np.random.default_rng(seed)
    )
    assert after.mask.shape == shape
    windows = [
        start + (np.arange(side) + 0.5) * window / side - 0.5
        for window in range(max(1, round(side * (1 - scale)) - 1), round(side * (1 + shrink)) + 1)
        for start in (range(side - window + 1) if window <= side else range(side - window, 1))
    ]
    for drawn, profile in zip((after.stack[0, :, 0, 0], after.stack[0, 0, :, 1]), profiles, strict=True):
        expected = [ndimage.map_coordinates(profile, [window], order=1, mode="reflect") for window in windows]
        assert np.abs(np.array(expected) - drawn).max(axis=1).min() < 1e-6
    nearest = [
        np.pad(np.arange(side), side, mode="symmetric")[np.floor(one + 0.5).astype(int) + side] for one in windows
    ]
    assert any(np.array_equal(after.mask[0, 0], one) for one in nearest)


def test_zoom_keeps_invalid_pixels_and_spreads_them_no_further() -> None:
    before = patches()
    before.stack[:, :8] = np.nan
    options = Augmentation(symmetries=False, scale=0.5, shrink=0.5)
    after = Augmenter.of(options, BANDS, MEAN, DEVIATION)(
        Patches(before.stack, np.isnan(before.stack[..., 0]).astype(np.uint8)), ALL, np.random.default_rng(5)
    )
    np.testing.assert_array_equal(np.isnan(after.stack[..., 0]), after.mask == 1)


def test_zoom_is_log_uniform_between_both_limits() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, np.newaxis], (1, 64, 64))
    before = Patches(np.stack([ramp, ramp], axis=-1), np.zeros((1, 64, 64), np.uint8))
    options = Augmentation(symmetries=False, scale=0.5, shrink=1.0)
    augmenter = Augmenter.of(options, ("red", "slope"), MEAN[:2], DEVIATION[:2])
    rows = augmenter(before, np.zeros(2000, np.intp), np.random.default_rng(0)).stack[:, :, 0, 0]
    factors = np.abs(np.diff(rows, axis=1)).mean(axis=1)  # rows of the patch per row of the result
    assert factors.min() == pytest.approx(0.5, abs=0.02)
    assert factors.max() == pytest.approx(2, abs=0.1)
    assert np.mean(factors < 1) == pytest.approx(0.5, abs=0.04)


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
