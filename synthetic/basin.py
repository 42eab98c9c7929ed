"""Generator of a synthetic basin."""

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
from synthetic.clouds import Clouds
from synthetic.landslides import Landslides
from synthetic.noise import Field, fractal_field
from synthetic.profiles import EPSG, PIXEL_METRES, BasinProfile
from synthetic.terrain import Terrain
from talud.grid import Grid

DTM_SCALE = 0.2  # metres per count
_MIN_CLOUD_OPACITY = 0.2  # from which a cloud is outlined


@dataclass(frozen=True)
class Basin:
    """Sources of a basin, and the truth from which they were made.

    Attributes:
        profile: properties of the basin.
        grid: grid of all rasters.
        optical: uint8 (3, height, width), counts of red, green and blue.
        dtm: uint16 (height, width), counts of elevation.
        sar_pre, sar_post: uint16 (2, height, width), counts of VV and VH amplitude before and after the event.
        inventory: outlines of landslides as mapped by a geologist.
        cloud: generalised outlines of clouds.
        terrain, landslides, clouds: the truth.
    """

    profile: BasinProfile
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


def make_basin(profile: BasinProfile, seed: int, size: int = 900) -> Basin:
    """Return a basin of `size` × `size` pixels; the same seed gives the same basin."""
    root = np.random.default_rng([seed, zlib.crc32(profile.name.encode())])
    ground, growth, slides, sky, camera, antenna, pen, survey, cross = root.spawn(9)
    relief = terrain.simulate_terrain(profile, size, ground)
    cover = land_cover.simulate_land_cover(profile, relief, growth)
    released = landslides.simulate_landslides(profile, relief, slides)
    above = clouds.simulate_clouds(profile, (size, size), sky)
    pre, post = radar.simulate_radar(profile, relief, cover, released, antenna, cross)
    transform = Affine(PIXEL_METRES, 0, profile.corner[0], 0, -PIXEL_METRES, profile.corner[1])
    return Basin(
        profile=profile,
        grid=Grid(CRS.from_epsg(EPSG), transform, size, size),
        optical=optical.simulate_optical(profile, relief, cover, released, above, camera),
        dtm=_simulate_dtm(relief, survey),
        sar_pre=pre,
        sar_post=post,
        inventory=inventory.draw_inventory(released, transform, pen),
        cloud=_outline_clouds(above.cover, transform),
        terrain=relief,
        landslides=released,
        clouds=above,
    )


def _simulate_dtm(relief: Terrain, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the DTM in counts: the terrain with a correlated error of about a metre."""
    error: Field = 0.8 * fractal_field(relief.elevation.shape, 0.8, rng, 12)
    return np.rint((relief.elevation + error) / DTM_SCALE).astype(np.uint16)


def _outline_clouds(cover: Field, transform: Affine) -> tuple[Polygon, ...]:
    """Return generalised, buffered outlines of the clouds."""
    seen = (cover > _MIN_CLOUD_OPACITY).astype(np.uint8)
    parts = [to_geometry(geometry) for geometry, _ in shapes(seen, mask=seen > 0, transform=transform)]
    drawn = union_all(
        [part.buffer(2 * PIXEL_METRES).simplify(PIXEL_METRES / 2) for part in parts if part.area > 6 * PIXEL_METRES**2]
    )
    return tuple(part for part in getattr(drawn, "geoms", [drawn]) if not part.is_empty)
