"""The published study that the pipeline implements: its numbers, its findings on this data, and its gaps.

Vega and Hidalgo, "Evaluation of U-Net transfer learning model for semantic segmentation of landslides in the
Colombian tropical mountain region". Training basin La Argelia (Carmen de Atrato, Chocó), inference basin
La Liboriana (Salgar, Antioquia; about 160 shallow landslides on 18 May 2015), layers at 12.5 m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isclose

from talud.bands import Group, groups_of
from talud.evaluation.results import BandSetResult, Trial, Trials
from talud.metrics import Confusion
from talud.params import Augmentation, Params, SplitOptions

AUTHORS = "Vega and Hidalgo"
TITLE = (
    "Evaluation of U-Net transfer learning model for semantic segmentation of landslides "
    "in the Colombian tropical mountain region"
)
TRAINING_BASIN = "La Argelia"
INFERENCE_BASIN = "La Liboriana"
TRIALS_PER_IMAGE_MODEL = (
    54  # Table 1: filters 16, 32, 64 × six learning rates × batch size 16, 32, 64; for each image model
)
EPOCHS = 150


@dataclass(frozen=True)
class ImageModel:
    """One of the study's image models.

    Attributes:
        bands: what its layers are.
        filters: of the best configuration, like the two that follow (Table 2).
        precision: in the training zone, like the two that follow (Table 3, two decimals as printed).
        inference: pixels of the inference zone (Table 4).
    """

    bands: str
    filters: int
    learning_rate: float
    batch_size: int
    precision: float
    recall: float
    f1: float
    inference: Confusion

    @property
    def f1_loss(self) -> float:
        """The part of the training zone's F1 that the inference zone loses; the study does not print it."""
        return 1 - self.inference.f1 / self.f1


IMAGE_MODELS: dict[str, ImageModel] = {
    "3band": ImageModel("RGB", 64, 5e-4, 16, 0.67, 0.73, 0.70, Confusion(1258, 1113, 2021, 38441)),
    "5band": ImageModel("RGB, slope, curvature", 64, 5e-4, 16, 0.70, 0.65, 0.67, Confusion(873, 683, 2406, 38871)),
    "7band": ImageModel(
        "RGB, slope, curvature, VV before and after", 32, 5e-4, 32, 0.65, 0.75, 0.70, Confusion(922, 682, 2357, 38872)
    ),
}


EQUAL_F1_TOLERANCE = 0.02  # of F1; the study's own Table 3 tells apart what differs by 0.03, printed to two decimals


class Verdict(StrEnum):
    """The result of checking a finding."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold"
    UNDECIDED = "cannot be judged"


@dataclass(frozen=True)
class Finding:
    """A finding of the study on this data.

    Attributes:
        table: of the study.
        claim: what the study found.
        verdict: on this data.
        reason: the numbers that it rests on.
    """

    table: int
    claim: str
    verdict: Verdict
    reason: str

    @property
    def judged(self) -> bool:
        """True if the data decide the finding."""
        return self.verdict is not Verdict.UNDECIDED


def check_configurations(trials: Mapping[str, Trials]) -> Finding:
    """Check Table 2: the study's best configuration of each image model.

    A band set counts if its search tried that configuration. The finding holds in part if the configuration is within
    `EQUAL_F1_TOLERANCE` of the best F1.

    Args:
        trials: band set → its trials.
    """
    claim = f"which of {TRIALS_PER_IMAGE_MODEL} configurations is best for each image model"
    verdicts, said, missing = [], [], []
    for name, theirs in IMAGE_MODELS.items():
        table = trials.get(name)
        tried = _find_trial(table, theirs) if table and len(table.trials) > 1 else None
        if table is None or tried is None:
            missing.append(name)
            continue
        verdict, words = _judge_rank(table, tried)
        verdicts.append(verdict)
        said.append(f"for {name} {words}")
    if missing:
        said.append(f"for {_join_names(missing)} not tried against others")
    verdict = _combine(verdicts)
    if missing and verdict is Verdict.HOLDS:
        verdict = Verdict.IN_PART
    return Finding(2, claim, verdict, f"the study’s choice is {', '.join(said)}")


def check_training_zone(f1: Mapping[str, float]) -> Finding:
    """Table 3: do 3 and 7 bands do about equally well, and 5 bands worse? `f1` is of the test blocks, by band set."""
    claim = "that in the training zone 3 and 7 bands do about equally well and 5 bands worse"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(3, claim, Verdict.UNDECIDED, f"no scores of {_join_names(missing)}")
    three, five, seven = (f1[name] for name in IMAGE_MODELS)
    gap, lead = abs(three - seven), min(three, seven) - five
    equal = Verdict.HOLDS if round(gap, 3) <= EQUAL_F1_TOLERANCE else Verdict.FAILS
    apart = f"3band and 7band differ by {gap:.3f}, and 5band lies {_format_lead(-lead, 'lower')} of them"
    said = f"{_scores(f1)}; {apart} (up to {EQUAL_F1_TOLERANCE} counts as equal)"
    return Finding(3, claim, _combine([equal, _judge_lead(lead)]), said)


def check_transfer(area: str, f1: Mapping[str, float], losses: Mapping[str, float]) -> Finding:
    """Table 4: does transfer cost as much of the F1 as in the study, and has the 3-band model the highest F1 there?

    Args:
        area: a labelled area of the role transfer.
        f1: of its map, by band set.
        losses: the part of the test blocks' F1 that is lost there, by band set.
    """
    low, high = _percent_range([model.f1_loss for model in IMAGE_MODELS.values()])
    claim = f"that transfer costs {low} to {high}% of the F1, and the 3-band model has the highest F1 there"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(4, claim, Verdict.UNDECIDED, f"{area}: no scores of {_join_names(missing)}")
    least, most = _percent_range([losses[name] for name in IMAGE_MODELS])
    lead = f1["3band"] - max(f1["5band"], f1["7band"])
    cost = _format_loss(area, least, most, low, high)
    said = f"{cost}, and 3band lies {_format_lead(lead, 'better')} of the others ({_scores(f1)})"
    return Finding(4, claim, _combine([_judge_loss(least, most, low, high), _judge_lead(lead)]), said)


def transfer_without_labels() -> Finding:
    """Table 4 where no transfer area has an inventory."""
    return check_transfer("any transfer area", {}, {})


def check_findings(results: Sequence[BandSetResult], areas: Sequence[str]) -> list[Finding]:
    """Check the findings on a project's results; `areas` are its labelled transfer areas."""
    by_name = {result.name: result for result in results}
    away = []
    for area in areas:
        scored = {name: result for name, result in by_name.items() if area in result.scores.areas}
        f1 = {name: result.scores.areas[area].assessment.confusion.f1 for name, result in scored.items()}
        away.append(check_transfer(area, f1, {name: result.f1_loss(area) for name, result in scored.items()}))
    return [
        check_configurations({name: result.trials for name, result in by_name.items()}),
        check_training_zone({name: result.test.f1 for name, result in by_name.items()}),
        *(away or [transfer_without_labels()]),
    ]


def _find_trial(table: Trials, theirs: ImageModel) -> Trial | None:
    """Return the trial of the study's best configuration."""
    for trial in table.trials:
        same = (trial.filters, trial.batch_size) == (theirs.filters, theirs.batch_size)
        if same and isclose(trial.learning_rate, theirs.learning_rate, rel_tol=1e-6):
            return trial
    return None


def _judge_rank(table: Trials, tried: Trial) -> tuple[Verdict, str]:
    """Judge the study's configuration among the trials of a band set."""
    place = [trial.run_id for trial in table.ranked].index(tried.run_id) + 1
    behind = table.ranked[0].scores["f1"] - tried.scores["f1"]
    words = f"number {place} of {len(table.trials)}"
    if place == 1:
        return Verdict.HOLDS, words
    verdict = Verdict.IN_PART if round(behind, 3) <= EQUAL_F1_TOLERANCE else Verdict.FAILS
    return verdict, f"{words} ({behind:.3f} of validation F1 behind the best)"


def _combine(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict on several claims: theirs where they agree."""
    if not verdicts:
        return Verdict.UNDECIDED
    return verdicts[0] if len(set(verdicts)) == 1 else Verdict.IN_PART


def _judge_lead(lead: float) -> Verdict:
    """Judge if one F1 is above another; in part if the two count as equal."""
    if abs(round(lead, 3)) <= EQUAL_F1_TOLERANCE:
        return Verdict.IN_PART
    return Verdict.HOLDS if lead > 0 else Verdict.FAILS


def _judge_loss(least: int, most: int, low: int, high: int) -> Verdict:
    """Judge if the loss here is within the range of the study; in part if the ranges overlap."""
    if most < low or least > high:
        return Verdict.FAILS
    return Verdict.HOLDS if low <= least and most <= high else Verdict.IN_PART


def _percent_range(losses: Sequence[float]) -> tuple[int, int]:
    """Return the least and the most of some shares, in percent."""
    return round(100 * min(losses)), round(100 * max(losses))


def _format_loss(area: str, least: int, most: int, low: int, high: int) -> str:
    """Format the loss by transfer here (least to most, in percent) and in the study (low to high)."""
    if least < 0:
        return f"on {area} F1 changes by {-most:+} to {-least:+}%".replace("-", "−")
    beside = "less" if most < low else "more" if least > high else "as much" if low <= least and most <= high else ""
    return f"on {area} it costs {least} to {most}%" + (f", {beside}" if beside else "")


def _format_lead(lead: float, which: str) -> str:
    return f"{abs(lead):.3f} {'above' if lead >= 0 else 'below'} the {which}"


def _scores(f1: Mapping[str, float]) -> str:
    return "F1 " + ", ".join(f"{name} {f1[name]:.3f}" for name in IMAGE_MODELS)


def _join_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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


def assumptions(params: Params, results: Sequence[BandSetResult]) -> list[Assumption]:
    """Return the choices behind the results, as params.yaml and the contracts state them."""
    stated = [
        *_patches(params),
        Assumption("Depth of the U-Net", f"{params.training.depth} poolings"),
        Assumption("Augmentation", _augmentation(params.chosen_recipe.augmentation)),
        Assumption(
            "Threshold",
            "nearest to 0.5 of those whose F1 on the validation blocks is within 0.005 of the highest: "
            + ", ".join(f"{result.scores.threshold:.2f} for {result.name}" for result in results),
        ),
        Assumption("Calibration", _calibration(results)),
        Assumption("Which epoch", "the one of the highest F1 on the validation blocks"),
    ]
    used = {group for result in results for group in groups_of(result.contract.input.band_names)}
    terrain = _terrain(params) if Group.TERRAIN in used else []
    radar = _radar(params) if Group.SAR in used else []
    return [*stated, *terrain, *radar, *_inventory(params)]


def _calibration(results: Sequence[BandSetResult]) -> str:
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
    """Format the augmentation: the changes, and their limits."""
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
