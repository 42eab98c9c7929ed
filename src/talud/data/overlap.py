"""Refusal of pixels that two areas of a project share without permission.

Scores of a transfer or gate area say nothing where a model was trained on the same ground. Areas are compared by their
sources, not by their stacks, which may be missing or older than params.yaml. Whichever of two areas is stacked last
finds the other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rasterio.warp import transform
from rasterio.windows import Window

from talud.data import sources
from talud.data.inventory import Polygons
from talud.data.mixer import Mixer, grid_of, mixing
from talud.data.recipe import Recipe, recipe_of
from talud.errors import ParamsError, TaludError
from talud.grid import Grid
from talud.params import Area
from talud.project import Project


@dataclass(frozen=True)
class _Footprint:
    """The pixels of an area.

    Some band is valid there, and they lie within the boundary if there is one.
    """

    mixer: Mixer
    boundary: Polygons | None

    @classmethod
    def of(cls, recipe: Recipe, mixer: Mixer) -> Self:
        """Return the footprint of a recipe whose sources are open."""
        path = recipe.files.get("boundary")
        return cls(mixer, Polygons.read(path, "boundary", mixer.grid.crs) if path else None)

    def pixels(self, window: Window) -> NDArray[np.bool_]:
        """Return a mask of a window's pixels in the area, (height, width)."""
        measured = [index for index, name in enumerate(self.mixer.bands) if name not in self.mixer.shades]
        values, _ = self.mixer.mix(window)
        inside = np.asarray(np.isfinite(values[measured]).any(axis=0))
        if self.boundary is not None:
            inside[~self.boundary.cover(self.mixer.grid.crop(window), all_touched=False)] = False
        return inside


def refuse_overlap(project: Project, recipe: Recipe, mixer: Mixer) -> None:
    """Refuse an area that shares pixels with another, unless params.yaml allows it.

    Areas whose sources cannot be used, or are not there, are passed over: `talud stack` of that area says so.

    Args:
        project: the project.
        recipe: of the area.
        mixer: the open sources of the area.

    Raises:
        ParamsError: they do.
    """
    if recipe.options.overlap == "allow":
        return
    for name, area in project.params.areas.items():
        if name == recipe.name or not _excluded(recipe.area, area):
            continue
        try:
            other = recipe_of(project, name)
            if not _windows(mixer.grid, grid_of(other)):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `talud stack` of that area shows them
                with mixing(other) as opened:
                    shared = _shared(_Footprint.of(recipe, mixer), _Footprint.of(other, opened), area)
        except TaludError:
            continue
        if shared:
            raise ParamsError(
                f"areas '{recipe.name}' ({recipe.area.role}) and '{name}' ({area.role}) overlap: {shared:,} "
                f"{'pixel is' if shared == 1 else 'pixels are'} in both, and scores there would be of ground that a "
                "model was trained or chosen on; change the bounds or boundary of one, or set stack.overlap to allow"
            )


def _excluded(one: Area, other: Area) -> bool:
    """Check whether two areas must not share pixels.

    Patches have no coordinates and never overlap.
    """
    if one.patches or other.patches:
        return False
    # The blocks of each training area are split on their own: one pixel could be trained on and tested.
    return one.role != other.role or one.role == "training"


def _windows(grid: Grid, other: Grid) -> list[Window]:
    """Return windows that cover the overlap of a grid with another grid.

    There are none where the grids lie apart.
    """
    left, bottom, right, top = sources.bounds_in(grid.crs, other)
    into_pixels = ~grid.transform
    (first_column, first_row), (last_column, last_row) = into_pixels * (left, top), into_pixels * (right, bottom)
    columns = max(round(first_column), 0), min(round(last_column), grid.width)
    rows = max(round(first_row), 0), min(round(last_row), grid.height)
    if columns[1] <= columns[0] or rows[1] <= rows[0]:
        return []
    common = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
    return [
        Window(common.col_off + window.col_off, common.row_off + window.row_off, window.width, window.height)
        for window in grid.crop(common).windows(256)
    ]


def _shared(one: _Footprint, other: _Footprint, other_area: Area) -> int:
    """Count the pixels that two areas share.

    A pixel of one area counts if its centre lies in a pixel of the other, and it belongs to both.
    """
    grid = other.mixer.grid
    count = 0
    for window in _windows(one.mixer.grid, grid):
        rows, columns, x, y = _centres(one.mixer.grid.crop(window), grid)
        inside = (rows >= 0) & (rows < grid.height) & (columns >= 0) & (columns < grid.width)
        if other_area.bounds:
            left, bottom, right, top = other_area.bounds
            inside &= (x >= left) & (x < right) & (y > bottom) & (y <= top)
        if not inside.any():
            continue
        inside &= one.pixels(window)
        if not inside.any():
            continue
        rows, columns = rows[inside], columns[inside]
        top_row, left_column = int(rows.min()), int(columns.min())
        there = Window(left_column, top_row, int(columns.max()) - left_column + 1, int(rows.max()) - top_row + 1)
        count += int(np.count_nonzero(other.pixels(there)[rows - top_row, columns - left_column]))
    return count


def _centres(
    grid: Grid, other: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the position of each pixel's centre in another grid.

    Row and column in that grid, then x and y in its CRS, each (height, width).
    """
    columns, rows = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    xs, ys = grid.transform * (columns, rows)
    if grid.crs != other.crs:
        moved = transform(grid.crs, other.crs, xs.ravel(), ys.ravel())
        xs, ys = (np.asarray(values).reshape(grid.shape) for values in moved)
    there_columns, there_rows = ~other.transform * (xs, ys)
    return (
        np.floor(np.nan_to_num(there_rows, nan=-1, posinf=-1, neginf=-1)).astype(np.int64),
        np.floor(np.nan_to_num(there_columns, nan=-1, posinf=-1, neginf=-1)).astype(np.int64),
        xs,
        ys,
    )
