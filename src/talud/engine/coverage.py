"""Mapped pixels, and the data missing elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from talud.bands import OCCLUSION_MASKS, Group, powerset
from talud.contract import Contract

_CODE_BITS = 15  # bits of a code; the map stores the largest code + 1 as uint16
_NO_OCCLUSIONS: Mapping[str, NDArray[np.bool_]] = {}
_OCCLUSION_NAMES = {"cloud": "cloud", "sar_mask": "radar layover or shadow"}


@dataclass(frozen=True)
class _MissingData:
    """Band or whole group that can be missing.

    Groups stand for their bands where a contract has more bands than a code has bits.
    """

    name: str
    group: Group
    bands: tuple[int, ...]


class Coverage(NamedTuple):
    """Codes of the data that are missing at each pixel.

    Attributes:
        unmapped: reason why a pixel is not mapped, uint16 (height, width); 0 where it is mapped.
        partial: data without which a pixel is mapped, uint16 (height, width); 0 where it is mapped with all data or not
            at all. None for a model that needs all groups, or whose subsets were not scored.
    """

    unmapped: NDArray[np.uint16]
    partial: NDArray[np.uint16] | None


def compute_coverage(
    stack: NDArray[np.float32], contract: Contract, occlusions: Mapping[str, NDArray[np.bool_]] = _NO_OCCLUSIONS
) -> Coverage:
    """Compute which pixels are mapped with which groups.

    A group is valid where all its bands are valid. A pixel is mapped where the contract supports the set of its valid
    groups. For an unmapped pixel, the code names the missing groups of the nearest supported sets: those that need the
    fewest further groups. For a pixel that is mapped with some of the groups, it names all missing ones. For each of
    these groups the code names the invalid bands, or the mask of cloud, layover or shadow that hides them. Such a mask
    alone does not exclude a pixel: bands that are valid under it count as valid.

    Args:
        stack: bands (bands, height, width) in contract order, NaN where invalid.
        contract: contract of the model.
        occlusions: masks by name (see `talud.bands.OCCLUSION_MASKS`), each (height, width), true where cloud, or radar
            layover or shadow, hides the bands of a group; only those that the raster has.
    """
    groups, has_subsets = contract.input.groups, bool(contract.input.subsets)
    named_at, mapped_at = _rules(groups, contract.input.supported)
    missing: dict[int, tuple[Group, NDArray[np.bool_]]] = {
        bit: (cause.group, np.any(np.isnan(stack[list(cause.bands)]), axis=0))
        for bit, cause in enumerate(_possible_causes(contract), start=len(OCCLUSION_MASKS))
    }
    absent = np.zeros(stack.shape[1:], np.uint8)
    for index, group in enumerate(groups):
        incomplete = np.logical_or.reduce([invalid for of, invalid in missing.values() if of is group])
        absent |= incomplete.astype(np.uint8) << np.uint8(index)
    code = np.zeros(stack.shape[1:], np.uint16)
    if absent.any():
        named = named_at[absent]
        for index, group in enumerate(groups):
            code |= _group_code(group, (named >> np.uint8(index) & 1).astype(np.bool_), missing, occlusions)
    mapped = mapped_at[absent]
    return Coverage(np.where(mapped, np.uint16(0), code), np.where(mapped, code, np.uint16(0)) if has_subsets else None)


def unmapped_codes(
    stack: NDArray[np.float32], contract: Contract, occlusions: Mapping[str, NDArray[np.bool_]] = _NO_OCCLUSIONS
) -> NDArray[np.uint16]:
    """Return the codes of unmapped pixels.

    The code is 0 where the pixel is mapped; see `compute_coverage`.
    """
    return compute_coverage(stack, contract, occlusions).unmapped


def _group_code(
    group: Group,
    selected: NDArray[np.bool_],
    missing: Mapping[int, tuple[Group, NDArray[np.bool_]]],
    occlusions: Mapping[str, NDArray[np.bool_]],
) -> NDArray[np.uint16]:
    """Return a group's bits at selected pixels.

    The result is the bit of the occlusion mask that hides the group, else the bits of its invalid bands.
    """
    code = np.zeros(selected.shape, np.uint16)
    hidden = np.zeros_like(selected)
    for bit, (name, of) in enumerate(OCCLUSION_MASKS.items()):
        if of is group and name in occlusions:
            hidden = selected & occlusions[name]
            code |= hidden.astype(np.uint16) << np.uint16(bit)
    for bit, (of, invalid) in missing.items():
        if of is group:
            code |= (invalid & selected & ~hidden).astype(np.uint16) << np.uint16(bit)
    return code


def describe_code(code: int, contract: Contract) -> str:
    """Describe a code, such as "cloud and no data: slope"."""
    words = [_OCCLUSION_NAMES[shade] for bit, shade in enumerate(OCCLUSION_MASKS) if code >> bit & 1]
    missing = [cause.name for cause in _decode(code, contract)]
    return " and ".join([*words, f"no data: {', '.join(missing)}"] if missing else words)


def available_groups(code: int, contract: Contract) -> tuple[Group, ...]:
    """Return the groups that a partial code leaves."""
    gone = {cause.group for cause in _decode(code, contract)}
    gone |= {group for bit, group in enumerate(OCCLUSION_MASKS.values()) if code >> bit & 1}
    return tuple(group for group in contract.input.groups if group not in gone)


def mask_partial_groups(stack: NDArray[np.float32], contract: Contract) -> NDArray[np.float32]:
    """Set incomplete groups of a stack to NaN.

    Models that support subsets of the groups were trained on such stacks.

    Args:
        stack: bands (…, bands, height, width) in contract order; not modified.
        contract: contract of the model. If it needs all groups, the stack is returned unchanged.
    """
    if not contract.input.subsets or not np.isnan(stack).any():
        return stack
    result = stack.copy()
    for group in contract.input.groups:
        members = [index for index, band in enumerate(contract.input.bands) if band.group is group]
        gone = np.isnan(stack[..., members, :, :]).any(axis=-3, keepdims=True)
        result[..., members, :, :] = np.where(gone, np.float32(np.nan), result[..., members, :, :])
    return result


@lru_cache(maxsize=8)
def _rules(
    groups: tuple[Group, ...], supported: frozenset[frozenset[Group]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return lookup tables by absent groups.

    The first holds the groups that the code names, as bits; the second is true where the pixel is mapped.
    """
    named, mapped = np.zeros(1 << len(groups), np.uint8), np.zeros(1 << len(groups), np.bool_)
    for gone in powerset(groups):
        valid = frozenset(groups) - set(gone)
        absent = _bits(groups, gone)
        mapped[absent] = valid in supported
        named[absent] = absent
        if not mapped[absent]:
            returns = [one - valid for one in supported if valid <= one]
            fewest = min(map(len, returns))
            named[absent] = _bits(groups, set().union(*(one for one in returns if len(one) == fewest)))
    return named, mapped


def _bits(groups: tuple[Group, ...], chosen: Collection[Group]) -> int:
    """Return a set of groups as bits."""
    return sum(1 << groups.index(group) for group in chosen)


def _decode(code: int, contract: Contract) -> list[_MissingData]:
    """Return the missing data that a code names."""
    return [
        cause for bit, cause in enumerate(_possible_causes(contract), start=len(OCCLUSION_MASKS)) if code >> bit & 1
    ]


def _possible_causes(contract: Contract) -> tuple[_MissingData, ...]:
    """Return possible missing data, in bit order."""
    if len(contract.input.bands) <= _CODE_BITS - len(OCCLUSION_MASKS):
        return tuple(_MissingData(band.name, band.group, (index,)) for index, band in enumerate(contract.input.bands))
    members = {
        group: [i for i, band in enumerate(contract.input.bands) if band.group is group]
        for group in contract.input.groups
    }
    return tuple(_MissingData(group.value, group, tuple(indexes)) for group, indexes in members.items())
