"""Clouds and the shadows that they cast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synthetic.character import PIXEL, Character
from synthetic.noise import Field, fractal

_BASE = 900.0  # metres from the ground to the cloud


@dataclass(frozen=True)
class Clouds:
    """Cover of cloud and haze, float64 (height, width) from 0 to 1.

    Attributes:
        cover: opacity of the cloud.
        shadow: share of the direct sunlight that is kept away.
    """

    cover: Field
    shadow: Field


def drift(character: Character, shape: tuple[int, int], rng: np.random.Generator) -> Clouds:
    """Cumulus over the share of the area that the basin's character states."""
    heap = fractal(shape, 2.3, rng, 140) + 0.28 * fractal(shape, 1.7, rng, 30)
    edge = np.quantile(heap, 1 - character.cloud)
    cover = np.clip((heap - edge) / 0.6 + 0.3, 0, 1) ** 1.2
    azimuth = np.radians(character.sun_azimuth)
    reach = _BASE / np.tan(np.radians(character.sun_elevation)) / PIXEL
    shift = (reach * np.cos(azimuth), -reach * np.sin(azimuth))  # rows run south: away from the sun
    shadow = ndimage.shift(ndimage.gaussian_filter(cover, 1.5), shift, order=1, mode="constant")
    return Clouds(cover, np.clip(shadow, 0, 1))
