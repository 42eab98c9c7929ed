"""Squares that stand for a raster: what a network's features are measured on, at home and in a new area."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import SHADES
from talud.engine import coverage
from talud.mapping.reader import StackReader

PIXELS = 1 << 20  # of all squares together, at most
COVERED = 0.75  # of a square, at least, must be mapped


def squares(stack: StackReader, windows: Sequence[Window], side: int) -> NDArray[np.float32]:
    """Squares of a raster, drawn always alike; those that are too little mapped are passed over.

    Where the raster says that cloud, or radar layover or shadow, hides a band, it is invalid.

    Args:
        stack: to read.
        windows: that a square may begin in; one that is smaller holds none.
        side: of a square in pixels.

    Returns:
        (squares, bands, side, side), in contract order, NaN where invalid; at most `PIXELS` pixels, and none where
        nothing fits.

    Raises:
        SourceError: the raster is damaged.
    """
    large = [window for window in windows if min(window.height, window.width) >= side]
    found: list[NDArray[np.float32]] = []
    for number in np.random.default_rng(0).permutation(len(large)):
        window = Window(large[number].col_off, large[number].row_off, side, side)
        values = stack.read(window)
        for name, hidden in stack.shades(window).items():
            of = [band.group is SHADES[name] for band in stack.contract.input.bands]
            values[np.ix_(of)] = np.where(hidden, np.float32(np.nan), values[np.ix_(of)])
        if (coverage.blocked(values, stack.contract) == 0).mean() >= COVERED:
            found.append(values)
        if (len(found) + 1) * side**2 > PIXELS:
            break
    return np.stack(found) if found else np.empty((0, len(stack.contract.input.bands), side, side), np.float32)
