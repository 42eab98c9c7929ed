"""Mountains: fractal rock that rises while rivers cut it and slopes too steep to hold give way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synthetic.character import PIXEL, Character
from synthetic.drainage import Drainage
from synthetic.noise import Field, fractal

RIVER = 12_000  # pixels drained (1.9 km²) from which a river shows between the trees
_STAGES = ((8, 60), (4, 25), (2, 10), (1, 4))  # (pixels a cell, steps): the pattern first, then the detail
_STEP = 40.0  # metres of uplift a step
_CREEP = 0.45  # soil creep a step, as the deviation of a smoothing, in cells
_EXPONENT = 0.45  # of the drained area in the stream power law
_STEEPEST = 1.3  # metres a metre, of bare rock
_FALLS = 12  # two pixels wide, each
_MARGIN = 64  # pixels around the basin, so that rivers also come in from outside


@dataclass(frozen=True)
class Terrain:
    """A basin's relief; every raster is float64 (height, width).

    Attributes:
        elevation: metres.
        slope: degrees.
        hollow: curvature of the smoothed terrain in 1/m, positive in hollows.
        east, north: rise in metres a metre.
        drained: pixels that drain through each pixel.
        river_distance: pixels to the nearest river.
        river_size: pixels that drain through the nearest river.
        drainage: the flow tree.
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


def raise_terrain(character: Character, size: int, rng: np.random.Generator) -> Terrain:
    """The terrain of a basin of `size` pixels a side."""
    side = -(-(size + 2 * _MARGIN) // _STAGES[0][0])
    elevation = 150.0 * (fractal((side, side), 2.2, rng) + 0.3 * fractal((side, side), 1.0, rng))
    rock = (fractal((side, side), 1.6, rng), fractal((side, side), 1.3, rng))
    for coarse, (cell, steps) in enumerate(_STAGES):
        if coarse:
            side *= 2
            elevation = ndimage.zoom(elevation, 2, order=1, mode="nearest", grid_mode=True)
            elevation += 0.25 * cell * fractal((side, side), 0.7, rng)
        resistance, strength = (ndimage.zoom(field, side / len(field), order=1) for field in rock)
        steepness = character.steepness * np.exp(0.25 * resistance)
        repose = character.repose * np.exp(0.22 * strength + 0.08 * fractal((side, side), 1.2, rng, 40 / cell))
        for _ in range(steps):
            elevation = _erode(elevation, steepness, repose, cell * PIXEL, rng)
    return _measure(character, elevation, size, rng)


def _erode(elevation: Field, steepness: Field, repose: Field, pixel: float, rng: np.random.Generator) -> Field:
    """One step of uplift and of erosion dz/dt = U - K A^m S, implicit in time (Braun and Willett 2013)."""
    # Rough ground: without it D8 channels run straight for kilometres.
    rough = elevation + 0.25 * pixel * fractal(elevation.shape, 0.8, rng, 24)
    drainage = Drainage.over(rough, pixel)
    cut = (_STEP / steepness * (drainage.accumulate() * pixel**2) ** _EXPONENT).ravel()
    limit = repose.ravel()
    raised = elevation.ravel() + _STEP
    raised[drainage.distance == 0] -= _STEP  # the border is the base level
    for level in drainage.levels:
        base, distance = raised[drainage.receiver[level]], drainage.distance[level]
        share = cut[level] / distance
        lowered = (raised[level] + share * base) / (1 + share)
        raised[level] = np.minimum(lowered, base + limit[level] * distance)
    return np.asarray(ndimage.gaussian_filter(raised.reshape(elevation.shape), _CREEP), dtype=np.float64)


def _crumble(elevation: Field) -> Field:
    """Walls steeper than rock stands fall: they stay where two valleys wear away the ridge between them."""
    reach = np.hypot(*np.mgrid[-2:3, -2:3])
    for _ in range(_FALLS):
        elevation = ndimage.grey_erosion(elevation, structure=-_STEEPEST * PIXEL * reach, mode="nearest")
    return elevation


def _measure(character: Character, elevation: Field, size: int, rng: np.random.Generator) -> Terrain:
    """Valley floors, roughness, and the quantities that follow from the elevation."""
    drained = Drainage.over(elevation, PIXEL).accumulate()
    distance, (row, column) = ndimage.distance_transform_edt(drained < RIVER, return_indices=True)
    floor = 1.2 * (drained[row, column] / RIVER) ** 0.45  # half the width of the valley floor, in pixels
    flat = np.exp(-((distance / floor) ** 2))
    elevation = elevation + flat * (elevation[row, column] + 0.4 * distance - elevation)
    elevation = ndimage.gaussian_filter(_crumble(elevation), 0.8) + 1.2 * fractal(elevation.shape, 1.6, rng, 60)
    elevation = np.maximum(elevation, 0)
    drainage = Drainage.over(elevation, PIXEL)
    drained = drainage.accumulate()
    start = (len(elevation) - size) // 2
    inner = (slice(start, start + size), slice(start, start + size))
    elevation, drained = elevation[inner], drained[inner]
    elevation = elevation - elevation.min() + character.valley_floor
    distance, (row, column) = ndimage.distance_transform_edt(drained < RIVER, return_indices=True)
    south, east = (np.asarray(rise) for rise in np.gradient(elevation, PIXEL))
    return Terrain(
        elevation=elevation,
        slope=np.degrees(np.arctan(np.hypot(south, east))),
        hollow=ndimage.gaussian_laplace(elevation, 2.0) / PIXEL**2,
        east=east,
        north=-south,
        drained=drained,
        river_distance=distance,
        river_size=drained[row, column],
        drainage=Drainage.over(elevation, PIXEL),
    )
