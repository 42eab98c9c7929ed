"""Test-time augmentation by the symmetries of a square.

Landslides have no preferred direction, but a trained network may have one. Each tile is run eight times, flipped and
transposed (the dihedral group of order 8, D4), and each probability is transformed back. The result does not depend on
the orientation of the raster, and the spread of the eight values measures how certain it is.

It stays exact under tiling: the sides of the padded raster are multiples of the alignment, so that a symmetry maps
lattice cells to lattice cells and windows to windows, and a transformed tile is a tile of the transformed raster.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from talud.engine.runtime import Model
from talud.engine.tiling import Edges, PixelWindow, Tile


class Symmetry(NamedTuple):
    """One of the eight symmetries of a square.

    The rows are reversed first, then the columns; then both are transposed.
    """

    rows_reversed: bool
    columns_reversed: bool
    transposed: bool

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Transform an array (…, height, width)."""
        mirrored = self._mirrored(array)
        return mirrored.swapaxes(-2, -1) if self.transposed else mirrored

    def invert(self, array: NDArray[Any]) -> NDArray[Any]:
        """Transform an array (…, height, width) back."""
        return self._mirrored(array.swapaxes(-2, -1) if self.transposed else array)

    def transform_tile(self, tile: Tile, alignment: int) -> Tile:
        """Return the tile of the transformed raster.

        Its core is filled up to whole lattice cells.

        Args:
            tile: tile of the raster.
            alignment: side of a lattice cell.

        Returns:
            The tile, with offsets relative to its own window.
        """
        rows, columns = tile.cell_slices((0, 0, 0, 0), alignment)
        height, width = tile.window.height, tile.window.width
        if self.rows_reversed:
            rows = slice(height - rows.stop, height - rows.start)
        if self.columns_reversed:
            columns = slice(width - columns.stop, width - columns.start)
        if self.transposed:
            (rows, columns), (height, width) = (columns, rows), (width, height)
        core = PixelWindow(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        return Tile(core, PixelWindow(0, 0, width, height), tile.edges and self._transform_edges(tile.edges), tile.halo)

    def _mirrored(self, array: NDArray[Any]) -> NDArray[Any]:
        return array[..., :: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def _transform_edges(self, edges: Edges) -> Edges:
        top, left, bottom, right = edges
        if self.rows_reversed:
            top, bottom = bottom, top
        if self.columns_reversed:
            left, right = right, left
        return Edges(left, top, right, bottom) if self.transposed else Edges(top, left, bottom, right)


SYMMETRIES = tuple(Symmetry(*ways) for ways in product((False, True), repeat=3))


def average_symmetries(
    model: Model, stack: NDArray[np.float32], tile: Tile
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and deviation of eight probabilities.

    Both are (height, width) and equal those of eight passes over the whole padded raster, transformed. The sums are
    over sorted values, so that they depend neither on the tile nor on the orientation of the raster.

    Args:
        model: model to run.
        stack: bands (bands, height, width) of the tile's window, as for `Model.run_cores`.
        tile: tile of `Model.tiling`.

    Raises:
        ModelError: The network fails, or returns values that are not probabilities.
    """
    height, width = tile.core.height, tile.core.width
    alignment = model.contract.input.alignment
    found = np.empty((len(SYMMETRIES), height, width), np.float32)
    for values, (turned, symmetry) in zip(found, _symmetric_tiles(tile, alignment), strict=True):
        [probability] = model.run_cores([symmetry.apply(stack)], [turned])
        values[:] = symmetry.invert(probability)[:height, :width]
    found.sort(axis=0)
    count = np.float32(len(found))
    mean = _pairwise_sum(found) / count
    spread: NDArray[np.float32] = np.sqrt(_pairwise_sum((found - mean) ** 2) / count)
    return mean, spread


def _symmetric_tiles(tile: Tile, alignment: int) -> list[tuple[Tile, Symmetry]]:
    """Return a tile under all symmetries, by edges.

    A model keeps few cropped networks open. Neighbouring tiles along an edge, and the two ends of a row, need the same
    four networks: every other tile uses them in reverse order, so that it starts with the ones that are still open.
    """
    turned = [(symmetry.transform_tile(tile, alignment), symmetry) for symmetry in SYMMETRIES]
    if tile.edges is None:  # the network is not cropped
        return turned
    column = tile.core.col_off // tile.core.width
    return sorted(turned, key=lambda way: way[0].edges or (), reverse=tile.edges.right or column % 2 == 1)


def _pairwise_sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of eight arrays, added in pairs.

    The order of NumPy's own sum depends on the shape.
    """
    while len(values) > 1:
        values = values[::2] + values[1::2]
    total: NDArray[np.float32] = values[0]
    return total
