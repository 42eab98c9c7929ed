"""Small stacks for tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from talud.engine.runtime import Model
from talud.grid import Grid
from talud.mapping.reader import open_stack
from talud.mapping.tiles import mapped_probability
from talud.raster import Layout, write_cog

RGB = ("red", "green", "blue")


def grid_of(height: int, width: int, epsg: int = 32618, pixel: float = 12.5) -> Grid:
    return Grid(CRS.from_epsg(epsg), Affine(pixel, 0, 400_000, 0, -pixel, 650_000), height, width)


def write_stack(
    path: Path,
    values: NDArray[np.float32],
    bands: Sequence[str] = RGB,
    grid: Grid | None = None,
    units: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write a stack as `talud stack` does."""
    layout = Layout("float32", float("nan"), bands, units, tags or {})
    with write_cog(path, grid or grid_of(*values.shape[1:]), layout) as raster:
        raster.write(values)
    return path


def noise(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.float32]:
    """Return noise in the value range of the tiny model.

    It is not smooth, so that seams between tiles are detected.
    """
    return np.random.default_rng(seed).uniform(0, 250, (bands, height, width)).astype(np.float32)


def window_probabilities(model: Model, raster: Path, windows: Iterable[Window]) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities of windows, each computed without its context."""
    with open_stack(raster, model.contract) as stack:
        for window in windows:
            yield mapped_probability(model, stack.read(window))
