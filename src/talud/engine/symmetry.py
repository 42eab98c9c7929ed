"""Test-time augmentation: the mean over the eight ways in which a square can be turned and mirrored.

Landslides have no preferred direction, a trained network has. Each tile is run eight times, turned and mirrored (the
dihedral group of order 8, D4), and each probability is turned back. What the network says of one place then no longer
depends on how the raster lies, and how far the eight disagree says how sure it is.

It stays exact under tiling: the padded raster's sides are multiples of the alignment, so that turning it takes lattice
cells to lattice cells and windows to windows, and a tile turned is a tile of the turned raster.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from talud.engine.runtime import Model
from talud.engine.tiling import Edges, PixelWindow, Tile


class Symmetry(NamedTuple):
    """One of eight ways to turn a raster: rows reversed, then columns, then both transposed."""

    rows_reversed: bool
    columns_reversed: bool
    transposed: bool

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array (…, height, width) turned."""
        mirrored = self._mirrored(array)
        return mirrored.swapaxes(-2, -1) if self.transposed else mirrored

    def invert(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the array (…, height, width) that `turned` makes this of."""
        return self._mirrored(array.swapaxes(-2, -1) if self.transposed else array)

    def transform_tile(self, tile: Tile, alignment: int) -> Tile:
        """Return the tile of the turned raster that a tile becomes, with whole lattice cells as its core.

        Args:
            tile: of the raster.
            alignment: side of a lattice cell.

        Returns:
            The tile, counted from the corner of its own window.
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

    def _transform_edges(self, rim: Edges) -> Edges:
        top, left, bottom, right = rim
        if self.rows_reversed:
            top, bottom = bottom, top
        if self.columns_reversed:
            left, right = right, left
        return Edges(left, top, right, bottom) if self.transposed else Edges(top, left, bottom, right)


SYMMETRIES = tuple(Symmetry(*ways) for ways in product((False, True), repeat=3))


def average_symmetries(
    model: Model, stack: NDArray[np.float32], tile: Tile
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of the eight probabilities over a tile's core, both (height, width).

    They are those of eight passes over the whole padded raster, turned. The sums are of sorted values, so that they
    depend neither on the tile nor on how the raster lies.

    Args:
        model: to run.
        stack: (bands, height, width) of the tile's window, as for `Model.cores`.
        tile: one of `Model.tiling`.

    Raises:
        ModelError: the network fails, or gives no probability.
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
    """Return a tile in all eight ways, those of one rim together: a model keeps few cropped networks open.

    Neighbours along the rim, and the two ends of a row, go through the same four rims: one forwards, the other
    backwards, so that each begins with those that the one before has left open.
    """
    turned = [(symmetry.transform_tile(tile, alignment), symmetry) for symmetry in SYMMETRIES]
    if tile.edges is None:  # the network is not cropped
        return turned
    column = tile.core.col_off // tile.core.width
    return sorted(turned, key=lambda way: way[0].edges or (), reverse=tile.edges.right or column % 2 == 1)


def _pairwise_sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of eight arrays, pair by pair, since NumPy's own order depends on the shape."""
    while len(values) > 1:
        values = values[::2] + values[1::2]
    total: NDArray[np.float32] = values[0]
    return total
