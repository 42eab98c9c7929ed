"""How a raster is cut into tiles so that the tiled map equals the map of one pass over the whole raster.

A network with poolings sees a lattice of 2^depth pixels, and an output pixel depends on a bounded surrounding, the
halo. A tile's window therefore starts on the lattice and reaches a halo beyond the core that the tile writes. The
network itself treats the raster's edge in its own way, so a window must meet that edge where the raster does: it
never reaches past the padded raster (the raster, with NaN rows and columns at the bottom and right up to a multiple
of the alignment), but shifts inward. All windows have one shape, which spares the runtime new plans.

Everything here is integer geometry; nothing reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rasterio.windows import Window


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not less than `length`."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class Tile:
    """One step of a tiled prediction.

    Attributes:
        core: the pixels that this tile alone writes, inside the raster.
        window: the pixels that the network is given; may reach past the raster's bottom and right into its padding.
    """

    core: Window
    window: Window

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the core in an array of the window."""
        top = self.core.row_off - self.window.row_off
        left = self.core.col_off - self.window.col_off
        return slice(top, top + self.core.height), slice(left, left + self.core.width)


@dataclass(frozen=True)
class Axis:
    """Rows, or columns, cut in equal cores.

    Attributes:
        length: of the raster along this axis, at least 1.
        core: length of a core, a multiple of the alignment; only the last one may be shorter.
        halo: pixels of context on each side, a multiple of the alignment.
        alignment: the lattice.
    """

    length: int
    core: int
    halo: int
    alignment: int

    @classmethod
    def balanced(cls, length: int, longest_core: int, halo: int, alignment: int) -> Axis:
        """As few cores as `longest_core` allows, of equal length, so that no window is larger than it need be."""
        padded = round_up(length, alignment)
        longest = max(longest_core // alignment * alignment, alignment)
        count = -(-padded // longest)
        core = round_up(-(-padded // count), alignment)
        return cls(length, core, round_up(halo, alignment), alignment)

    @property
    def padded(self) -> int:
        """The length of the padded raster."""
        return round_up(self.length, self.alignment)

    @property
    def window(self) -> int:
        """The length of every window."""
        return min(self.padded, self.core + 2 * self.halo)

    def __iter__(self) -> Iterator[tuple[range, range]]:
        """Each core, and its window, as ranges of pixels."""
        for start in range(0, self.length, self.core):
            first = min(max(start - self.halo, 0), self.padded - self.window)
            yield range(start, min(start + self.core, self.length)), range(first, first + self.window)


@dataclass(frozen=True)
class Tiling:
    """A raster cut into tiles, row by row: rows and columns are cut independently."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, shape: tuple[int, int], tile: int, halo: int, alignment: int) -> Tiling:
        """Cut a raster of (height, width) into cores of at most `tile` pixels a side, or one lattice cell."""
        height, width = shape
        return cls(Axis.balanced(height, tile, halo, alignment), Axis.balanced(width, tile, halo, alignment))

    @classmethod
    def within(cls, shape: tuple[int, int], pixels: int, halo: int, alignment: int) -> Tiling:
        """Cut a raster into the fewest tiles whose windows hold at most `pixels`; a lattice cell is the smallest."""
        most = round_up(max(shape), alignment) // alignment
        smallest, largest = 1, most  # in lattice cells; a window grows with its core, so halving finds the largest
        while smallest < largest:
            middle = (smallest + largest + 1) // 2
            if cls._window_pixels(shape, middle * alignment, halo, alignment) <= pixels:
                smallest = middle
            else:
                largest = middle - 1
        return cls.of(shape, smallest * alignment, halo, alignment)

    @staticmethod
    def _window_pixels(shape: tuple[int, int], core: int, halo: int, alignment: int) -> int:
        height, width = (Axis(length, core, round_up(halo, alignment), alignment).window for length in shape)
        return height * width

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of every window."""
        return self.rows.window, self.columns.window

    @property
    def padded(self) -> tuple[int, int]:
        """(height, width) of the padded raster."""
        return self.rows.padded, self.columns.padded

    def __len__(self) -> int:
        """The number of tiles."""
        return len(range(0, self.rows.length, self.rows.core)) * len(range(0, self.columns.length, self.columns.core))

    def __iter__(self) -> Iterator[Tile]:
        """The tiles, row by row."""
        for core_rows, window_rows in self.rows:
            for core_columns, window_columns in self.columns:
                yield Tile(_window(core_rows, core_columns), _window(window_rows, window_columns))


def _window(rows: range, columns: range) -> Window:
    return Window(columns.start, rows.start, len(columns), len(rows))
