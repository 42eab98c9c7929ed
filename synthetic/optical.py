"""Optical image: sunlit relief through haze, clouds and noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthetic.character import Character, Colour
from synthetic.clouds import Clouds
from synthetic.land_cover import Cover, LandCover
from synthetic.landslides import Landslides
from synthetic.noise import Field, fractal
from synthetic.terrain import Terrain

SCALE = 0.002  # reflectance of one count
_SKY = 0.24  # share of the light that comes from the sky
_CLOUD: Colour = (0.46, 0.47, 0.48)
_WATER: Colour = (0.075, 0.085, 0.070)
_GRAVEL: Colour = (0.215, 0.185, 0.140)
_ROAD: Colour = (0.185, 0.150, 0.110)
_CROP: Colour = (0.075, 0.088, 0.044)
# Deviation of the logarithm of the reflectance from pixel to pixel.
_TEXTURE = {Cover.FOREST: 0.26, Cover.PASTURE: 0.16, Cover.CROP: 0.20, Cover.WATER: 0.08}
_ROUGH = 0.30  # of all bare ground


def photograph(
    character: Character,
    terrain: Terrain,
    cover: LandCover,
    landslides: Landslides,
    clouds: Clouds,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Counts of red, green and blue, (3, height, width); reflectance is counts × SCALE."""
    ground = _ground(character, cover, landslides, rng)
    light = _sunlight(character, terrain) * (1 - 0.8 * clouds.shadow)
    scene = ground * (_SKY + (1 - _SKY) * light)
    scene = ndimage.gaussian_filter(scene, (0, 0.5, 0.5))  # the sensor sees a little beyond a pixel's rim
    height = terrain.elevation - terrain.elevation.min()
    air = np.exp(-height / 900) * np.exp(0.3 * fractal(height.shape, 2.0, rng, 400))
    scene = scene * (1 - 0.8 * air * _stack(character.haze)) + air * _stack(character.haze)
    bulge = 1 + 0.12 * fractal(height.shape, 1.9, rng, 40)
    scene = scene * (1 - clouds.cover) + clouds.cover * bulge * _stack(_CLOUD)
    scene = scene * _stack(character.gain) + 0.0035 * rng.standard_normal(scene.shape)
    counts: NDArray[np.uint8] = np.clip(np.rint(scene / SCALE), 1, 255).astype(np.uint8)
    return counts


def _stack(colour: Colour) -> Field:
    return np.array(colour)[:, None, None]


def _ground(character: Character, cover: LandCover, landslides: Landslides, rng: np.random.Generator) -> Field:
    """Reflectance of the ground, (3, height, width)."""
    palette = np.empty((len(Cover), 3))
    palette[Cover.FOREST], palette[Cover.PASTURE], palette[Cover.CROP] = character.forest, character.pasture, _CROP
    palette[Cover.BARE], palette[Cover.WATER] = character.soil, _WATER
    palette[Cover.GRAVEL], palette[Cover.ROAD] = _GRAVEL, _ROAD
    roughness = np.array([_TEXTURE.get(kind, _ROUGH) for kind in Cover])
    grain = rng.standard_normal(cover.kind.shape)
    tint = 0.05 * rng.standard_normal((3, *cover.kind.shape))
    before = palette[cover.kind].transpose(2, 0, 1) * cover.tone * np.exp(roughness[cover.kind] * grain + tint)
    debris = _stack(character.soil) * landslides.tone * np.exp(_ROUGH * grain + tint)
    return before + landslides.bareness * (debris - before)


def _sunlight(character: Character, terrain: Terrain) -> Field:
    """Direct light on the slopes, 1 on level ground."""
    azimuth, elevation = np.radians(character.sun_azimuth), np.radians(character.sun_elevation)
    toward = -terrain.east * np.sin(azimuth) - terrain.north * np.cos(azimuth)
    cosine = (np.sin(elevation) + np.cos(elevation) * toward) / np.sqrt(1 + terrain.east**2 + terrain.north**2)
    return np.asarray(np.maximum(cosine, 0) / np.sin(elevation))
