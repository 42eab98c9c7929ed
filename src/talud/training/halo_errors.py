"""Errors of halos smaller than the exact one, on the training areas.

A tile's error is largest along the border of its core, and comes from the side that is nearest. So a core as wide as
the exact halo shows what one of any size would: its far side is out of reach. The cores lie on landslides, for where
all is background the network is sure whatever it sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.data.patches import Block
from talud.data.record import current_stack
from talud.engine import coverage
from talud.engine.runtime import Model
from talud.engine.tiling import PixelWindow, Rim, Tile
from talud.mapping.reader import open_stack
from talud.project import Project

_Item = TypeVar("_Item")
MAX_WINDOWS = 5  # windows, over all areas: at 64 filters each takes a second and a half of two cores
_INTERIOR = Rim(False, False, False, False)


def measure_halo_errors(model: Model, project: Project, blocks: Mapping[str, Sequence[Block]]) -> dict[int, float]:
    """The largest absolute difference of a probability from the exact one, for each smaller halo on the lattice.

    Args:
        model: as it ships.
        project: where the areas' stacks lie.
        blocks: of each training area.

    Returns:
        Halo in pixels → difference, over the mapped pixels of all cores; empty where no area is large enough for a
        core with its whole halo on each side, all are patch stacks, or none has a mapped pixel there.

    Raises:
        SourceError: a stack cannot be read.
        MismatchError: a stack does not fit the model's contract.
        ModelError: the network fails.
    """
    samples = _read_samples(model, project, blocks)
    if not samples:
        return {}
    mapped = np.stack([_mapped(sample, model) for sample in samples])
    exact = _core_probabilities(model, samples, model.halo)[mapped]
    return {
        halo: float(np.abs(_core_probabilities(model, samples, halo)[mapped] - exact).max())
        for halo in range(0, model.halo, model.contract.input.alignment)
    }


def _read_samples(model: Model, project: Project, blocks: Mapping[str, Sequence[Block]]) -> list[NDArray[np.float32]]:
    """The bands of some windows that each hold a core with its whole halo, and a pixel there that is mapped."""
    samples = []
    areas = _spread(list(blocks), MAX_WINDOWS)
    for area in areas:
        with open_stack(current_stack(project, area), model.contract) as stack:
            if stack.info.patch:  # its tiles are its patches, whose neighbours are not theirs on the ground
                continue
            windows = _windows(blocks[area], stack.grid.shape, model.halo, model.contract.input.alignment)
            samples += [stack.read(window) for window in _spread(windows, MAX_WINDOWS // len(areas))]
    return [sample for sample in samples if _mapped(sample, model).any()]


def _windows(blocks: Sequence[Block], shape: tuple[int, int], halo: int, alignment: int) -> list[Window]:
    """Windows three halos wide, on the lattice and inside a raster of (height, width), at blocks with landslides."""
    side = 3 * halo
    if side > min(shape):
        return []
    corners = []
    for block in blocks:
        if block.landslide_pixels:
            places = (block.window.row_off, block.window.height), (block.window.col_off, block.window.width)
            starts = (start + length // 2 - side // 2 for start, length in places)
            ends = (length - side for length in shape)
            corners.append(
                tuple(min(max(start, 0), end) // alignment * alignment for start, end in zip(starts, ends, strict=True))
            )
    return [Window(column, row, side, side) for row, column in dict.fromkeys(corners)]


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """So many of the items, or all where there are fewer, at even distances."""
    count = min(count, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _mapped(sample: NDArray[np.float32], model: Model) -> NDArray[np.bool_]:
    """Return which pixels of a sample's core are mapped."""
    inner = slice(model.halo, -model.halo)
    mapped: NDArray[np.bool_] = coverage.blocked(sample, model.contract)[inner, inner] == 0
    return mapped


def _core_probabilities(model: Model, samples: list[NDArray[np.float32]], halo: int) -> NDArray[np.float32]:
    """The probability over the core of each sample, (samples, height, width), computed with a halo."""
    exact = model.halo
    tile = Tile(PixelWindow(exact, exact, exact, exact), PixelWindow(0, 0, 3 * exact, 3 * exact), _INTERIOR, halo)
    return np.stack([model.cores([sample], [tile])[0] for sample in samples])
