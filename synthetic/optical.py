"""Optical image of a basin with relief shading, haze, clouds and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthetic.clouds import Clouds
from synthetic.land_cover import Cover, LandCover
from synthetic.landslides import Landslides
from synthetic.noise import Field, fractal_field
from synthetic.profiles import BasinProfile, Colour
from synthetic.terrain import Terrain

SCALE = 0.002  # reflectance per count
_SKY_SHARE = 0.24  # share of diffuse light
_CLOUD: Colour = (0.46, 0.47, 0.48)
_WATER: Colour = (0.075, 0.085, 0.070)
_GRAVEL: Colour = (0.215, 0.185, 0.140)
_ROAD: Colour = (0.185, 0.150, 0.110)
_CROP: Colour = (0.075, 0.088, 0.044)
# Standard deviation of the logarithm of reflectance between pixels of a class.
_TEXTURE = {Cover.FOREST: 0.26, Cover.PASTURE: 0.16, Cover.CROP: 0.20, Cover.WATER: 0.08}
_BARE_TEXTURE = 0.30  # all classes of bare ground


def simulate_optical(
    profile: BasinProfile,
    terrain: Terrain,
    cover: LandCover,
    landslides: Landslides,
    clouds: Clouds,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Return counts of red, green and blue, (3, height, width).

    Reflectance is counts × SCALE.
    """
    ground = _ground(profile, cover, landslides, rng)
    light = _sunlight(profile, terrain) * (1 - 0.8 * clouds.shadow)
    scene = ground * (_SKY_SHARE + (1 - _SKY_SHARE) * light)
    scene = ndimage.gaussian_filter(scene, (0, 0.5, 0.5))  # point spread function of the sensor
    height = terrain.elevation - terrain.elevation.min()
    air = np.exp(-height / 900) * np.exp(0.3 * fractal_field(height.shape, 2.0, rng, 400))
    scene = scene * (1 - 0.8 * air * _per_band(profile.haze)) + air * _per_band(profile.haze)
    bulge = 1 + 0.12 * fractal_field(height.shape, 1.9, rng, 40)
    scene = scene * (1 - clouds.cover) + clouds.cover * bulge * _per_band(_CLOUD)
    scene = scene * _per_band(profile.gain) + 0.0035 * rng.standard_normal(scene.shape)
    counts: NDArray[np.uint8] = np.clip(np.rint(scene / SCALE), 1, 255).astype(np.uint8)
    return counts


def _per_band(colour: Colour) -> Field:
    return np.array(colour)[:, None, None]


def _ground(profile: BasinProfile, cover: LandCover, landslides: Landslides, rng: np.random.Generator) -> Field:
    """Return the reflectance of the ground, (3, height, width)."""
    palette = np.empty((len(Cover), 3))
    palette[Cover.FOREST], palette[Cover.PASTURE], palette[Cover.CROP] = profile.forest, profile.pasture, _CROP
    palette[Cover.BARE], palette[Cover.WATER] = profile.soil, _WATER
    palette[Cover.GRAVEL], palette[Cover.ROAD] = _GRAVEL, _ROAD
    roughness = np.array([_TEXTURE.get(kind, _BARE_TEXTURE) for kind in Cover])
    grain = rng.standard_normal(cover.kind.shape)
    tint = 0.05 * rng.standard_normal((3, *cover.kind.shape))
    before = palette[cover.kind].transpose(2, 0, 1) * cover.tone * np.exp(roughness[cover.kind] * grain + tint)
    debris = _per_band(profile.soil) * landslides.tone * np.exp(_BARE_TEXTURE * grain + tint)
    return before + landslides.bareness * (debris - before)


def _sunlight(profile: BasinProfile, terrain: Terrain) -> Field:
    """Return direct sunlight relative to level ground, (height, width)."""
    azimuth, elevation = np.radians(profile.sun_azimuth), np.radians(profile.sun_elevation)
    toward = -terrain.east * np.sin(azimuth) - terrain.north * np.cos(azimuth)
    cosine = (np.sin(elevation) + np.cos(elevation) * toward) / np.sqrt(1 + terrain.east**2 + terrain.north**2)
    return np.asarray(np.maximum(cosine, 0) / np.sin(elevation))
