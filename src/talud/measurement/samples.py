"""Samples of a raster: windows on which features are measured, and histograms of its bands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import SHADES, Group, band
from talud.contract import Difference
from talud.engine import coverage
from talud.mapping.domain import count_bins
from talud.mapping.reader import StackReader

MAX_SAMPLE_PIXELS = 1 << 20  # of all squares together, at most
MIN_MAPPED_SHARE = 0.75  # of a square
MAX_BINS = 32  # of a training histogram, at most


def sample_windows(stack: StackReader, windows: Sequence[Window], side: int) -> NDArray[np.float32]:
    """Read squares of a raster in a fixed random order, without those that are too little mapped.

    Where the raster says that cloud, or radar layover or shadow, hides a band, it is invalid.

    Args:
        stack: raster to read.
        windows: windows in whose corner a square may begin; smaller ones are left out.
        side: side of a square in pixels.

    Returns:
        (squares, bands, side, side), in contract order, NaN where invalid; at most `MAX_SAMPLE_PIXELS` pixels, and none
        where nothing fits.

    Raises:
        SourceError: the raster is damaged.
    """
    large = [window for window in windows if min(window.height, window.width) >= side]
    found: list[NDArray[np.float32]] = []
    for number in np.random.default_rng(0).permutation(len(large)):
        window = Window(large[number].col_off, large[number].row_off, side, side)
        values = stack.read(window)
        for name, hidden in stack.shades(window).items():
            of = [one.group is SHADES[name] for one in stack.contract.input.bands]
            values[np.ix_(of)] = np.where(hidden, np.float32(np.nan), values[np.ix_(of)])
        if (coverage.blocked(values, stack.contract) == 0).mean() >= MIN_MAPPED_SHARE:
            found.append(values)
        if (len(found) + 1) * side**2 > MAX_SAMPLE_PIXELS:
            break
    return np.stack(found) if found else np.empty((0, len(stack.contract.input.bands), side, side), np.float32)


def band_histogram(values: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the edges and shares of a histogram whose bins hold about as many values each.

    Args:
        values: finite values, at least one.

    Returns:
        Edges, from the lowest value to the highest, at most 33; the share of the values in each bin, which holds its
        lower edge, the last one both. Fewer bins where values repeat; one of no width where all are equal.
    """
    quantiles = np.quantile(values, np.linspace(0, 1, MAX_BINS + 1), method="lower")
    edges = np.unique(quantiles.astype(np.float64))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    shares = count_bins(values, tuple(edges)) / values.size
    return tuple(edges.tolist()), tuple(shares.tolist())


def difference_histograms(stack: NDArray[np.float32], bands: Sequence[str]) -> tuple[Difference, ...]:
    """Return the histograms of differences of neighbouring bands of one unit: optical bands, and SAR bands.

    Args:
        stack: training pixels, (..., bands), NaN where invalid.
        bands: names of the bands.
    """
    entries = []
    for (first, minuend), (second, subtrahend) in pairwise(enumerate(bands)):
        if band(minuend).group == band(subtrahend).group != Group.TERRAIN:
            values = stack[..., first] - stack[..., second]
            values = values[np.isfinite(values)]
            if values.size:
                edges, shares = band_histogram(values)
                entries.append(Difference(bands=(minuend, subtrahend), edges=edges, shares=shares))
    return tuple(entries)
