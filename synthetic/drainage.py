"""D8 drainage over a terrain, with sinks resolved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from synthetic.noise import Field

_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # half of the eight neighbours; the other half follows by symmetry


@dataclass(frozen=True)
class Drainage:
    """Flow tree along which every pixel drains to the border of the raster.

    Attributes:
        shape: (height, width) of the raster.
        receiver: int64 (pixels,), flat index to which a pixel drains; border pixels drain to themselves.
        distance: float64 (pixels,), metres to the receiver; 0 at the border.
        levels: flat indices grouped by number of steps to the border, from one step upwards.
    """

    shape: tuple[int, int]
    receiver: NDArray[np.int64]
    distance: Field
    levels: tuple[NDArray[np.int64], ...]

    @classmethod
    def from_elevation(cls, elevation: Field, pixel: float) -> Drainage:
        """Return the drainage by steepest descent; sinks drain over their lowest pass.

        Both follow from the minimum spanning tree of the pixel graph whose edge weights are the elevation of the higher
        end (Boruvka's carving, as in Cordonnier et al. 2019).

        Args:
            elevation: elevation in metres, (height, width).
            pixel: pixel size in metres.
        """
        height, width = elevation.shape
        index = np.arange(elevation.size).reshape(elevation.shape)
        tree = csgraph.minimum_spanning_tree(_edges(elevation, index))
        _, receiver = csgraph.breadth_first_order(tree, elevation.size, directed=False)
        receiver = receiver[:-1].astype(np.int64)
        outlet = receiver == elevation.size
        receiver[outlet] = np.flatnonzero(outlet)
        rows, columns = np.divmod(np.arange(elevation.size), width)
        distance = pixel * np.hypot(rows - rows[receiver], columns - columns[receiver])
        return cls((height, width), receiver, distance, _levels(receiver))

    def accumulate(self) -> Field:
        """Return the number of pixels that drain through each pixel, (height, width)."""
        area = np.ones(self.receiver.size)
        for level in reversed(self.levels):
            np.add.at(area, self.receiver[level], area[level])
        return area.reshape(self.shape)

    def path(self, start: int, steps: int) -> NDArray[np.int64]:
        """Return the flat indices along the flow path from `start`, at most `steps`."""
        cells = [start]
        while len(cells) < steps and self.receiver[cells[-1]] != cells[-1]:
            cells.append(int(self.receiver[cells[-1]]))
        return np.array(cells)


def _edges(elevation: Field, index: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the graph of neighbours, with one outlet node for all border pixels."""
    height, width = elevation.shape
    flat = elevation.ravel() - elevation.min() + 10.0  # positive, because sparse graphs drop weights of 0
    first, second, weight = [], [], []
    for down, right in _STEPS:
        here = index[: height - down, max(0, -right) : width - max(0, right)].ravel()
        there = index[down:, max(0, right) : width + min(0, right)].ravel()
        drop = np.abs(flat[here] - flat[there]) / np.hypot(down, right)
        first.append(here)
        second.append(there)
        weight.append(np.maximum(flat[here], flat[there]) - 1e-4 * drop)  # the steepest of edges with equal ends
    border = np.unique(np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]]))
    first.append(border)
    second.append(np.full(border.size, flat.size))
    weight.append(np.full(border.size, 1e-3))
    nodes = flat.size + 1
    entries = (np.concatenate(weight), (np.concatenate(first), np.concatenate(second)))
    return sparse.csr_matrix(entries, shape=(nodes, nodes))


def _levels(receiver: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the pixels grouped by number of steps to the border, by pointer doubling."""
    steps = (receiver != np.arange(receiver.size)).astype(np.int64)
    ancestor = receiver
    while True:
        further = steps + steps[ancestor]
        if np.array_equal(further, steps):
            break
        steps, ancestor = further, ancestor[ancestor]
    order = np.argsort(steps, kind="stable")
    bounds = np.searchsorted(steps[order], np.arange(1, steps.max() + 2))
    return tuple(order[low:high] for low, high in pairwise(bounds))
