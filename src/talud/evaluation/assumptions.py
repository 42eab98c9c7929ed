"""What the study leaves unsaid, and what this project assumed instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from talud.bands import Group, groups
from talud.evaluation.results import Result
from talud.params import Augmentation, Params, SplitOptions

_SLOPE = {"zevenbergen_thorne": "Zevenbergen and Thorne’s derivatives", "horn": "Horn’s derivatives"}
_CURVATURE = {
    "profile": "profile curvature, along the line of steepest slope",
    "contour": "contour curvature, along the contour line",
    "total": "total curvature",
}


@dataclass(frozen=True)
class Assumption:
    """A choice that the study does not state, and the one made here."""

    choice: str
    made: str


def assumptions(params: Params, results: Sequence[Result]) -> list[Assumption]:
    """The choices behind the results, as params.yaml and the models' contracts state them."""
    stated = [
        *_patches(params),
        Assumption("Depth of the U-Net", f"{params.training.depth} poolings"),
        Assumption("Augmentation", _augmentation(params.learning.augmentation)),
        Assumption(
            "Threshold",
            "nearest to 0.5 of those whose F1 on the validation blocks is within 0.005 of the highest: "
            + ", ".join(f"{result.scores.threshold:.2f} for {result.name}" for result in results),
        ),
        Assumption("Calibration", _calibration(results)),
        Assumption("Which epoch", "the one of the highest F1 on the validation blocks"),
    ]
    used = {group for result in results for group in groups(result.contract.input.band_names)}
    terrain = _terrain(params) if Group.TERRAIN in used else []
    radar = _radar(params) if Group.SAR in used else []
    return [*stated, *terrain, *radar, *_inventory(params)]


def _calibration(results: Sequence[Result]) -> str:
    scaled = [
        one.name
        for one in results
        if one.contract.measured.calibration and not one.contract.measured.calibration.declined
    ]
    if not scaled:
        return "none: probabilities are the network’s own"
    return f"logits are scaled to fit the validation blocks (Platt 1999): {', '.join(scaled)}"


def _patches(params: Params) -> list[Assumption]:
    split, metres = params.split, params.stack.resolution
    given = [area.patches for area in params.areas.values() if area.role == "training" and area.patches]
    if given:
        metres = given[0].pixel_size
    return [
        Assumption(
            "Patch size",
            f"{split.patch} × {split.patch} pixels ({split.patch * metres:g} m), a new one every "
            f"{split.stride} pixels; at most {split.empty_share:.0%} of them without a landslide",
        ),
        Assumption("Split", _runs(split) if given else _blocks(split, metres, params.seed)),
    ]


def _augmentation(options: Augmentation) -> str:
    """In words: what is changed, and how far."""
    changed = {name: value for name, value in options.model_dump(exclude={"symmetries", "per_band"}).items() if value}
    symmetries = ["turned and mirrored (the eight symmetries of the square)"] if options.symmetries else []
    said = [*symmetries, *(f"{name} {value:g}" for name, value in changed.items())]
    return "each training patch at random: " + ", ".join(said) if said else "none"


def _blocks(split: SplitOptions, metres: float, seed: int) -> str:
    guard = f", {split.guard} pixels left out along each border" if split.guard else ""
    return (
        f"whole blocks of {split.block} × {split.block} pixels ({split.block * metres / 1000:g} km): "
        f"{split.validation:.0%} for validation, {split.test:.0%} for test, the rest for training{guard}; seed {seed}"
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
        # `stack.slope` does not choose the derivatives of curvature: Horn has none of second order.
        Assumption("Which curvature", f"{_CURVATURE[curvature]}; {_SLOPE['zevenbergen_thorne']}"),
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
        Assumption("Inventory as mask", "as the data set has it" if given else rule[params.stack.inventory_rule]),
        Assumption("Clouds and missing data", "not mapped, counted apart, and in none of TP, FP, FN and TN"),
    ]
