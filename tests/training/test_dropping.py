"""Tests of dropped band groups and simulated clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from stack_files import write_stack
from talud.bands import Group
from talud.data.patches import Block, Patches, read_patches
from talud.params import Augmentation, DroppingOptions, SplitOptions
from talud.training.augmentation import Augmenter
from talud.training.batches import Dropping, TrainingBatches, add_clouds, drop_groups, simulate_cloud

BANDS = ("red", "slope", "green", "vv_pre", "vv_post")
GROUPS = (Group.OPTICAL, Group.TERRAIN, Group.OPTICAL, Group.SAR, Group.SAR)
MEMBERS = {Group.OPTICAL: [0, 2], Group.TERRAIN: [1], Group.SAR: [3, 4]}


def patches(count: int, side: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, side, side, len(BANDS))).astype(np.float32)


def dropped_groups(stack: np.ndarray) -> dict[Group, np.ndarray]:
    """Return for each group the patches in which it is NaN; fail if it is partly NaN."""
    nan = np.isnan(stack)
    for members in MEMBERS.values():
        part = nan[..., members].reshape(len(stack), -1)
        assert (part.all(axis=1) == part.any(axis=1)).all()
    return {group: nan[:, 0, 0, members[0]] for group, members in MEMBERS.items()}


def test_groups_are_dropped_independently_at_given_rates() -> None:
    stack = patches(4000, 1)
    absent = dropped_groups(drop_groups(stack, GROUPS, {Group.TERRAIN: 0.3, Group.SAR: 0.5}, np.random.default_rng(2)))
    assert not absent[Group.OPTICAL].any()
    assert absent[Group.TERRAIN].mean() == pytest.approx(0.3, abs=0.03)  # four standard deviations
    assert absent[Group.SAR].mean() == pytest.approx(0.5, abs=0.03)
    assert (absent[Group.TERRAIN] & absent[Group.SAR]).mean() == pytest.approx(0.15, abs=0.03)


@given(st.integers(0, 2**32), st.floats(0.9, 0.999))
def test_drop_groups_keeps_one_group_unchanged(seed: int, probability: float) -> None:
    stack = patches(50, 2)
    before = stack.copy()
    result = drop_groups(stack, GROUPS, dict.fromkeys(MEMBERS, probability), np.random.default_rng(seed))
    absent = np.array(list(dropped_groups(result).values()))
    assert not absent.all(axis=0).any()
    np.testing.assert_array_equal(stack, before)
    np.testing.assert_array_equal(result[~np.isnan(result)], stack[~np.isnan(result)])


def test_drop_groups_keeps_each_group_with_equal_probability() -> None:
    result = drop_groups(patches(3000, 1), GROUPS, dict.fromkeys(MEMBERS, 0.9999), np.random.default_rng(0))
    kept = [1 - absent.mean() for absent in dropped_groups(result).values()]
    assert kept == pytest.approx([1 / 3] * 3, abs=0.04)


@given(st.integers(0, 2**32), st.floats(0, 1), st.integers(4, 40), st.integers(4, 40))
def test_simulated_cloud_has_exact_cover(seed: int, cover: float, height: int, width: int) -> None:
    hidden = simulate_cloud((height, width), cover, np.random.default_rng(seed))
    assert hidden.shape == (height, width)
    assert abs(hidden.sum() - cover * hidden.size) <= 0.5


def test_simulated_cloud_is_spatially_coherent() -> None:
    hidden = simulate_cloud((64, 64), 0.4, np.random.default_rng(3))
    alike = (hidden[:, 1:] == hidden[:, :-1]).mean()
    assert alike > 0.9  # independent pixels would give 0.52


def test_clouds_hide_optical_bands_of_a_share_of_patches() -> None:
    result = np.isnan(add_clouds(patches(1000, 16), GROUPS, 0.25, np.random.default_rng(4)))
    optical = result[..., 0]
    np.testing.assert_array_equal(optical, result[..., 2])
    assert not result[..., [1, 3, 4]].any()
    cover = optical.mean(axis=(1, 2))
    assert (cover > 0).mean() == pytest.approx(0.25, abs=0.055)
    assert 0.7 < cover.max() <= 0.8
    assert cover[cover > 0].mean() == pytest.approx(0.4, abs=0.06)


def test_dropping_sets_truth_unknown_without_valid_band() -> None:
    dropping = Dropping.of(DroppingOptions(groups={"sar": 0.9, "terrain": 0.9}, clouds=1), BANDS)
    assert dropping
    truth = np.ones((200, 16, 16), np.uint8)
    stack, known = dropping.apply(patches(200, 16), truth, (1, 2, 3))
    nothing = np.isnan(stack).all(axis=-1)
    assert 0.1 < nothing.mean() < 0.5
    np.testing.assert_array_equal(known == 255, nothing)
    assert (truth == 1).all()


@pytest.mark.parametrize(
    ("options", "bands", "optional"),
    [
        ({}, BANDS, ()),
        ({"clouds": 0.2}, BANDS, (Group.OPTICAL,)),
        ({"clouds": 0.2}, ("slope", "vv_pre"), ()),
        ({"groups": {"sar": 0.2, "terrain": 0.0}}, BANDS, (Group.SAR,)),
        ({"groups": {"optical": 0.2}, "clouds": 0.2}, ("red", "green"), ()),  # nothing would be left
    ],
)
def test_only_dropped_groups_are_optional(
    options: dict[str, object], bands: tuple[str, ...], optional: tuple[Group, ...]
) -> None:
    chosen = DroppingOptions.model_validate(options)
    dropping = Dropping.of(chosen, bands)
    assert (dropping is None) == (not optional)
    assert chosen.optional_groups(tuple(dict.fromkeys(GROUPS[BANDS.index(band)] for band in bands))) == optional


def test_dropping_is_the_same_in_a_resumed_training() -> None:
    stack = patches(9, 8)
    whole = Patches(stack, np.zeros(stack.shape[:3], np.uint8))
    dropping = Dropping.of(DroppingOptions(groups={"sar": 0.5, "optical": 0.5}, clouds=0.5), BANDS)

    augmenter = Augmenter.of(Augmentation(gain=0.1, paste=0.3), BANDS, np.zeros(5), np.ones(5))

    def epoch(batches: TrainingBatches) -> bytes:
        return b"".join(batches[index][0].tobytes() for index in range(len(batches)))

    def batches_from(first: int, seed: int = 5) -> TrainingBatches:
        return TrainingBatches(whole, 4, augmenter=augmenter, seed=seed, first_epoch=first, dropping=dropping)

    going = batches_from(0)
    seen = [epoch(going)]
    for _ in range(3):
        going.on_epoch_end()
        seen.append(epoch(going))
    assert seen[0] == seen[1]  # `fit` ends an epoch before the first
    assert len(set(seen[1:])) == 3
    assert [epoch(batches_from(number)) for number in range(3)] == seen[1:]
    assert epoch(batches_from(0, seed=6)) != seen[0]
    again = going[0][0]
    np.testing.assert_array_equal(again, going[0][0])  # the same batch, requested twice


def test_missing_optional_groups_keep_truth_known(tmp_path: Path) -> None:
    values = np.ones((5, 16, 16), np.float32)
    values[[0, 2], :4] = np.nan  # a cloud
    values[3, 4:6] = np.nan  # one band of the radar
    values[:, 6] = np.nan
    stack = write_stack(tmp_path / "stack.tif", values, BANDS)
    mask = write_stack(tmp_path / "mask.tif", np.zeros((1, 16, 16), np.float32), ("landslide",))
    block = Block(Window(0, 0, 16, 16), "training")
    options = SplitOptions(block=16, patch=16, stride=16, empty_share=1)

    def unknown(*optional: Group) -> list[int]:
        found = read_patches(stack, mask, BANDS, [block], options, 0, optional)
        rows = (found.mask[0] == 255).any(axis=1)
        np.testing.assert_array_equal(rows, (found.mask[0] == 255).all(axis=1))
        if Group.SAR in optional:
            assert np.isnan(found.stack[0, 4:6, :, 3:]).all()
        return np.flatnonzero(rows).tolist()

    assert unknown() == [0, 1, 2, 3, 4, 5, 6]
    assert unknown(Group.OPTICAL) == [4, 5, 6]
    assert unknown(Group.OPTICAL, Group.SAR) == [6]
    assert unknown(*MEMBERS) == [6]
