"""Choices of a project that the published study does not state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from talud.bands import Group, groups_of
from talud.evaluation.results import BandSetResult
from talud.params import Augmentation, Params, SplitOptions
from talud.params.networks import PLAIN_UNET

_SLOPE = {"zevenbergen_thorne": "Zevenbergen and Thorne’s derivatives", "horn": "Horn’s derivatives"}
_CURVATURE = {
    "profile": "profile curvature, along the line of steepest slope",
    "contour": "contour curvature, along the contour line",
    "total": "total curvature",
}


@dataclass(frozen=True)
class Assumption:
    """Choice that the study does not state.

    Attributes:
        choice: name of the choice.
        made: choice made in this project.
    """

    choice: str
    made: str


def assumptions(params: Params, results: Sequence[BandSetResult]) -> list[Assumption]:
    """Return this project's choices where the study states none."""
    stated = [
        *_patches(params),
        _network(params, results),
        Assumption("Augmentation", _augmentation(params.chosen_recipe.augmentation)),
        Assumption(
            "Threshold",
            "the one nearest to 0.5 whose F1 on the validation blocks is within 0.005 of the highest: "
            + ", ".join(f"{result.scores.threshold:.2f} for {result.name}" for result in results),
        ),
        Assumption("Calibration", _calibration(results)),
        Assumption("Epoch", "the one with the highest F1 on the validation blocks"),
    ]
    used = {group for result in results for group in groups_of(result.contract.input.band_names)}
    terrain = _terrain(params) if Group.TERRAIN in used else []
    radar = _radar(params) if Group.SAR in used else []
    return [*stated, *terrain, *radar, *_inventory(params)]


def _network(params: Params, results: Sequence[BandSetResult]) -> Assumption:
    networks = {result.name: result.contract.origin.network_name for result in results}
    if set(networks.values()) <= {PLAIN_UNET}:
        return Assumption("Depth of the U-Net", f"{params.training.depth} poolings")
    return Assumption("Network", ", ".join(f"{network} for {name}" for name, network in networks.items()))


def _calibration(results: Sequence[BandSetResult]) -> str:
    scaled = [
        one.name
        for one in results
        if one.contract.measured.calibration and not one.contract.measured.calibration.declined
    ]
    if not scaled:
        return "none: probabilities are the network’s output"
    return f"logits are scaled to fit the validation blocks (Platt 1999): {', '.join(scaled)}"


def _patches(params: Params) -> list[Assumption]:
    split, metres = params.split, params.stack.resolution
    given = [area.patches for area in params.areas.values() if area.role == "training" and area.patches]
    if given:
        metres = metres if params.stack.resamples(given[0].pixel_size) else given[0].pixel_size
    return [
        Assumption(
            "Patch size",
            f"{split.patch} × {split.patch} pixels ({split.patch * metres:g} m), one every {split.stride} pixels; "
            f"at most {split.empty_share:.0%} of them without a landslide",
        ),
        Assumption("Split", _runs(split) if given else _blocks(split, metres, params.seed)),
    ]


# Options of the augmentation that only describe how others act.
_DETAILS = {"symmetries", "per_band", "unchanged"}


def _augmentation(options: Augmentation) -> str:
    """Format the augmentations with their limits."""
    changed = {name: value for name, value in options.model_dump(exclude=_DETAILS).items() if value}
    symmetries = ["turned and mirrored (the eight symmetries of the square)"] if options.symmetries else []
    said = [*symmetries, *(f"{name} {value:g}" for name, value in changed.items())]
    return "each training patch at random: " + ", ".join(said) if said else "none"


def _blocks(split: SplitOptions, metres: float, seed: int) -> str:
    buffer = f", a buffer of {split.guard} pixels along each border" if split.guard else ""
    return (
        f"whole blocks of {split.block} × {split.block} pixels ({split.block * metres / 1000:g} km): "
        f"{split.validation:.0%} for validation, {split.test:.0%} for test, the rest for training{buffer}; seed {seed}"
    )


def _runs(split: SplitOptions) -> str:
    return (
        f"the patches of the data set by runs of their numbers: the last {split.test:.0%} for test, the "
        f"{split.validation:.0%} before them for validation, the first ones for training"
    )


def _terrain(params: Params) -> list[Assumption]:
    slope, curvature = params.stack.slope, params.stack.curvature
    return [
        Assumption("Slope", _SLOPE[slope]),
        # Curvature does not depend on `stack.slope`: Horn defines no second derivatives.
        Assumption("Curvature", f"{_CURVATURE[curvature]}; {_SLOPE['zevenbergen_thorne']}"),
    ]


def _radar(params: Params) -> list[Assumption]:
    unit = {"db": "decibels", "amplitude": "amplitude", "power": "power"}[params.stack.sar_unit]
    window = params.stack.lee_window
    speckle = f"a Lee filter of {window} × {window} pixels" if window else "no speckle filter"
    return [Assumption("SAR processing", f"backscatter resampled as power, then in {unit}; {speckle}")]


def _inventory(params: Params) -> list[Assumption]:
    rule = {
        "centre": "a pixel is landslide where a polygon holds its centre",
        "all_touched": "a pixel is landslide where a polygon touches it",
    }
    given = all(area.patches for area in params.areas.values())
    return [
        Assumption("Inventory as mask", "from the data set" if given else rule[params.stack.inventory_rule]),
        Assumption("Clouds and missing data", "not mapped; counted separately, not in TP, FP, FN or TN"),
    ]
