"""Land cover before the event."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from synthetic.noise import Field, fractal_field
from synthetic.profiles import BasinProfile
from synthetic.terrain import RIVER_PIXELS, Terrain


class Cover(IntEnum):
    """Land cover classes."""

    FOREST = 0
    PASTURE = 1
    CROP = 2
    BARE = 3
    WATER = 4
    GRAVEL = 5
    ROAD = 6


@dataclass(frozen=True)
class LandCover:
    """Land cover of a basin.

    Attributes:
        kind: uint8 (height, width), class as a Cover.
        field: int64 (height, width), number of the field, -1 outside farmland.
        tone: float64 (height, width), relative brightness of fields and forest stands, 1 on average.
        tilled: float64 (height, width), change of VV of fields between the two scenes, in dB.
    """

    kind: NDArray[np.uint8]
    field: NDArray[np.int64]
    tone: Field
    tilled: Field


def simulate_land_cover(profile: BasinProfile, terrain: Terrain, rng: np.random.Generator) -> LandCover:
    """Return land cover: forest, fields on gentle slopes, rivers, roads and clearings."""
    shape = terrain.elevation.shape
    field, hedge = _fields(shape, rng)
    farmed = _farmland(profile, terrain, field, rng)
    count = int(field.max()) + 1
    shares = (0.72 * (1 - profile.bare), 0.28 * (1 - profile.bare), profile.bare)
    crop = rng.choice([Cover.PASTURE, Cover.CROP, Cover.BARE], size=count, p=shares)
    kind = np.where(farmed & ~hedge, crop[field], Cover.FOREST).astype(np.uint8)
    tended, wild = 0.20 * rng.standard_normal(count), 0.13 * fractal_field(shape, 1.2, rng, 50)
    tone = np.exp(np.where(farmed, tended[field], wild))
    tilled = np.where(crop == Cover.PASTURE, 0.4, 1.6) * rng.standard_normal(count)
    harvested = (crop == Cover.BARE) & (rng.random(count) < 0.35)
    tilled[harvested] = rng.normal(-3.0, 0.8, count)[harvested]
    _add_clearings(kind, rng)
    _add_roads(kind, terrain, rng)
    _add_rivers(kind, terrain, rng)
    outside = (kind == Cover.FOREST) | (kind >= Cover.WATER)
    return LandCover(kind, np.where(farmed, field, -1), tone, np.where(farmed & ~outside, tilled[field], 0.0))


def _fields(shape: tuple[int, int], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the number of the rectangular field at each pixel, and a mask of hedges.

    Fields of one farm have the same orientation.
    """
    rows, columns = np.indices(shape, dtype=np.float64)
    rows += 1.2 * fractal_field(shape, 2.0, rng, 60)
    columns += 1.2 * fractal_field(shape, 2.0, rng, 60)
    farms = max(4, shape[0] * shape[1] // 45**2)
    centres = rng.random((farms, 2)) * shape
    farm = cKDTree(centres).query(np.column_stack([rows.ravel(), columns.ravel()]))[1].reshape(shape)
    angle = rng.uniform(0, np.pi, farms)[farm]
    across = (rows * np.cos(angle) + columns * np.sin(angle)) / rng.uniform(7, 14, farms)[farm]
    along = (columns * np.cos(angle) - rows * np.sin(angle)) / rng.uniform(9, 20, farms)[farm]
    code = (farm * 1000 + np.floor(across) + 300) * 1000 + np.floor(along) + 300
    field = np.unique(code.ravel(), return_inverse=True)[1].reshape(shape)
    hedge = (np.minimum(across % 1, along % 1) < 0.09) & (rng.random(farms) < 0.6)[farm]
    return field.astype(np.int64), hedge


def _farmland(
    profile: BasinProfile, terrain: Terrain, field: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a mask of the most suitable fields: gentle, low and clustered."""
    slope = ndimage.gaussian_filter(terrain.slope, 3.0)
    height = terrain.elevation - terrain.elevation.min()
    suitable = -slope / 9 - height / height.max() * 1.2 + 1.3 * fractal_field(field.shape, 2.0, rng, 250)
    mean = ndimage.mean(suitable, field, np.arange(field.max() + 1))[field]
    return np.asarray(mean > np.quantile(mean, 1 - profile.farmland))


def _add_clearings(kind: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Add bare spots of a few pixels, such as huts, tree falls and outcrops."""
    spots = ndimage.gaussian_filter(rng.standard_normal(kind.shape), 0.55) + 0.12 * fractal_field(
        kind.shape, 1.5, rng, 80
    )
    kind[spots > np.quantile(spots, 0.993)] = Cover.BARE


def _add_roads(kind: NDArray[np.uint8], terrain: Terrain, rng: np.random.Generator) -> None:
    """Add unpaved roads along contours."""
    smooth = ndimage.gaussian_filter(terrain.elevation, 5.0)
    away = fractal_field(kind.shape, 2.0, rng, 300)
    for level in np.quantile(smooth, (0.15, 0.45)):
        above = smooth > level
        kind[above & ~ndimage.binary_erosion(above, border_value=1) & (away > rng.uniform(-0.2, 0.6))] = Cover.ROAD


def _add_rivers(kind: NDArray[np.uint8], terrain: Terrain, rng: np.random.Generator) -> None:
    """Add rivers with gravel banks, wider with larger drainage area."""
    width = 0.75 * (terrain.river_size / RIVER_PIXELS) ** 0.42
    reach = terrain.river_distance / width + 0.3 * fractal_field(kind.shape, 1.8, rng, 30)
    bed = reach < 1.9
    kind[bed] = Cover.GRAVEL
    kind[bed & (reach + 0.5 * fractal_field(kind.shape, 1.5, rng, 40) < 0.55)] = Cover.WATER
