"""Bands of a stack: names, groups and plausible values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Group(StrEnum):
    """Bands of one sensor, valid or invalid together."""

    OPTICAL = "optical"
    TERRAIN = "terrain"
    SAR = "sar"
    # Masks of cloud, layover and shadow; no model reads them.
    OCCLUSION = "shade"


@dataclass(frozen=True)
class Band:
    """Band with its name, group, unit and plausible range.

    The unit is None if it is not fixed.
    """

    name: str
    group: Group
    unit: str | None = None
    lowest: float = -math.inf
    highest: float = math.inf


TERRAIN_BANDS = (
    Band("elevation", Group.TERRAIN, "m", -500.0, 9000.0),
    Band("slope", Group.TERRAIN, "degree", 0.0, 90.0),
    # Stored per 100 m, so that values are of order one; a 12.5 m grid cannot represent values outside this range.
    Band("curvature", Group.TERRAIN, "1/100m", -100.0, 100.0),
)
# Slope and elevation in the unknown scale of a data set; under names of their own, so that no model confuses them with
# degrees and metres.
RESCALED_TERRAIN_BANDS = (Band("slope_rescaled", Group.TERRAIN), Band("elevation_rescaled", Group.TERRAIN))
# Unit and range are open: a stack is in dB or amplitude, and states its unit.
SAR_BANDS = tuple(
    Band(f"{polarisation}_{time}", Group.SAR) for polarisation in ("vv", "vh") for time in ("pre", "post")
)
# Mask → group that it hides. A mask is 1 under cloud, or in radar layover or shadow, and 0 elsewhere.
OCCLUSION_MASKS: Mapping[str, Group] = {"cloud": Group.OPTICAL, "sar_mask": Group.SAR}
OCCLUSION_BANDS = tuple(Band(name, Group.OCCLUSION, "", 0.0, 1.0) for name in OCCLUSION_MASKS)
_KNOWN = {known.name: known for known in (*TERRAIN_BANDS, *RESCALED_TERRAIN_BANDS, *SAR_BANDS, *OCCLUSION_BANDS)}


def band_named(name: str) -> Band:
    """Return the band of a name; unknown names are optical bands."""
    return _KNOWN.get(name, Band(name, Group.OPTICAL))


def groups_of(names: tuple[str, ...]) -> tuple[Group, ...]:
    """Return the groups of bands, in band order."""
    return tuple(dict.fromkeys(band_named(name).group for name in names))


def powerset(groups: Sequence[Group]) -> Iterator[tuple[Group, ...]]:
    """Yield all subsets of the groups, from all groups to none.

    Each subset has the order of `groups`.
    """
    return itertools.chain.from_iterable(itertools.combinations(groups, count) for count in range(len(groups), -1, -1))


def mask_implausible(values: NDArray[np.float32], lowest: float, highest: float) -> NDArray[np.float32]:
    """Replace values outside a band's plausible range by NaN."""
    return np.where((values >= lowest) & (values <= highest), values, np.float32(np.nan))
