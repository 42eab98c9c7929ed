"""Tests of the split into blocks and of patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.windows import Window

from talud.data.patches import Block, patch_windows, read_patches, split_blocks
from talud.errors import SourceError, StudyError
from talud.params import SplitOptions


def write(path: Path, bands: np.ndarray, names: tuple[str, ...] = ()) -> Path:
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype,
        crs=CRS.from_epsg(32618), transform=from_origin(400_000, 650_000, 12.5, 12.5),
    ) as writer:  # fmt: skip
        writer.write(bands)
        for index, name in enumerate(names, start=1):
            writer.set_band_description(index, name)
    return path


def scattered(height: int, width: int, seed: int, share: float = 0.02) -> np.ndarray:
    """Return a mask of scattered landslides and some unknown pixels."""
    generator = np.random.default_rng(seed)
    mask = (generator.random((height, width)) < share).astype(np.uint8)
    mask[generator.random((height, width)) < 0.05] = 255
    return mask


def area(path: Path, mask: np.ndarray) -> Path:
    return write(path, mask[np.newaxis])


def pixels(windows: list[Window], shape: tuple[int, int]) -> np.ndarray:
    """Count the windows that contain each pixel of a raster."""
    count = np.zeros(shape, int)
    for window in windows:
        assert window.row_off >= 0
        assert window.col_off >= 0
        assert window.row_off + window.height <= shape[0]
        assert window.col_off + window.width <= shape[1]
        count[window.toslices()] += 1
    return count


@st.composite
def options(draw: st.DrawFn) -> SplitOptions:
    patch = draw(st.integers(1, 12))
    guard = draw(st.integers(0, 3))
    return SplitOptions(
        block=draw(st.integers(patch + 2 * guard, 30)),
        validation=draw(st.floats(0.05, 0.45)),
        test=draw(st.floats(0.05, 0.45)),
        guard=guard,
        patch=patch,
        stride=draw(st.integers(1, 20)),
    )


@pytest.mark.slow
@given(options(), st.integers(30, 120), st.integers(30, 120), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_training_patches_contain_no_held_out_pixel(
    tmp_path_factory: pytest.TempPathFactory, chosen: SplitOptions, height: int, width: int, seed: int
) -> None:
    mask = area(tmp_path_factory.getbasetemp() / "property.tif", scattered(height, width, seed))
    try:
        blocks = split_blocks(mask, chosen, seed)
    except StudyError:
        return  # too few blocks for three parts
    seen = {
        part: pixels([w for b in blocks if b.part == part for w in patch_windows(b, chosen)], (height, width))
        for part in ("training", "validation", "test")
    }
    held_out = pixels([block.window for block in blocks if block.part != "training"], (height, width))
    assert not np.any((seen["training"] > 0) & (held_out > 0))
    assert not np.any((seen["validation"] > 0) & (seen["test"] > 0))
    for block in blocks:  # every pixel of a block is used, and none across its border
        own = pixels(patch_windows(block, chosen), (height, width))
        if block.part != "training" or chosen.stride <= chosen.patch:
            np.testing.assert_array_equal(own > 0, pixels([block.window], (height, width)) > 0)
    for part in seen:
        assert any(block.landslide_pixels for block in blocks if block.part == part)


def test_buffer_separates_the_parts_of_a_split(tmp_path: Path) -> None:
    chosen = SplitOptions(block=20, guard=3, patch=8, stride=3)
    blocks = split_blocks(area(tmp_path / "mask.tif", scattered(100, 100, 1)), chosen, seed=5)
    owner = np.zeros((100, 100), int)
    for block in blocks:
        owner[block.window.toslices()] = 1 if block.part == "training" else 2
    for row, column in np.argwhere(owner == 1):
        near = owner[max(row - 6, 0) : row + 7, max(column - 6, 0) : column + 7]
        assert not (near == 2).any()


def test_split_follows_seed_and_shares(tmp_path: Path) -> None:
    mask = area(tmp_path / "mask.tif", scattered(200, 200, 2))
    chosen = SplitOptions(block=20, patch=10, stride=10, validation=0.2, test=0.1)
    blocks = split_blocks(mask, chosen, seed=5)
    assert blocks == split_blocks(mask, chosen, seed=5)
    assert blocks != split_blocks(mask, chosen, seed=6)
    parts = [block.part for block in blocks]
    assert [parts.count(part) for part in ("training", "validation", "test")] == [70, 20, 10]


def test_split_balances_landslides_among_parts(tmp_path: Path) -> None:
    mask = np.zeros((200, 200), np.uint8)
    for index in range(100):  # the block in row r, column c has 10 r + c landslide pixels
        row, column = divmod(index, 10)
        mask[row * 20 : row * 20 + 10, column * 20 : column * 20 + 10].flat[:index] = 1
    chosen = SplitOptions(block=20, patch=10, stride=10)
    for seed in range(20):
        blocks = split_blocks(area(tmp_path / "mask.tif", mask), chosen, seed)
        assert sum(block.landslide_pixels for block in blocks) == mask.sum()
        for part in ("training", "validation", "test"):
            mean = np.mean([block.landslide_pixels for block in blocks if block.part == part])
            assert abs(mean - 49.5) < 4  # a random split would differ by 6 in one of three cases


def test_split_refuses_an_area_with_too_few_landslides(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[5:90, 5] = 1
    mask[45:99, 5] = 0
    with pytest.raises(StudyError, match=r"2 of 16 blocks contain landslides.*split.block"):
        split_blocks(area(tmp_path / "mask.tif", mask), SplitOptions(block=25, patch=20, stride=10), 1)


def test_blocks_without_known_pixels_belong_to_no_part(tmp_path: Path) -> None:
    mask = scattered(100, 100, 3)
    mask[:, 50:] = 255
    blocks = split_blocks(area(tmp_path / "mask.tif", mask), SplitOptions(block=25, patch=20, stride=10), 1)
    assert len(blocks) == 8
    assert max(block.window.col_off for block in blocks) == 25


@pytest.fixture
def rasters(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    stack = np.random.default_rng(4).normal(size=(3, 60, 90)).astype(np.float32)
    stack[1, 10:30, 5:40] = np.nan
    mask = scattered(60, 90, 6, share=0.01)
    return (
        write(tmp_path / "a.tif", stack, ("slope", "red", "vv_pre")),
        area(tmp_path / "a.mask.tif", mask),
        stack,
        mask,
    )


def test_patches_are_unknown_where_a_named_band_is_invalid(
    rasters: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    stack, mask, values, truth = rasters
    block = Block(Window(30, 0, 30, 30), "training")
    chosen = SplitOptions(block=30, patch=20, stride=5, empty_share=1)
    patches = read_patches(stack, mask, ("red", "slope"), [block], chosen, seed=1)
    assert patches.stack.shape == (9, 20, 20, 2)
    first = patches.stack[0]
    np.testing.assert_array_equal(first[..., 0], values[1, :20, 30:50])
    np.testing.assert_array_equal(first[..., 1], values[0, :20, 30:50])
    invalid = np.isnan(values[1, :20, 30:50])
    assert 0 < invalid.sum() < 400
    np.testing.assert_array_equal(patches.mask[0], np.where(invalid, 255, truth[:20, 30:50]))


def test_validation_pixels_count_once(rasters: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    stack, mask, values, truth = rasters
    block = Block(Window(30, 30, 30, 30), "validation")
    chosen = SplitOptions(block=30, patch=20, stride=5, empty_share=0)
    patches = read_patches(stack, mask, ("red",), [block], chosen, seed=1)
    inside = truth[30:60, 30:60][~np.isnan(values[1, 30:60, 30:60])]
    assert len(patches) == 4
    for label in (0, 1):
        assert (patches.mask == label).sum() == (inside == label).sum()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_empty_patches_are_limited_to_their_share(tmp_path: Path, share: float) -> None:
    mask = np.zeros((80, 80), np.uint8)
    mask[3, 3] = mask[55, 70] = 1
    mask[60:, :20] = 255
    stack = write(tmp_path / "a.tif", np.ones((1, 80, 80), np.float32), ("red",))
    blocks = [Block(Window(0, 0, 80, 80), "training")]
    chosen = SplitOptions(block=80, patch=20, stride=20, empty_share=share)
    patches = read_patches(stack, area(tmp_path / "m.tif", mask), ("red",), blocks, chosen, seed=1)
    empty = sum(1 for one in patches.mask if not (one == 1).any())
    assert len(patches) - empty == 2
    assert empty == {0.0: 0, 0.3: 0, 0.6: 3, 1.0: 13}[share]  # of 16 patches 2 have landslides and 1 has no known pixel


def test_patches_refuse_stack_and_mask_of_different_grids(tmp_path: Path) -> None:
    stack = write(tmp_path / "a.tif", np.ones((1, 40, 40), np.float32), ("red",))
    mask = area(tmp_path / "m.tif", np.zeros((40, 41), np.uint8))
    with pytest.raises(StudyError, match="different grids"):
        read_patches(stack, mask, ("red",), [Block(Window(0, 0, 40, 40), "test")], SplitOptions(block=40, patch=8), 1)


def patch_mask(path: Path, landslides: list[int], columns: int = 5, side: int = 8) -> Path:
    """Return a mask of patches with one landslide pixel in some of them.

    The last cell of the layout is unknown.
    """
    rows = 4
    mask = np.zeros((rows * side, columns * side), np.uint8)
    for number in landslides:
        row, column = divmod(number, columns)
        mask[row * side, column * side] = 1
    mask[-side:, -side:] = 255
    write(path, mask[np.newaxis])
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(TALUD_PATCH=str(side))
    return path


def test_patch_stack_is_split_by_number(tmp_path: Path) -> None:
    mask = patch_mask(tmp_path / "mask.tif", [0, 13, 18])
    chosen = SplitOptions(block=999, guard=3, patch=4, stride=4, validation=0.2, test=0.2)
    blocks = split_blocks(mask, chosen, seed=1)
    assert [block.part for block in blocks] == ["training"] * 11 + ["validation"] * 4 + ["test"] * 4
    assert [(block.window.row_off, block.window.col_off) for block in blocks] == [
        (8 * (number // 5), 8 * (number % 5)) for number in range(19)
    ]
    assert {(block.window.height, block.window.width) for block in blocks} == {(8, 8)}
    assert split_blocks(mask, chosen, seed=2) == blocks


def test_patch_stack_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    mask = patch_mask(tmp_path / "mask.tif", [0, 1, 2, 13])
    with pytest.raises(StudyError, match="none of the patches for test contains a landslide"):
        split_blocks(mask, SplitOptions(block=8, patch=8, validation=0.2, test=0.2), seed=1)


def test_blocks_of_padded_patches_leave_the_padding_out(tmp_path: Path) -> None:
    mask = patch_mask(tmp_path / "mask.tif", [0, 13, 18])
    chosen = SplitOptions(block=8, patch=4, stride=4, validation=0.2, test=0.2)
    whole = split_blocks(mask, chosen, seed=1)
    with rasterio.open(mask, "r+") as raster:
        raster.update_tags(TALUD_PATCH_CONTENT="5")
    blocks = split_blocks(mask, chosen, seed=1)
    assert {(block.window.height, block.window.width) for block in blocks} == {(5, 5)}
    assert [(block.window.row_off, block.window.col_off, block.part) for block in blocks] == [
        (block.window.row_off, block.window.col_off, block.part) for block in whole
    ]


@pytest.mark.parametrize("content", ["0", "9", "five", "-1"])
def test_impossible_content_of_patches_is_refused(tmp_path: Path, content: str) -> None:
    mask = patch_mask(tmp_path / "mask.tif", [0, 13, 18])
    with rasterio.open(mask, "r+") as raster:
        raster.update_tags(TALUD_PATCH_CONTENT=content)
    with pytest.raises(SourceError, match=f"mask.tif: its tag TALUD_PATCH_CONTENT is '{content}'"):
        split_blocks(mask, SplitOptions(block=8, patch=4), seed=1)


@pytest.mark.parametrize(("patch", "starts"), [(8, [0]), (6, [0, 2]), (4, [0, 4]), (12, [0])])
def test_cuts_of_a_patch_stay_inside_it(tmp_path: Path, patch: int, starts: list[int]) -> None:
    mask = patch_mask(tmp_path / "mask.tif", [0, 13, 18])
    chosen = SplitOptions(block=12, patch=patch, stride=patch, validation=0.2, test=0.2)
    for block in split_blocks(mask, chosen, seed=1):
        own = patch_windows(block, chosen)
        corners = {(window.row_off - block.window.row_off, window.col_off - block.window.col_off) for window in own}
        assert corners == {(row, column) for row in starts for column in starts}
        assert {(window.height, window.width) for window in own} == {(min(patch, 8), min(patch, 8))}


def test_stated_numbers_of_patches_are_checked(tmp_path: Path) -> None:
    side, options = 4, SplitOptions(block=4, patch=4, stride=4)
    truth = np.zeros((8, 8), np.uint8)
    truth[::4, ::4] = 1

    def split(parts: str) -> list[str]:
        with rasterio.open(area(tmp_path / "m.tif", truth), "r+") as mask:
            mask.update_tags(TALUD_PATCH=str(side), TALUD_PATCH_PARTS=parts)
        return [block.part for block in split_blocks(tmp_path / "m.tif", options, 1)]

    assert split("1 2 1") == ["training", "validation", "validation", "test"]
    with pytest.raises(StudyError, match="has more patches than its split"):
        split("1 1 1")
    with pytest.raises(StudyError, match="none of the patches for validation contains a landslide"):
        split("2 0 2")
    with pytest.raises(SourceError, match="its tag TALUD_PATCH_PARTS is 'many'"):
        split("many")
