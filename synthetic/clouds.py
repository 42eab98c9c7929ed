"""Clouds and their shadows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synthetic.noise import Field, fractal_field
from synthetic.profiles import PIXEL_METRES, BasinProfile

_CLOUD_BASE_METRES = 900.0  # above the ground


@dataclass(frozen=True)
class Clouds:
    """Clouds and shadows, float64 (height, width) from 0 to 1.

    Attributes:
        cover: opacity of the cloud.
        shadow: share of direct sunlight that is blocked.
    """

    cover: Field
    shadow: Field


def simulate_clouds(profile: BasinProfile, shape: tuple[int, int], rng: np.random.Generator) -> Clouds:
    """Return cumulus clouds over the cloud share of the profile, with shadows."""
    heap = fractal_field(shape, 2.3, rng, 140) + 0.28 * fractal_field(shape, 1.7, rng, 30)
    edge = np.quantile(heap, 1 - profile.cloud)
    cover = np.clip((heap - edge) / 0.6 + 0.3, 0, 1) ** 1.2
    azimuth = np.radians(profile.sun_azimuth)
    reach = _CLOUD_BASE_METRES / np.tan(np.radians(profile.sun_elevation)) / PIXEL_METRES
    shift = (reach * np.cos(azimuth), -reach * np.sin(azimuth))  # rows run south: away from the sun
    shadow = ndimage.shift(ndimage.gaussian_filter(cover, 1.5), shift, order=1, mode="constant")
    return Clouds(cover, np.clip(shadow, 0, 1))
