"""Terrain by a landscape evolution model: uplift, erosion and slope failure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synthetic.drainage import Drainage
from synthetic.noise import Field, fractal_field
from synthetic.profiles import PIXEL_METRES, BasinProfile

RIVER_PIXELS = 12_000  # drained pixels (1.9 km²) from which a river is visible
_STAGES = ((8, 60), (4, 25), (2, 10), (1, 4))  # (pixels per cell, steps), from coarse to fine
_UPLIFT_METRES = 40.0  # per step
_CREEP_CELLS = 0.45  # soil creep per step: standard deviation of the smoothing filter
_AREA_EXPONENT = 0.45  # exponent of the drainage area in the stream power law
_MAX_ROCK_GRADIENT = 1.3  # metres per metre
_ROCKFALL_PASSES = 12  # of a filter with a radius of two pixels
_MARGIN_PIXELS = 64  # around the basin, so that rivers also enter from outside


@dataclass(frozen=True)
class Terrain:
    """Relief of a basin; every raster is float64 (height, width).

    Attributes:
        elevation: elevation in metres.
        slope: slope in degrees.
        hollow: curvature of the smoothed terrain in 1/m, positive in hollows.
        east, north: gradient to the east and north, metres per metre.
        drained: number of pixels that drain through a pixel.
        river_distance: distance to the nearest river in pixels.
        river_size: number of pixels that drain through the nearest river pixel.
        drainage: flow tree.
    """

    elevation: Field
    slope: Field
    hollow: Field
    east: Field
    north: Field
    drained: Field
    river_distance: Field
    river_size: Field
    drainage: Drainage


def simulate_terrain(profile: BasinProfile, size: int, rng: np.random.Generator) -> Terrain:
    """Return the terrain of a basin of `size` × `size` pixels."""
    side = -(-(size + 2 * _MARGIN_PIXELS) // _STAGES[0][0])
    elevation = 150.0 * (fractal_field((side, side), 2.2, rng) + 0.3 * fractal_field((side, side), 1.0, rng))
    rock = (fractal_field((side, side), 1.6, rng), fractal_field((side, side), 1.3, rng))
    for coarse, (cell, steps) in enumerate(_STAGES):
        if coarse:
            side *= 2
            elevation = ndimage.zoom(elevation, 2, order=1, mode="nearest", grid_mode=True)
            elevation += 0.25 * cell * fractal_field((side, side), 0.7, rng)
        resistance, strength = (ndimage.zoom(field, side / len(field), order=1) for field in rock)
        steepness = profile.steepness * np.exp(0.25 * resistance)
        repose = profile.repose * np.exp(0.22 * strength + 0.08 * fractal_field((side, side), 1.2, rng, 40 / cell))
        for _ in range(steps):
            elevation = _erode(elevation, steepness, repose, cell * PIXEL_METRES, rng)
    return _derive_layers(profile, elevation, size, rng)


def _erode(elevation: Field, steepness: Field, repose: Field, pixel: float, rng: np.random.Generator) -> Field:
    """Return the elevation after one step of uplift and erosion.

    The equation dz/dt = U - K A^m S is solved implicitly in time (Braun and Willett 2013).
    """
    # Without roughness, D8 channels run straight for kilometres.
    rough = elevation + 0.25 * pixel * fractal_field(elevation.shape, 0.8, rng, 24)
    drainage = Drainage.from_elevation(rough, pixel)
    cut = (_UPLIFT_METRES / steepness * (drainage.accumulate() * pixel**2) ** _AREA_EXPONENT).ravel()
    limit = repose.ravel()
    raised = elevation.ravel() + _UPLIFT_METRES
    raised[drainage.distance == 0] -= _UPLIFT_METRES  # the border is the base level
    for level in drainage.levels:
        base, distance = raised[drainage.receiver[level]], drainage.distance[level]
        share = cut[level] / distance
        lowered = (raised[level] + share * base) / (1 + share)
        raised[level] = np.minimum(lowered, base + limit[level] * distance)
    return np.asarray(ndimage.gaussian_filter(raised.reshape(elevation.shape), _CREEP_CELLS), dtype=np.float64)


def _collapse_cliffs(elevation: Field) -> Field:
    """Lower cliffs that are steeper than rock can be.

    They remain where two valleys have eroded the ridge between them.
    """
    reach = np.hypot(*np.mgrid[-2:3, -2:3])
    for _ in range(_ROCKFALL_PASSES):
        elevation = ndimage.grey_erosion(
            elevation, structure=-_MAX_ROCK_GRADIENT * PIXEL_METRES * reach, mode="nearest"
        )
    return elevation


def _derive_layers(profile: BasinProfile, elevation: Field, size: int, rng: np.random.Generator) -> Terrain:
    """Return the terrain with valley floors, roughness and all derived layers."""
    drained = Drainage.from_elevation(elevation, PIXEL_METRES).accumulate()
    distance, (row, column) = ndimage.distance_transform_edt(drained < RIVER_PIXELS, return_indices=True)
    floor = 1.2 * (drained[row, column] / RIVER_PIXELS) ** 0.45  # half the width of the valley floor, in pixels
    flat = np.exp(-((distance / floor) ** 2))
    elevation = elevation + flat * (elevation[row, column] + 0.4 * distance - elevation)
    elevation = ndimage.gaussian_filter(_collapse_cliffs(elevation), 0.8) + 1.2 * fractal_field(
        elevation.shape, 1.6, rng, 60
    )
    elevation = np.maximum(elevation, 0)
    drainage = Drainage.from_elevation(elevation, PIXEL_METRES)
    drained = drainage.accumulate()
    start = (len(elevation) - size) // 2
    inner = (slice(start, start + size), slice(start, start + size))
    elevation, drained = elevation[inner], drained[inner]
    elevation = elevation - elevation.min() + profile.valley_floor
    distance, (row, column) = ndimage.distance_transform_edt(drained < RIVER_PIXELS, return_indices=True)
    south, east = (np.asarray(rise) for rise in np.gradient(elevation, PIXEL_METRES))
    return Terrain(
        elevation=elevation,
        slope=np.degrees(np.arctan(np.hypot(south, east))),
        hollow=ndimage.gaussian_laplace(elevation, 2.0) / PIXEL_METRES**2,
        east=east,
        north=-south,
        drained=drained,
        river_distance=distance,
        river_size=drained[row, column],
        drainage=Drainage.from_elevation(elevation, PIXEL_METRES),
    )
