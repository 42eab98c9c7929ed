"""Spatial split of training areas into blocks, and the patches inside them.

Landslides cluster, and neighbouring pixels look alike. So whole blocks, not pixels or patches, go to training,
validation or test, and no patch reaches across a block's border.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.bands import Group, band_named
from talud.errors import StudyError
from talud.grid import Grid
from talud.metrics import LANDSLIDE, UNKNOWN
from talud.params import SplitOptions
from talud.raster import open_raster, patch_side

SplitPart = Literal["training", "validation", "test"]
SPLIT_PARTS: tuple[SplitPart, ...] = ("training", "validation", "test")


@dataclass(frozen=True)
class Block:
    """A square of an area without its buffer, and its part of the data."""

    window: Window
    part: SplitPart
    landslide_pixels: int = 0


@dataclass(frozen=True)
class Patches:
    """Samples for the network.

    Attributes:
        stack: float32 (patches, height, width, bands), physical units, NaN where a band is invalid.
        mask: uint8 (patches, height, width): 1 landslide, 0 background, 255 where the truth is unknown or some band is
            invalid, since nothing is mapped there.
    """

    stack: NDArray[np.float32]
    mask: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.mask)

    @classmethod
    def concatenate(cls, parts: Sequence[Patches]) -> Patches:
        """Return the patches of several areas, one after the other."""
        return cls(np.concatenate([part.stack for part in parts]), np.concatenate([part.mask for part in parts]))

    @property
    def landslide_pixels(self) -> int:
        """The number of landslide pixels; those of overlapping patches count more than once."""
        return int(np.count_nonzero(self.mask == LANDSLIDE))


def split_blocks(mask: Path, options: SplitOptions, seed: int) -> tuple[Block, ...]:
    """Deal the blocks of an area to the three parts, the same way for the same seed.

    The blocks of a patch stack are its patches. Those of neighbouring numbers may overlap on the ground, so they are
    dealt by runs: the first ones are for training, the next for validation, the last for test.

    Blocks that hold no known pixel, or too small for a patch at the raster's edge, belong to no part. Those of
    rasters are sorted by their landslide share and dealt out along that order, so that each part gets its share of
    blocks with many landslides, with few, and with none.

    Args:
        mask: 1 landslide, 0 background, 255 unknown.
        options: the side and the guard of the blocks, and the shares of the parts.
        seed: decides between blocks of about the same landslide share; of a patch stack nothing.

    Raises:
        StudyError: no background is known; fewer than three blocks hold landslides, or a run of patches holds none, so
            that some part would hold none; or patches cannot be cut into those that are asked for.
        SourceError: the mask cannot be read.
    """
    windows, counts, shares, runs = _usable_blocks(mask, options)
    with_landslides = [index for index, count in enumerate(counts) if count]
    if len(with_landslides) < len(SPLIT_PARTS):
        raise StudyError(
            f"{mask}: {len(with_landslides)} of {len(windows)} blocks hold landslides, but training, validation and "
            f"test need one each; make split.block ({options.block} pixels) smaller, or the area larger"
        )
    if all(share == 1 for share in shares):
        raise StudyError(
            f"{mask}: no pixel is known to be background, so nothing can be learned from it; make its stack again "
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

    Training patches follow each other by the stride; those of validation and test lie side by side. Where a block's
    side is no multiple of that step, the last patch moves back to the block's border.
    """
    step = options.stride if block.part == "training" else options.patch
    window = block.window
    return [
        Window(window.col_off + column, window.row_off + row, options.patch, options.patch)
        for row in _offsets(int(window.height), options.patch, step)
        for column in _offsets(int(window.width), options.patch, step)
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
    """Cut the patches of blocks, all of one part.

    Patches without a pixel that is both known and valid are dropped. Of training patches without a landslide, as many
    are drawn as `options.empty_share` allows. In validation and test, each pixel of a block counts once: where
    patches overlap, all but the first have 255 there.

    Args:
        stack: float32 raster whose band descriptions are their names; NaN = invalid.
        mask: uint8 raster on the same grid: 1 landslide, 0 background, 255 unknown.
        bands: names of bands that the stack holds, in the order of the result's last axis.
        blocks: the blocks of one part of the area.
        options: the size and stride of patches, and the share of empty ones.
        seed: decides which empty patches are drawn.
        optional: groups that the network learns to do without: the truth stays known where they are invalid and another
            group is not, and all bands of a group are NaN where one is.

    Raises:
        StudyError: stack and mask differ in grid.
        SourceError: a raster cannot be read.
    """
    kept = []
    stacks, masks = [], []
    with open_raster(stack) as pixels_of, open_raster(mask) as truths:
        if Grid.of(pixels_of) != Grid.of(truths):
            raise StudyError(f"{stack} and {mask} lie on different grids; run talud stack (or dvc repro) again")
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
            masks += [cuts[place] for place in places]
            stacks += [pixels[_block_slices(block, windows[place])] for place in places]
    side = options.patch
    return Patches(
        np.array(stacks, np.float32).reshape(-1, side, side, len(bands)),
        np.array(masks, np.uint8).reshape(-1, side, side),
    )


def block_side(dataset: DatasetReader, options: SplitOptions) -> int:
    """Return the side of a block of a raster in pixels.

    In a patch stack it is the side of a patch.

    Raises:
        SourceError: the raster's tag says what cannot be.
    """
    return patch_side(dataset) or options.block


def _usable_blocks(mask: Path, options: SplitOptions) -> tuple[list[Window], list[int], list[float], bool]:
    """Return the usable blocks of an area, and whether they are patches of a patch stack.

    Row by row: their windows; how many landslide pixels each holds; their share of the known ones.
    """
    windows: list[Window] = []
    counts: list[int] = []
    shares: list[float] = []
    with open_raster(mask) as dataset:
        side = patch_side(dataset)
        if side and side % options.patch:
            raise StudyError(
                f"{mask}: consists of patches of {side} pixels, which cannot be cut into some of {options.patch}; let "
                f"split.patch divide {side}"
            )
        guard = 0 if side else options.guard  # patches have no neighbours to be kept from
        for cell in Grid.of(dataset).windows(block_side(dataset, options)):
            height, width = cell.height - 2 * guard, cell.width - 2 * guard
            if min(height, width) < options.patch:
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
    """Deal the first blocks to training, the next to validation, the last to test."""
    number = len(windows)
    ends = {
        "training": round(number * (1 - options.validation - options.test)),
        "validation": round(number * (1 - options.test)),
        "test": number,
    }
    blocks = []
    for index, (window, count) in enumerate(zip(windows, counts, strict=True)):
        part = next(part for part in SPLIT_PARTS if index < ends[part])
        blocks.append(Block(window, part, count))
    for part in SPLIT_PARTS:
        if not any(block.landslide_pixels for block in blocks if block.part == part):
            raise StudyError(
                f"{mask}: none of the patches for {part} holds a landslide; of {number} patches with known pixels the "
                f"last {options.test:.0%} are for test, those before for validation (split.validation, "
                f"{options.validation:.0%}); change these shares, or add patches"
            )
    return tuple(blocks)


def _shuffled_in_strata(ranked: list[int], options: SplitOptions, seed: int) -> list[int]:
    """Shuffle runs of neighbours in rank.

    Each run is long enough to hold a block of the smallest part.
    """
    length = max(len(SPLIT_PARTS), math.ceil(1 / min(options.validation, options.test)))
    generator = np.random.default_rng(seed)
    runs = [ranked[start : start + length] for start in range(0, len(ranked), length)]
    return [int(index) for run in runs for index in generator.permutation(run)]


def _assign_parts(count: int, options: SplitOptions) -> list[SplitPart]:
    """Return the part of each of `count` blocks in turn.

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
    """Read a block's pixels (height, width, bands) and its mask (height, width).

    The mask is 255 where too few bands are valid.
    """
    numbers = [stack.descriptions.index(name) + 1 for name in bands]
    pixels = np.moveaxis(stack.read(numbers, window=block.window, out_dtype="float32"), 0, -1)
    known = mask.read(1, window=block.window)
    wanting = np.isnan(pixels)
    unknown = wanting.any(axis=-1)
    if optional:
        members = np.array([band_named(name).group for name in bands])
        for group in optional:
            wanting[..., members == group] = wanting[..., members == group].any(axis=-1, keepdims=True)
        pixels[wanting] = np.nan
        unknown = wanting.all(axis=-1) | wanting[..., ~np.isin(members, list(optional))].any(axis=-1)
    return pixels, np.where(unknown, UNKNOWN, known).astype(np.uint8)


def _block_slices(block: Block, window: Window) -> tuple[slice, slice]:
    row, column = int(window.row_off - block.window.row_off), int(window.col_off - block.window.col_off)
    return slice(row, row + int(window.height)), slice(column, column + int(window.width))


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
    """Draw patches without a landslide, at most `empty_share` of all."""
    empty = [index for index, (_, _, landslide) in enumerate(kept) if not landslide]
    full = len(kept) - len(empty)
    slack = 1e-9  # 2 × 0.6 / 0.4 must be 3
    most = math.floor(full * empty_share / (1 - empty_share) + slack) if empty_share < 1 else len(empty)
    allowed = min(len(empty), most)
    drawn = set(np.random.default_rng(seed).choice(empty, allowed, replace=False).tolist()) if allowed else set()
    return [entry for index, entry in enumerate(kept) if entry[2] or index in drawn]
