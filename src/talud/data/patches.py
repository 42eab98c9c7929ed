"""Spatial split of training areas, and patches.

Landslides cluster, and neighbouring pixels are similar. Therefore whole blocks, not pixels or patches, are assigned to
training, validation or test, and no patch crosses the border of a block.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.bands import Group, band_named
from talud.errors import StudyError
from talud.grid import Grid
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import SplitOptions
from talud.raster import open_raster, patch_content, patch_parts, patch_side

SplitPart = Literal["training", "validation", "test"]
SPLIT_PARTS: tuple[SplitPart, ...] = ("training", "validation", "test")


@dataclass(frozen=True)
class Block:
    """Square of an area, and its part of the split."""

    window: Window
    part: SplitPart
    landslide_pixels: int = 0


@dataclass(frozen=True)
class Patches:
    """Training samples for the network.

    Attributes:
        stack: bands, float32 (patches, height, width, bands), in physical units, NaN where a band is invalid.
        mask: classes, uint8 (patches, height, width): 1 landslide, 0 background, 255 where the class is unknown or a
            band is invalid, since such pixels are not mapped.
        area_sizes: number of patches of each area, in order; empty if all are of one area.
    """

    stack: NDArray[np.float32]
    mask: NDArray[np.uint8]
    area_sizes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.mask)

    @classmethod
    def concatenate(cls, parts: Sequence[Patches]) -> Patches:
        """Concatenate the patches of several areas."""
        stack, mask = (np.concatenate([getattr(part, name) for part in parts]) for name in ("stack", "mask"))
        return cls(stack, mask, tuple(map(len, parts)) if len(parts) > 1 else ())

    @property
    def landslide_pixels(self) -> int:
        """Number of landslide pixels, counted once per patch."""
        return int(np.count_nonzero(self.mask == LANDSLIDE))


def split_blocks(mask: Path, options: SplitOptions, seed: int) -> tuple[Block, ...]:
    """Split the blocks of an area into three parts.

    The result depends only on mask, options and seed. The blocks of rasters are sorted by landslide share and assigned
    in that order, so that each part gets its share of blocks with many landslides, with few, and with none. The blocks
    of a patch stack are its patches, without padding. They have the parts of the data set's own split, if the stack
    states it. Otherwise, since patches with consecutive numbers may overlap on the ground, the first ones are for
    training, the next for validation, the last for test.

    Blocks without a known pixel, or too small for a patch at the raster's edge, belong to no part; in a patch stack,
    smaller blocks are padded.

    Args:
        mask: path of the mask: 1 landslide, 0 background, 255 unknown.
        options: side and buffer of the blocks, and shares of the parts.
        seed: seed for the order of blocks with similar landslide share; not used for a patch stack.

    Raises:
        StudyError: No pixel is background, or some part would have no landslides.
        SourceError: The mask cannot be read.
    """
    windows, counts, shares, runs = _usable_blocks(mask, options)
    with_landslides = [index for index, count in enumerate(counts) if count]
    if len(with_landslides) < len(SPLIT_PARTS):
        raise StudyError(
            f"{mask}: {len(with_landslides)} of {len(windows)} blocks contain landslides, but training, validation and "
            f"test need one each; make split.block ({options.block} pixels) smaller, or the area larger"
        )
    if all(share == 1 for share in shares):
        raise StudyError(
            f"{mask}: no pixel is known to be background, so a model cannot be trained on it; make its stack again "
            "(talud stack) from masks whose nodata value is not 0"
        )
    if runs:
        return _split_in_order(mask, windows, counts, options)
    ranked = sorted(with_landslides, key=lambda index: -shares[index])
    without = [index for index, count in enumerate(counts) if not count]
    order = _shuffled_in_strata(ranked, options, seed) + _shuffled_in_strata(without, options, seed + 1)
    part_of = dict(zip(order, _assign_parts(len(order), options), strict=True))
    return tuple(Block(window, part_of[index], counts[index]) for index, window in enumerate(windows))


def patch_windows(block: Block, options: SplitOptions) -> list[Window]:
    """Return the windows of a block's patches.

    Training patches are placed at the stride; those of validation and test side by side. If a block's side is not a
    multiple of that step, the last patch is moved back to the block's border. A block of a patch stack may be smaller
    than a patch, and is then its only window.
    """
    step = options.stride if block.part == "training" else options.patch
    window = block.window
    height, width = (min(options.patch, int(side)) for side in (window.height, window.width))
    return [
        Window(window.col_off + column, window.row_off + row, width, height)
        for row in _offsets(int(window.height), height, step)
        for column in _offsets(int(window.width), width, step)
    ]


def read_patches(
    stack: Path,
    mask: Path,
    bands: Sequence[str],
    blocks: Sequence[Block],
    options: SplitOptions,
    seed: int,
    optional: Collection[Group] = (),
) -> Patches:
    """Read the patches of one part of the split.

    Patches without a pixel that is both known and valid are dropped. Of training patches without a landslide, a random
    sample is kept, as large as `options.empty_share` allows. In validation and test, each pixel of a block counts once:
    where patches overlap, all but the first are 255. Blocks smaller than a patch are padded to the right and below with
    invalid pixels of unknown class.

    Args:
        stack: path of the float32 raster whose band descriptions are the band names; NaN where invalid.
        mask: path of the uint8 raster on the same grid: 1 landslide, 0 background, 255 unknown.
        bands: names of the bands to read, in the order of the result's last axis.
        blocks: blocks of one part of the area.
        options: side and stride of patches, and share of empty ones.
        seed: seed for the sample of empty patches.
        optional: groups that the network learns to do without. The class stays known where they are invalid and another
            group is valid, and all bands of a group are NaN where one of them is.

    Raises:
        StudyError: Stack and mask have different grids.
        SourceError: A raster cannot be read.
    """
    kept = []
    stacks, masks = [], []
    with open_raster(stack) as pixels_of, open_raster(mask) as truths:
        if Grid.of(pixels_of) != Grid.of(truths):
            raise StudyError(f"{stack} and {mask} have different grids; run talud stack (or dvc repro) again")
        for number, block in enumerate(blocks):
            _, truth = _read_block(pixels_of, truths, bands, block, optional)
            kept += [
                (number, place, bool(np.any(cut == LANDSLIDE)))
                for place, cut in enumerate(_cut_masks(truth, block, options))
                if np.any(cut != UNKNOWN)
            ]
        if any(block.part == "training" for block in blocks):
            kept = _drop_empty_patches(kept, options.empty_share, seed)
        for number, block in enumerate(blocks):
            places = [place for owner, place, _ in kept if owner == number]
            pixels, truth = _read_block(pixels_of, truths, bands, block, optional)
            cuts = list(_cut_masks(truth, block, options))
            windows = patch_windows(block, options)
            masks += [_padded(cuts[place], options.patch, UNKNOWN) for place in places]
            cells = [pixels[_block_slices(block, windows[place])] for place in places]
            stacks += [_padded(cell, options.patch, np.nan) for cell in cells]
    side = options.patch
    return Patches(
        np.array(stacks, np.float32).reshape(-1, side, side, len(bands)),
        np.array(masks, np.uint8).reshape(-1, side, side),
    )


def block_side(dataset: DatasetReader, options: SplitOptions) -> int:
    """Return the side of a block in pixels.

    In a patch stack it is the side of a patch.

    Raises:
        SourceError: The raster's patch tag is not valid.
    """
    return patch_side(dataset) or options.block


def _usable_blocks(mask: Path, options: SplitOptions) -> tuple[list[Window], list[int], list[float], bool]:
    """Return the usable blocks of an area.

    Returns:
        The windows of the blocks; the number of landslide pixels of each; their share of the known pixels; and whether
            the blocks are patches of a patch stack.
    """
    windows: list[Window] = []
    counts: list[int] = []
    shares: list[float] = []
    with open_raster(mask) as dataset:
        side = patch_side(dataset)
        content = patch_content(dataset.tags(), side, mask) if side else 0
        guard = 0 if side else options.guard  # patches need no buffer, since they are not neighbours on the ground
        for cell in Grid.of(dataset).windows(block_side(dataset, options)):
            height, width = (content or length - 2 * guard for length in (cell.height, cell.width))
            if not side and min(height, width) < options.patch:
                continue
            inner = Window(cell.col_off + guard, cell.row_off + guard, width, height)
            truth = dataset.read(1, window=inner)
            known = int(np.count_nonzero(truth != UNKNOWN))
            if known:
                windows.append(inner)
                counts.append(int(np.count_nonzero(truth == LANDSLIDE)))
                shares.append(counts[-1] / known)
    return windows, counts, shares, side is not None


def _split_in_order(mask: Path, windows: list[Window], counts: list[int], options: SplitOptions) -> tuple[Block, ...]:
    """Split patches by their order in the stack.

    The first are for training, the next for validation, the last for test.
    """
    with open_raster(mask) as dataset:
        given = patch_parts(dataset)
        side = block_side(dataset, options)
        columns = dataset.width // side
    number = len(windows)
    if given is None:
        places: Sequence[int] = range(number)
        lengths = [round(number * (1 - options.validation - options.test)), round(number * (1 - options.test)), number]
        advice = (
            f"of {number} patches with known pixels the last {options.test:.0%} are for test, those before for "
            f"validation (split.validation, {options.validation:.0%}); change these shares, or add patches"
        )
    else:
        places = [int(window.row_off) // side * columns + int(window.col_off) // side for window in windows]
        lengths = np.cumsum(given).tolist()
        if max(places, default=0) >= lengths[-1]:
            raise StudyError(f"{mask}: has more patches than its split; run talud stack (or dvc repro) again")
        advice = "change the split of its index, or leave split out of patches in params.yaml"
    ends = dict(zip(SPLIT_PARTS, lengths, strict=True))
    blocks = [
        Block(window, next(part for part in SPLIT_PARTS if place < ends[part]), count)
        for window, place, count in zip(windows, places, counts, strict=True)
    ]
    for part in SPLIT_PARTS:
        if not any(block.landslide_pixels for block in blocks if block.part == part):
            raise StudyError(f"{mask}: none of the patches for {part} contains a landslide; {advice}")
    return tuple(blocks)


def _shuffled_in_strata(ranked: list[int], options: SplitOptions, seed: int) -> list[int]:
    """Shuffle blocks among those of similar rank.

    Each group is long enough to contain a block of the smallest part.
    """
    length = max(len(SPLIT_PARTS), math.ceil(1 / min(options.validation, options.test)))
    generator = np.random.default_rng(seed)
    runs = [ranked[start : start + length] for start in range(0, len(ranked), length)]
    return [int(index) for run in runs for index in generator.permutation(run)]


def _assign_parts(count: int, options: SplitOptions) -> list[SplitPart]:
    """Return the part of each block.

    Each part gets one block first; then the part that is furthest below its share gets the next.
    """
    share = {
        "training": 1 - options.validation - options.test,
        "validation": options.validation,
        "test": options.test,
    }
    dealt = list(SPLIT_PARTS)
    while len(dealt) < count:
        dealt.append(max(SPLIT_PARTS, key=lambda part: share[part] * (len(dealt) + 1) - dealt.count(part)))
    return dealt


def _offsets(length: int, size: int, step: int) -> list[int]:
    last = length - size
    return [*range(0, last, step), last]


def _read_block(
    stack: DatasetReader, mask: DatasetReader, bands: Sequence[str], block: Block, optional: Collection[Group]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read the pixels and mask of a block.

    The mask is 255 where the valid bands are not sufficient.
    """
    numbers = [stack.descriptions.index(name) + 1 for name in bands]
    pixels = np.moveaxis(stack.read(numbers, window=block.window, out_dtype="float32"), 0, -1)
    known = mask.read(1, window=block.window)
    invalid = np.isnan(pixels)
    unknown = invalid.any(axis=-1)
    if optional:
        members = np.array([band_named(name).group for name in bands])
        for group in optional:
            invalid[..., members == group] = invalid[..., members == group].any(axis=-1, keepdims=True)
        pixels[invalid] = np.nan
        unknown = invalid.all(axis=-1) | invalid[..., ~np.isin(members, list(optional))].any(axis=-1)
    return pixels, np.where(unknown, UNKNOWN, known).astype(np.uint8)


def _block_slices(block: Block, window: Window) -> tuple[slice, slice]:
    row, column = int(window.row_off - block.window.row_off), int(window.col_off - block.window.col_off)
    return slice(row, row + int(window.height)), slice(column, column + int(window.width))


def _padded(values: NDArray[Any], side: int, value: float) -> NDArray[Any]:
    """Pad an image (height, width, ...) to a square."""
    height, width = values.shape[:2]
    if (height, width) == (side, side):
        return values
    around = ((0, side - height), (0, side - width), *[(0, 0)] * (values.ndim - 2))
    return np.pad(values, around, constant_values=value)


def _cut_masks(truth: NDArray[np.uint8], block: Block, options: SplitOptions) -> Iterator[NDArray[np.uint8]]:
    """Yield the mask of each patch of a block.

    Outside training, a pixel of an earlier patch is unknown.
    """
    left = truth.copy()
    for window in patch_windows(block, options):
        place = _block_slices(block, window)
        yield left[place].copy()
        if block.part != "training":
            left[place] = UNKNOWN


def _drop_empty_patches(
    kept: list[tuple[int, int, bool]], empty_share: float, seed: int
) -> list[tuple[int, int, bool]]:
    """Keep a random sample of the empty patches.

    They are at most `empty_share` of all.
    """
    empty = [index for index, (_, _, landslide) in enumerate(kept) if not landslide]
    full = len(kept) - len(empty)
    slack = 1e-9  # against rounding: 2 × 0.6 / 0.4 must be 3
    most = math.floor(full * empty_share / (1 - empty_share) + slack) if empty_share < 1 else len(empty)
    allowed = min(len(empty), most)
    drawn = set(np.random.default_rng(seed).choice(empty, allowed, replace=False).tolist()) if allowed else set()
    return [entry for index, entry in enumerate(kept) if entry[2] or index in drawn]
