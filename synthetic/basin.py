"""A sample basin, whole."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.transform import Affine
from shapely import Polygon, union_all
from shapely.geometry import shape as to_geometry

from synthetic import clouds, inventory, land_cover, landslides, optical, radar, terrain
from synthetic.character import EPSG, PIXEL, Character
from synthetic.clouds import Clouds
from synthetic.landslides import Landslides
from synthetic.noise import Field, fractal
from synthetic.terrain import Terrain
from talud.grid import Grid

DTM_SCALE = 0.2  # metres of one count
_CLOUD_SEEN = 0.2  # opacity from which a cloud is drawn


@dataclass(frozen=True)
class Basin:
    """The sources of a basin, and the truth behind them.

    Attributes:
        grid: of all rasters.
        optical: uint8 (3, height, width), counts of red, green and blue.
        dtm: uint16 (height, width), counts of elevation.
        sar_pre, sar_post: uint16 (height, width), counts of VV amplitude before and after the event.
        inventory: landslides as drawn.
        cloud: clouds as drawn.
        terrain, landslides, clouds: the truth.
    """

    character: Character
    grid: Grid
    optical: NDArray[np.uint8]
    dtm: NDArray[np.uint16]
    sar_pre: NDArray[np.uint16]
    sar_post: NDArray[np.uint16]
    inventory: tuple[Polygon, ...]
    cloud: tuple[Polygon, ...]
    terrain: Terrain
    landslides: Landslides
    clouds: Clouds


def make(character: Character, seed: int, size: int = 900) -> Basin:
    """Make a basin of `size` pixels a side; the same seed makes the same basin."""
    root = np.random.default_rng([seed, zlib.crc32(character.name.encode())])
    ground, growth, slides, sky, camera, antenna, pen, survey = root.spawn(8)
    relief = terrain.raise_terrain(character, size, ground)
    cover = land_cover.grow(character, relief, growth)
    released = landslides.release(character, relief, slides)
    above = clouds.drift(character, (size, size), sky)
    pre, post = radar.scan(character, relief, cover, released, antenna)
    transform = Affine(PIXEL, 0, character.corner[0], 0, -PIXEL, character.corner[1])
    return Basin(
        character=character,
        grid=Grid(CRS.from_epsg(EPSG), transform, size, size),
        optical=optical.photograph(character, relief, cover, released, above, camera),
        dtm=_survey(relief, survey),
        sar_pre=pre,
        sar_post=post,
        inventory=inventory.digitise(released, transform, pen),
        cloud=_outline(above.cover, transform),
        terrain=relief,
        landslides=released,
        clouds=above,
    )


def _survey(relief: Terrain, rng: np.random.Generator) -> NDArray[np.uint16]:
    """The terrain as a radar survey before the event knows it: a little blurred, and off by about a metre."""
    error: Field = 0.8 * fractal(relief.elevation.shape, 0.8, rng, 12)
    return np.rint((relief.elevation + error) / DTM_SCALE).astype(np.uint16)


def _outline(cover: Field, transform: Affine) -> tuple[Polygon, ...]:
    """Generous outlines of the clouds."""
    seen = (cover > _CLOUD_SEEN).astype(np.uint8)
    parts = [to_geometry(geometry) for geometry, _ in shapes(seen, mask=seen > 0, transform=transform)]
    drawn = union_all([part.buffer(2 * PIXEL).simplify(PIXEL / 2) for part in parts if part.area > 6 * PIXEL**2])
    return tuple(part for part in getattr(drawn, "geoms", [drawn]) if not part.is_empty)
