"""Landslides that start in steep hollows and follow the drainage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from synthetic.noise import Field, fractal_field
from synthetic.profiles import PIXEL_METRES, BasinProfile
from synthetic.terrain import RIVER_PIXELS, Terrain


@dataclass(frozen=True)
class Slide:
    """One landslide.

    Attributes:
        start: row and column of the head.
        rows, columns: int64 (pixels,), covered pixels.
        tone: relative brightness of the debris, 1 on average.
        change: change of VV in dB.
    """

    start: tuple[int, int]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    tone: float
    change: float


@dataclass(frozen=True)
class Landslides:
    """All landslides of a basin.

    Attributes:
        slides: landslides of the event.
        label: int32 (height, width), 1 + index of the landslide at a pixel, 0 elsewhere.
        bareness: float64 (height, width), share of bare ground after the event: 1 in fresh debris, less with
            surviving or regrown vegetation.
        tone: float64 (height, width), relative brightness of the debris, 1 on average.
        change: float64 (height, width), change of VV in dB.
    """

    slides: tuple[Slide, ...]
    label: NDArray[np.int32]
    bareness: Field
    tone: Field
    change: Field


def simulate_landslides(profile: BasinProfile, terrain: Terrain, rng: np.random.Generator) -> Landslides:
    """Return the landslides of the event, with scars of earlier landslides."""
    shape = terrain.elevation.shape
    share = terrain.elevation.size / 900**2  # the density does not depend on the size of the basin
    fresh, old = (max(4, round(number * share)) for number in (profile.slides, profile.old_scars))
    ragged = fractal_field(shape, 1.0, rng, 8)
    slides = [
        _simulate_landslide(profile, terrain, start, ragged, rng) for start in _draw_starts(terrain, fresh + old, rng)
    ]
    rng.shuffle(slides)
    label = np.zeros(shape, dtype=np.int32)
    bareness, tone, change = np.zeros(shape), np.ones(shape), np.zeros(shape)
    patchy = fractal_field(shape, 1.0, rng, 12)
    for slide in slides[fresh:]:
        at = slide.rows, slide.columns
        bareness[at] = np.clip(rng.uniform(0.25, 0.7) + 0.22 * patchy[at], 0, 1)
        tone[at] = slide.tone
    for number, slide in enumerate(slides[:fresh], start=1):
        at = slide.rows, slide.columns
        label[at] = number
        bareness[at] = np.clip(rng.uniform(0.7, 1.0) + 0.18 * patchy[at], 0.2, 1)
        tone[at] = slide.tone
        change[at] = slide.change
    return Landslides(tuple(slides[:fresh]), label, bareness, tone, change)


def _draw_starts(terrain: Terrain, number: int, rng: np.random.Generator) -> list[int]:
    """Return flat indices of landslide heads.

    Heads are drawn in steep hollows away from rivers, clustered by a random field of rainfall.
    """
    rain = fractal_field(terrain.elevation.shape, 2.0, rng, 300)
    steep = ndimage.gaussian_filter(terrain.slope, 1.5)
    weight = np.exp(0.9 * rain) * np.clip((steep - 28) / 6, 0, 1) * np.clip(terrain.hollow * 400, 0.02, 1)
    weight *= (terrain.drained > 3) & (terrain.drained < 150) & (terrain.river_distance > 12)
    weight[:3], weight[-3:], weight[:, :3], weight[:, -3:] = 0, 0, 0, 0
    chance = (weight / weight.sum()).ravel()
    draws = rng.choice(chance.size, size=min(number * 12, int(np.count_nonzero(chance))), replace=False, p=chance)
    points = np.column_stack(np.divmod(draws, weight.shape[1]))
    near = cKDTree(points).query_ball_point(points, 14.0)
    kept: list[int] = []
    blocked = np.zeros(len(draws), dtype=bool)
    for draw, neighbours in enumerate(near):
        if not blocked[draw]:
            kept.append(int(draws[draw]))
            blocked[neighbours] = True
    return kept[:number]


def _simulate_landslide(
    profile: BasinProfile, terrain: Terrain, start: int, ragged: Field, rng: np.random.Generator
) -> Slide:
    """Return one landslide: a wide scar, a narrower track, and a toe on flat ground."""
    larger = rng.standard_normal()  # a wide landslide also tends to be long
    width = profile.slide_width / PIXEL_METRES * np.exp(0.35 * larger)
    length = profile.slide_length / PIXEL_METRES * np.exp(0.175 * larger + 0.5 * rng.standard_normal())
    cells = terrain.drainage.path(start, max(6, round(length)))
    cells = cells[: _runout_length(terrain, cells)]
    columns_of = terrain.elevation.shape[1]
    track = np.column_stack(np.divmod(cells, columns_of)).astype(np.float64)
    track = ndimage.gaussian_filter1d(track, 2.0, axis=0, mode="nearest")  # removes the 45° turns of D8
    done = np.linspace(0, 1, len(track))
    half = width / 2 * (0.62 + 0.45 * np.exp(-((done - 0.12) ** 2) / 0.03) + 0.25 * np.exp(-((done - 1) ** 2) / 0.02))
    rows, columns = _pixels_near_track(track, half, ragged)
    if not rows.size:
        rows, columns = (np.array([value]) for value in divmod(start, columns_of))
    tone, change = float(np.exp(0.25 * rng.standard_normal())), float(rng.normal(profile.slide_vv, 1.0))
    row, column = divmod(start, columns_of)
    return Slide((row, column), rows, columns, tone, change)


def _runout_length(terrain: Terrain, cells: NDArray[np.int64]) -> int:
    """Return the run-out in pixels: to a river, or onto ground under 10°."""
    flat = np.cumsum(ndimage.uniform_filter1d(terrain.slope.ravel()[cells], 5) < 10)
    in_river = terrain.drained.ravel()[cells] > RIVER_PIXELS
    stopped = (flat > 5) | in_river
    return int(np.argmax(stopped)) + 1 if stopped.any() else len(cells)


def _pixels_near_track(track: Field, half: Field, ragged: Field) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns within half a width of a track, with an irregular edge."""
    margin = int(np.ceil(half.max() * 1.5)) + 1
    low = np.maximum(np.floor(track.min(axis=0)).astype(int) - margin, 0)
    high = np.minimum(np.ceil(track.max(axis=0)).astype(int) + margin + 1, ragged.shape)
    rows, columns = np.mgrid[low[0] : high[0], low[1] : high[1]]
    distance = np.hypot(rows[..., None] - track[:, 0], columns[..., None] - track[:, 1])
    inside = (distance / half).min(axis=-1) * np.exp(0.22 * ragged[rows, columns]) < 1
    return rows[inside], columns[inside]
