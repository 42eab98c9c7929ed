"""Errors of halos smaller than the exact one.

A tile's error is largest along the border of its core, and is caused by the nearest side. A core as wide as the exact
halo therefore shows the same errors as a larger one. The cores are placed on landslides, because probabilities of
homogeneous background hardly depend on the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.data.patches import Block
from talud.data.stack_record import check_current_stack
from talud.engine import coverage
from talud.engine.runtime import Model
from talud.engine.tiling import Edges, PixelWindow, Tile
from talud.mapping.reader import open_stack
from talud.project import Project

_Item = TypeVar("_Item")
MAX_WINDOWS = 5  # number of windows over all areas; with 64 filters each takes about 1.5 s on two cores
_INTERIOR = Edges(False, False, False, False)


def measure_halo_errors(model: Model, project: Project, blocks: Mapping[str, Sequence[Block]]) -> dict[int, float]:
    """Measure the largest error for each smaller halo.

    Args:
        model: exported model.
        project: project with the stacks of the areas.
        blocks: blocks of each training area by name.

    Returns:
        Largest absolute difference from the exact probability over the mapped pixels of all cores, by halo in pixels.
        The halos are multiples of the alignment. It is empty if no area is large enough for a core with its full halo,
        if all areas are patch stacks, or if no core has a mapped pixel.

    Raises:
        SourceError: A stack cannot be read.
        MismatchError: A stack does not fit the model's contract.
        ModelError: The network fails.
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
    """Read windows with mapped pixels and full halos."""
    samples = []
    areas = _spread(list(blocks), MAX_WINDOWS)
    for area in areas:
        with open_stack(check_current_stack(project, area), model.contract) as stack:
            if stack.info.patch:  # neighbouring patches of a patch stack are not neighbours on the ground
                continue
            windows = _windows(blocks[area], stack.grid.shape, model.halo, model.contract.input.alignment)
            samples += [stack.read(window) for window in _spread(windows, MAX_WINDOWS // len(areas))]
    return [sample for sample in samples if _mapped(sample, model).any()]


def _windows(blocks: Sequence[Block], shape: tuple[int, int], halo: int, alignment: int) -> list[Window]:
    """Return windows three halos wide at blocks with landslides.

    They are aligned to multiples of `alignment` and inside a raster of shape (height, width).
    """
    side = 3 * halo
    if side > min(shape):
        return []
    corners = []
    for block in blocks:
        if block.landslide_pixels:
            extents = (block.window.row_off, block.window.height), (block.window.col_off, block.window.width)
            starts = (start + length // 2 - side // 2 for start, length in extents)
            ends = (length - side for length in shape)
            corners.append(
                tuple(min(max(start, 0), end) // alignment * alignment for start, end in zip(starts, ends, strict=True))
            )
    return [Window(column, row, side, side) for row, column in dict.fromkeys(corners)]


def _spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return up to `count` evenly spaced items."""
    count = min(count, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _mapped(sample: NDArray[np.float32], model: Model) -> NDArray[np.bool_]:
    """Return the mask of the mapped pixels of a sample's core."""
    inner = slice(model.halo, -model.halo)
    mapped: NDArray[np.bool_] = coverage.unmapped_codes(sample, model.contract)[inner, inner] == 0
    return mapped


def _core_probabilities(model: Model, samples: list[NDArray[np.float32]], halo: int) -> NDArray[np.float32]:
    """Return the probabilities of the cores with a given halo.

    The shape is (samples, height, width).
    """
    exact = model.halo
    tile = Tile(PixelWindow(exact, exact, exact, exact), PixelWindow(0, 0, 3 * exact, 3 * exact), _INTERIOR, halo)
    return np.stack([model.run_cores([sample], [tile])[0] for sample in samples])
