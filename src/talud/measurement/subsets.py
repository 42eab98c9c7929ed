"""What a model is worth where only some of its band groups are there, measured."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud import metrics
from talud.bands import Group, powerset
from talud.contract import Contract, Subset
from talud.engine.runtime import Model
from talud.mapping.reader import open_stack
from talud.metrics import Confusion
from talud.raster import open_raster

Part = tuple[Path, Path, Iterable[Window]]  # stack, mask, and windows that are each read alone


def measured(model: Model, parts: Iterable[Part], optional: Collection[Group], tolerance: float) -> tuple[Subset, ...]:
    """The scores of a model with each subset of its groups alone, at its own threshold, the set of all first.

    All are counted on the same pixels, those where every group is valid, so that they can be compared.

    Args:
        model: to run.
        parts: what it is measured on.
        optional: groups that it learned to do without.
        tolerance: a subset is supported where it lacks optional groups alone, and its F1 is at most this much lower
            than that of all groups.

    Raises:
        SourceError: a raster cannot be read.
        MismatchError: a stack does not fit the contract.
        ModelError: the network fails.
    """
    contract = model.contract
    chosen = [groups for groups in powerset(contract.input.groups) if groups]
    counts = dict.fromkeys(chosen, Confusion())
    for stack, mask, windows in parts:
        with open_stack(stack, contract) as raster, open_raster(mask) as truths:
            for window in windows:
                values, truth = raster.read(window), truths.read(1, window=window)
                valid = np.asarray(np.isfinite(values).all(axis=0))
                for groups in chosen:
                    probability = model.probability(only(values, contract, groups))
                    counts[groups] += metrics.confusion(probability >= contract.measured.threshold, truth, valid)
    everything = counts[chosen[0]].f1
    return tuple(
        Subset(
            groups=groups,
            precision=found.precision,
            recall=found.recall,
            f1=found.f1,
            supported=set(contract.input.groups) - set(groups) <= set(optional) and found.f1 >= everything - tolerance,
        )
        for groups, found in counts.items()
    )


def only(values: NDArray[np.float32], contract: Contract, groups: Collection[Group]) -> NDArray[np.float32]:
    """A copy of a stack (bands, height, width) in which all bands but those of some groups are NaN."""
    left_out = [index for index, band in enumerate(contract.input.bands) if band.group not in groups]
    result = values.copy()
    result[left_out] = np.nan
    return result


def required(subsets: Iterable[Subset]) -> tuple[Group, ...]:
    """The groups that every supported subset holds, in the order of the largest; there is one that is supported."""
    supported = [subset.groups for subset in subsets if subset.supported]
    return tuple(group for group in max(supported, key=len) if all(group in groups for groups in supported))
