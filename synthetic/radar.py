"""C-band radar images, VV and VH, with speckle, relief and changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthetic.land_cover import Cover, LandCover
from synthetic.landslides import Landslides
from synthetic.noise import Field, fractal_field
from synthetic.profiles import BasinProfile
from synthetic.terrain import Terrain

SCALE = 0.01  # amplitude per count
_NOISE_FLOOR = 10 ** (-22 / 10)  # power
_BACKSCATTER = {  # dB
    Cover.FOREST: -7.0,
    Cover.PASTURE: -9.5,
    Cover.CROP: -8.5,
    Cover.BARE: -10.5,
    Cover.WATER: -17.0,
    Cover.GRAVEL: -9.5,
    Cover.ROAD: -11.0,
}
_VH_TO_VV = {  # dB; leaves and branches depolarise, bare ground and water hardly
    Cover.FOREST: -6.0,
    Cover.PASTURE: -7.5,
    Cover.CROP: -6.5,
    Cover.BARE: -9.5,
    Cover.WATER: -9.0,
    Cover.GRAVEL: -9.5,
    Cover.ROAD: -10.0,
}
_VH_CHANGE = 1.3  # change of VH on a landslide relative to that of VV, for the lost leaves scattered more VH


def simulate_radar(
    profile: BasinProfile,
    terrain: Terrain,
    cover: LandCover,
    landslides: Landslides,
    rng: np.random.Generator,
    vh_rng: np.random.Generator,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return counts of VV and VH before and after the event, each (2, height, width).

    Amplitude is counts × SCALE. VH has a random stream of its own, so that VV does not depend on it.
    """
    shape = cover.kind.shape
    table = np.array([_BACKSCATTER[kind] for kind in Cover])
    before = table[cover.kind] + profile.sar_gain + 0.5 * fractal_field(shape, 1.3, rng, 30)
    before = before + 10 * np.log10(_relief(profile, terrain))
    damp = 0.4 + 0.5 * fractal_field(shape, 2.0, rng, 300)  # wetter ground
    scar = landslides.change * landslides.bareness
    after = before + damp + cover.tilled * (landslides.label == 0) + scar
    vv = _speckle(before, rng), _speckle(after, rng)
    ratio = np.array([_VH_TO_VV[kind] for kind in Cover])
    # Volume scattering depends less on the slope and on the wetness of the ground.
    vh_before = before + ratio[cover.kind] - 3 * np.log10(_relief(profile, terrain))
    vh_after = vh_before + 0.5 * damp + cover.tilled * (landslides.label == 0) + _VH_CHANGE * scar
    vh = _speckle(vh_before, vh_rng), _speckle(vh_after, vh_rng)
    return np.stack([vv[0], vh[0]]), np.stack([vv[1], vh[1]])


def _relief(profile: BasinProfile, terrain: Terrain) -> Field:
    """Return the backscatter gain of slopes relative to level ground."""
    azimuth, incidence = np.radians(profile.look_azimuth), np.radians(profile.incidence)
    toward = np.arctan(-terrain.east * np.sin(azimuth) - terrain.north * np.cos(azimuth))
    local = np.clip(incidence - toward, np.radians(9), np.radians(88))
    gain = np.sin(incidence) / np.sin(local) * np.cos(local) / np.cos(incidence)
    return np.asarray(np.clip(ndimage.gaussian_filter(gain, 0.7), 0.02, None))


def _speckle(decibel: Field, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return single-look amplitude counts with slightly correlated speckle."""
    parts = ndimage.gaussian_filter(rng.standard_normal((2, *decibel.shape)), (0, 0.45, 0.45))
    parts /= parts.std()
    power = (parts**2).sum(axis=0) / 2 * 10 ** (decibel / 10) + _NOISE_FLOOR
    counts: NDArray[np.uint16] = np.clip(np.rint(np.sqrt(power) / SCALE), 1, 65535).astype(np.uint16)
    return counts
