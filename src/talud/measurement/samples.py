"""Sample windows and band histograms of a raster."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import OCCLUSION_MASKS, Group, band_named
from talud.contract import Difference
from talud.engine import coverage
from talud.mapping.domain import count_bins
from talud.mapping.reader import StackReader

# Pixels of all sample windows together.
MAX_SAMPLE_PIXELS = 1 << 20
# Share of a window's pixels that can be mapped.
MIN_MAPPED_SHARE = 0.75
# Bins of a training histogram.
MAX_HISTOGRAM_BINS = 32


def sample_windows(stack: StackReader, windows: Sequence[Window], side: int) -> NDArray[np.float32]:
    """Read square sample windows in a fixed random order.

    Pixels that the raster's masks mark as cloud, radar layover or radar shadow are invalid. Windows with less than
    `MIN_MAPPED_SHARE` of mappable pixels are skipped.

    Args:
        stack: raster to read.
        windows: windows at whose upper left corner a square is read; smaller ones are skipped.
        side: side of a square in pixels.

    Returns:
        float32 (squares, bands, side, side), bands in contract order, NaN where invalid; at most `MAX_SAMPLE_PIXELS`
        pixels; (0, bands, side, side) if no window qualifies.

    Raises:
        SourceError: the raster is damaged.
    """
    large = [window for window in windows if min(window.height, window.width) >= side]
    found: list[NDArray[np.float32]] = []
    for number in np.random.default_rng(0).permutation(len(large)):
        window = Window(large[number].col_off, large[number].row_off, side, side)
        values = stack.read(window)
        for name, hidden in stack.occlusion_masks(window).items():
            of = [one.group is OCCLUSION_MASKS[name] for one in stack.contract.input.bands]
            values[np.ix_(of)] = np.where(hidden, np.float32(np.nan), values[np.ix_(of)])
        if (coverage.unmapped_codes(values, stack.contract) == 0).mean() >= MIN_MAPPED_SHARE:
            found.append(values)
        if (len(found) + 1) * side**2 > MAX_SAMPLE_PIXELS:
            break
    return np.stack(found) if found else np.empty((0, len(stack.contract.input.bands), side, side), np.float32)


def band_histogram(values: NDArray[np.floating]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return a histogram with equally filled bins.

    Args:
        values: finite values, at least one.

    Returns:
        Edges from the lowest value to the highest, at most 33, and the share of the values in each bin. A bin
        includes its lower edge, the last bin both edges. Repeated values give fewer bins; equal values give one bin
        of zero width.
    """
    quantiles = np.quantile(values, np.linspace(0, 1, MAX_HISTOGRAM_BINS + 1), method="lower")
    edges = np.unique(quantiles.astype(np.float64))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    shares = count_bins(values, tuple(edges)) / values.size
    return tuple(edges.tolist()), tuple(shares.tolist())


def difference_histograms(stack: NDArray[np.float32], bands: Sequence[str]) -> tuple[Difference, ...]:
    """Return histograms of differences between neighbouring bands.

    Only pairs of optical or of SAR bands are compared.

    Args:
        stack: training pixels, (..., bands), NaN where invalid.
        bands: names of the bands, in the order of the stack.
    """
    entries = []
    for (first, minuend), (second, subtrahend) in pairwise(enumerate(bands)):
        if band_named(minuend).group == band_named(subtrahend).group != Group.TERRAIN:
            values = stack[..., first] - stack[..., second]
            values = values[np.isfinite(values)]
            if values.size:
                edges, shares = band_histogram(values)
                entries.append(Difference(bands=(minuend, subtrahend), edges=edges, shares=shares))
    return tuple(entries)
