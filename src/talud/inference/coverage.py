"""Where a map says something, and why it does not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from talud.bands import SHADES, Group
from talud.contract import Contract

_BITS = 15  # of a code: one more than the largest must fit uint16
_NO_SHADES: Mapping[str, NDArray[np.bool_]] = {}
_WORDS = {"cloud": "cloud", "sar_mask": "radar layover or shadow"}


@dataclass(frozen=True)
class _Cause:
    """What can be wanting at a pixel: a band, or where there are too many for a code, any band of a group."""

    name: str
    group: Group
    bands: tuple[int, ...]


def blocked(
    stack: NDArray[np.float32], contract: Contract, shades: Mapping[str, NDArray[np.bool_]] = _NO_SHADES
) -> NDArray[np.uint16]:
    """A code of why a pixel is not mapped (see `reason`); 0 where it is mapped.

    A group is valid where all its bands are. A pixel is not mapped where a group that the contract requires is
    invalid, or, where it requires none, where every group is. Of those groups the code names the invalid bands, or
    the shade that hides them. A shade alone leaves no pixel out: bands that are valid under it are mapped.

    Args:
        stack: (bands, height, width) in contract order, NaN where invalid.
        contract: of the model.
        shades: by name (see `talud.bands.SHADES`), where cloud, or radar layover or shadow, hides the bands of its
            group; each (height, width). Those that the raster has.
    """
    deciding = contract.required_groups or groups(contract)
    wanting = {
        bit: (cause.group, np.isnan(stack[list(cause.bands)]).any(axis=0))
        for bit, cause in enumerate(_causes(contract), start=len(SHADES))
        if cause.group in deciding
    }
    absent = {
        group: np.logical_or.reduce([there for of, there in wanting.values() if of is group]) for group in deciding
    }
    combined = np.logical_or if contract.required_groups else np.logical_and
    left_out = combined.reduce(list(absent.values()))
    code = np.zeros(left_out.shape, np.uint16)
    if not left_out.any():
        return code
    hidden = {group: np.zeros_like(left_out) for group in deciding}
    for bit, (name, group) in enumerate(SHADES.items()):
        if group in deciding and name in shades:
            hidden[group] = absent[group] & shades[name]
            code |= hidden[group].astype(np.uint16) << bit
    for bit, (group, there) in wanting.items():
        code |= (there & ~hidden[group]).astype(np.uint16) << bit
    code[~left_out] = 0
    return code


def reason(code: int, contract: Contract) -> str:
    """In words, why a pixel of that code is not mapped: "cloud and no data: slope, curvature"."""
    words = [_WORDS[shade] for bit, shade in enumerate(SHADES) if code >> bit & 1]
    wanting = [cause.name for bit, cause in enumerate(_causes(contract), start=len(SHADES)) if code >> bit & 1]
    return " and ".join([*words, f"no data: {', '.join(wanting)}"] if wanting else words)


def groups(contract: Contract) -> tuple[Group, ...]:
    """The groups of a contract's bands, in the order of their first band."""
    return tuple(dict.fromkeys(band.group for band in contract.bands))


def _causes(contract: Contract) -> tuple[_Cause, ...]:
    if len(contract.bands) <= _BITS - len(SHADES):
        return tuple(_Cause(band.name, band.group, (index,)) for index, band in enumerate(contract.bands))
    members = {group: [i for i, band in enumerate(contract.bands) if band.group is group] for group in groups(contract)}
    return tuple(_Cause(group.value, group, tuple(indexes)) for group, indexes in members.items())
