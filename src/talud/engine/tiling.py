"""Exact tiling of rasters.

The map of the tiles equals that of one pass over the raster.

A network with pooling layers sees a lattice of 2^depth pixels, and an output pixel depends on a limited neighbourhood,
the halo. A tile's window therefore starts on the lattice and extends a halo beyond the core that the tile writes. The
network treats the raster's edge in its own way, so a window must end where the raster ends: it never extends past the
padded raster (the raster, with NaN rows and columns at the bottom and right up to a multiple of the alignment), but is
shifted inwards. All windows have the same shape, so that ONNX Runtime plans its memory once.

This module contains integer geometry only; it reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


def round_up(length: int, multiple: int) -> int:
    """Round a length up to a multiple."""
    return -(-length // multiple) * multiple


class PixelWindow(NamedTuple):
    """Rectangle of pixels, like `rasterio.windows.Window`."""

    col_off: int
    row_off: int
    width: int
    height: int

    def toslices(self) -> tuple[slice, slice]:
        """Return the rows and columns as slices."""
        rows = slice(self.row_off, self.row_off + self.height)
        return rows, slice(self.col_off, self.col_off + self.width)


class Edges(NamedTuple):
    """Sides on which a core touches the raster's edge.

    The core is filled up to whole lattice cells.
    """

    top: bool
    left: bool
    bottom: bool
    right: bool


@dataclass(frozen=True)
class Tile:
    """Core and window of a tile.

    Attributes:
        core: pixels that only this tile writes, inside the raster.
        window: pixels that the network reads; may extend past the raster's bottom and right into its padding.
        edges: sides on which the core reaches the raster's edge, if it has its whole halo on all others; None if an
            edge lies within the halo.
        halo: pixels of context on the sides that are not on an edge.
    """

    core: PixelWindow
    window: PixelWindow
    edges: Edges | None
    halo: int

    @property
    def batch_key(self) -> tuple[Edges | None, int, int]:
        """Key of tiles that fit into one pass.

        The key consists of the edges and the shape of the core.
        """
        return self.edges, self.core.height, self.core.width

    @property
    def core_slices(self) -> tuple[slice, slice]:
        """Slices of the core within the window."""
        top = self.core.row_off - self.window.row_off
        left = self.core.col_off - self.window.col_off
        return slice(top, top + self.core.height), slice(left, left + self.core.width)

    def cell_slices(self, margins: tuple[int, int, int, int], alignment: int) -> tuple[slice, slice]:
        """Return slices of the core's cells and a margin.

        The slices index an array of the window.

        Args:
            margins: pixels above, left of, below and right of the cells; at most as many as the window has.
            alignment: side of a cell.
        """
        rows, columns = (
            slice(inner.start - before, inner.start + round_up(inner.stop - inner.start, alignment) + after)
            for inner, before, after in zip(self.core_slices, margins[:2], margins[2:], strict=True)
        )
        return rows, columns


@dataclass(frozen=True)
class Axis:
    """Rows or columns, cut into cores.

    Attributes:
        length: length of the raster along this axis, at least 1.
        core: length of a core, a multiple of the alignment; only the last one may be shorter.
        halo: pixels of context on each side, a multiple of the alignment.
        alignment: step of the lattice in pixels.
    """

    length: int
    core: int
    halo: int
    alignment: int

    @classmethod
    def balanced(cls, length: int, longest_core: int, halo: int, alignment: int) -> Axis:
        """Cut an axis into the fewest equal cores.

        Args:
            length: length of the raster along this axis.
            longest_core: largest length of a core; at least one lattice cell is used.
            halo: pixels of context on each side.
            alignment: step of the lattice in pixels.
        """
        padded = round_up(length, alignment)
        longest = max(longest_core // alignment * alignment, alignment)
        count = -(-padded // longest)
        core = round_up(-(-padded // count), alignment)
        return cls(length, core, round_up(halo, alignment), alignment)

    @property
    def padded(self) -> int:
        """Length of the padded raster."""
        return round_up(self.length, self.alignment)

    @property
    def window(self) -> int:
        """Length of every window."""
        return min(self.padded, self.core + 2 * self.halo)

    def __iter__(self) -> Iterator[tuple[range, range]]:
        """Yield each core and window as ranges."""
        for start in range(0, self.length, self.core):
            first = min(max(start - self.halo, 0), self.padded - self.window)
            yield range(start, min(start + self.core, self.length)), range(first, first + self.window)

    def touched_edges(self, core: range) -> tuple[bool, bool] | None:
        """Return the edges that a core touches.

        The result states if the core touches the start and the end of the axis. It is None if an edge is closer
        than the halo.
        """
        distances = core.start, self.padded - round_up(core.stop, self.alignment)
        if any(0 < distance < self.halo for distance in distances):
            return None
        return distances[0] == 0, distances[1] == 0


@dataclass(frozen=True)
class Tiling:
    """Raster cut into tiles, row by row.

    Rows and columns are cut independently.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, shape: tuple[int, int], tile: int, halo: int, alignment: int) -> Tiling:
        """Cut a raster into cores of limited size.

        Args:
            shape: (height, width) of the raster.
            tile: longest side of a core; at least one lattice cell is used.
            halo: pixels of context on each side.
            alignment: step of the lattice in pixels.
        """
        height, width = shape
        return cls(Axis.balanced(height, tile, halo, alignment), Axis.balanced(width, tile, halo, alignment))

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of every window."""
        return self.rows.window, self.columns.window

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of the padded raster."""
        return self.rows.padded, self.columns.padded

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(range(0, self.rows.length, self.rows.core)) * len(range(0, self.columns.length, self.columns.core))

    def __iter__(self) -> Iterator[Tile]:
        """Yield the tiles, row by row."""
        for core_rows, window_rows in self.rows:
            for core_columns, window_columns in self.columns:
                edges = _edges(self.rows.touched_edges(core_rows), self.columns.touched_edges(core_columns))
                yield Tile(
                    _window(core_rows, core_columns), _window(window_rows, window_columns), edges, self.rows.halo
                )


def batch_tiles(tiles: Iterable[Tile], size: int) -> Iterator[list[Tile]]:
    """Yield tiles in batches of equal key.

    Batches have exactly `size` tiles.

    A batch is yielded when it is full; the remaining tiles follow one by one.
    """
    waiting: dict[tuple[Edges | None, int, int], list[Tile]] = {}
    for tile in tiles:
        batch = waiting.setdefault(tile.batch_key, [])
        batch.append(tile)
        if len(batch) == size:
            yield waiting.pop(tile.batch_key)
    for batch in waiting.values():
        yield from ([tile] for tile in batch)


def _window(rows: range, columns: range) -> PixelWindow:
    return PixelWindow(columns.start, rows.start, len(columns), len(rows))


def _edges(rows: tuple[bool, bool] | None, columns: tuple[bool, bool] | None) -> Edges | None:
    return Edges(rows[0], columns[0], rows[1], columns[1]) if rows and columns else None
