"""Scores of a model with each subset of its band groups."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.bands import Group, powerset
from talud.contract import Contract, Subset
from talud.data.patches import SplitPart
from talud.engine.runtime import Model
from talud.measurement.sites import Site, labelled_windows
from talud.metrics import Confusion, confusion


def score_subsets(
    model: Model,
    sites: Iterable[Site],
    optional: Collection[Group],
    tolerance: float,
    part: SplitPart | None = "validation",
) -> tuple[Subset, ...]:
    """Score a model with each subset of its band groups.

    All subsets are scored at the model's own threshold, on the pixels where every group is valid. The complete
    set comes first.

    Args:
        model: model to run.
        sites: labelled places.
        optional: groups that were dropped at random in training.
        tolerance: largest loss of F1, against all groups, at which a subset of optional groups is still accepted.
        part: part of each site's split; its blocks are read without their surroundings. None for the whole site.

    Raises:
        SourceError: a raster cannot be read.
        MismatchError: a stack does not fit the contract.
        ModelError: the network fails.
    """
    contract = model.contract
    chosen = [groups for groups in powerset(contract.input.groups) if groups]
    counts = dict.fromkeys(chosen, Confusion())
    for site in sites:
        for window in labelled_windows(site, site.windows(part), _EachSubset(model, site, chosen)):
            for groups, probability in zip(chosen, window.probabilities[0], strict=True):
                mapped = np.isfinite(probability)
                counts[groups] += confusion(probability >= contract.measured.threshold, window.truth, mapped)
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


@dataclass(frozen=True)
class _EachSubset:
    """Predictor that runs a model with several subsets of groups.

    It reads the stack once; its probabilities are (subsets, height, width).
    """

    model: Model
    site: Site
    chosen: Sequence[tuple[Group, ...]]

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        contract = self.model.contract
        for values in self.site.read_windows(contract, windows):
            valid = np.isfinite(values).all(axis=0)
            found = [self.model.probability(mask_other_groups(values, contract, groups)) for groups in self.chosen]
            yield np.where(valid, np.stack(found), np.float32(np.nan))


def mask_other_groups(
    values: NDArray[np.float32], contract: Contract, groups: Collection[Group]
) -> NDArray[np.float32]:
    """Return a stack whose bands outside some groups are NaN.

    Args:
        values: (bands, height, width), in contract order.
        contract: contract of the model.
        groups: groups that keep their values.
    """
    left_out = [index for index, band in enumerate(contract.input.bands) if band.group not in groups]
    result = values.copy()
    result[left_out] = np.nan
    return result


def required_groups(subsets: Iterable[Subset]) -> tuple[Group, ...]:
    """Return the groups that every supported subset holds.

    At least one subset must be supported.
    """
    supported = [subset.groups for subset in subsets if subset.supported]
    return tuple(group for group in max(supported, key=len) if all(group in groups for groups in supported))
