"""Where a map says something, and why it does not elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from talud.bands import Group
from talud.contract import Contract


def blocked(stack: NDArray[np.float32], contract: Contract) -> NDArray[np.uint8]:
    """The groups for whose want a pixel is not mapped, one bit a group in the order of `groups`; 0 where it is mapped.

    A group is valid where all its bands are. A pixel is not mapped where a group that the contract requires is
    invalid, or where every group is.

    Args:
        stack: (bands, height, width) in contract order, NaN where invalid.
        contract: of the model.
    """
    present = groups(contract)
    invalid = np.zeros(stack.shape[1:], np.uint8)
    for bit, group in enumerate(present):
        members = [index for index, band in enumerate(contract.bands) if band.group is group]
        invalid |= np.isnan(stack[members]).any(axis=0).astype(np.uint8) << bit
    required = sum(1 << bit for bit, group in enumerate(present) if group in contract.required_groups)
    everything = (1 << len(present)) - 1
    return np.where((invalid & required > 0) | (invalid == everything), invalid, 0).astype(np.uint8)


def reason(code: int, contract: Contract) -> str:
    """In words, why a pixel of that code is not mapped: "optical and sar invalid"."""
    names = [group.value for bit, group in enumerate(groups(contract)) if code >> bit & 1]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) + " invalid"


def groups(contract: Contract) -> tuple[Group, ...]:
    """The groups of a contract's bands, in the order of their first band."""
    return tuple(dict.fromkeys(band.group for band in contract.bands))
