"""Published study that talud implements: numbers, findings, gaps.

Vega and Hidalgo, "Evaluation of U-Net transfer learning model for semantic segmentation of landslides in the
Colombian tropical mountain region". Training basin La Argelia (Carmen de Atrato, Chocó), inference basin
La Liboriana (Salgar, Antioquia; about 160 shallow landslides on 18 May 2015), layers at 12.5 m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isclose

from talud.evaluation.results import BandSetResult, Trial, Trials
from talud.metrics import Confusion
from talud.params.networks import PLAIN_UNET

AUTHORS = "Vega and Hidalgo"
TITLE = (
    "Evaluation of U-Net transfer learning model for semantic segmentation of landslides "
    "in the Colombian tropical mountain region"
)
TRAINING_BASIN = "La Argelia"
INFERENCE_BASIN = "La Liboriana"
# Table 1: filters 16, 32, 64 × six learning rates × batch sizes 16, 32, 64.
TRIALS_PER_IMAGE_MODEL = 54
EPOCHS = 150


@dataclass(frozen=True)
class ImageModel:
    """Image model of the study.

    Attributes:
        bands: description of its layers.
        filters: filters of the best configuration (Table 2).
        learning_rate: learning rate of the best configuration (Table 2).
        batch_size: batch size of the best configuration (Table 2).
        precision: precision in the training zone (Table 3, two decimals as printed).
        recall: recall in the training zone (Table 3).
        f1: F1 in the training zone (Table 3).
        inference: pixel counts of the inference zone (Table 4).
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
        """Relative loss of F1 in the inference zone, which the study does not print."""
        return 1 - self.inference.f1 / self.f1


IMAGE_MODELS: dict[str, ImageModel] = {
    "3band": ImageModel("RGB", 64, 5e-4, 16, 0.67, 0.73, 0.70, Confusion(1258, 1113, 2021, 38441)),
    "5band": ImageModel("RGB, slope, curvature", 64, 5e-4, 16, 0.70, 0.65, 0.67, Confusion(873, 683, 2406, 38871)),
    "7band": ImageModel(
        "RGB, slope, curvature, VV before and after", 32, 5e-4, 32, 0.65, 0.75, 0.70, Confusion(922, 682, 2357, 38872)
    ),
}


# Largest difference of F1 that counts as equal. The study distinguishes models that differ by 0.03 (Table 3).
EQUAL_F1_TOLERANCE = 0.02


class Verdict(StrEnum):
    """Result of checking a finding."""

    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold"
    UNDECIDED = "cannot be judged"


@dataclass(frozen=True)
class Finding:
    """Finding of the study, checked on this data.

    Attributes:
        table: number of the table in the study.
        claim: statement of the study.
        verdict: result on this data.
        reason: numbers behind the verdict.
    """

    table: int
    claim: str
    verdict: Verdict
    reason: str

    @property
    def judged(self) -> bool:
        """True if this data can decide the finding."""
        return self.verdict is not Verdict.UNDECIDED


def check_configurations(trials: Mapping[str, Trials]) -> Finding:
    """Check Table 2, the best configurations.

    The finding is that a configuration is the best of an image model.

    A band set counts if its search tried that configuration. The finding holds in part if the configuration is within
    `EQUAL_F1_TOLERANCE` of the best F1.

    Args:
        trials: band set → its trials.
    """
    claim = f"which of {TRIALS_PER_IMAGE_MODEL} configurations is best for each image model"
    verdicts, ranks, missing = [], [], []
    for name, theirs in IMAGE_MODELS.items():
        table = trials.get(name)
        tried = _find_trial(table, theirs) if table and len(table.trials) > 1 else None
        if table is None or tried is None:
            missing.append(name)
            continue
        verdict, words = _judge_rank(table, tried)
        verdicts.append(verdict)
        ranks.append(f"{words} for {name}")
    if missing:
        ranks.append(f"not compared with others for {_join_names(missing)}")
    verdict = _combine(verdicts)
    if missing and verdict is Verdict.HOLDS:
        verdict = Verdict.IN_PART
    return Finding(2, claim, verdict, f"rank of the study’s configuration: {'; '.join(ranks)}")


def check_training_zone(f1: Mapping[str, float]) -> Finding:
    """Check Table 3, the F1 in the training zone.

    The finding is that 3 and 7 bands score about equally, and 5 bands lower.

    Args:
        f1: band set → F1 on the test blocks.
    """
    claim = "that in the training zone 3 and 7 bands score about equally and 5 bands lower"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(3, claim, Verdict.UNDECIDED, f"no scores of {_join_names(missing)}")
    three, five, seven = (f1[name] for name in IMAGE_MODELS)
    gap, lead = abs(three - seven), min(three, seven) - five
    equal = Verdict.HOLDS if round(gap, 3) <= EQUAL_F1_TOLERANCE else Verdict.FAILS
    apart = f"3band and 7band differ by {gap:.3f}, and 5band is {_format_lead(-lead, 'lower')} of them"
    reason = f"{_scores(f1)}; {apart} (up to {EQUAL_F1_TOLERANCE} counts as equal)"
    return Finding(3, claim, _combine([equal, _judge_lead(lead)]), reason)


def check_transfer(area: str, f1: Mapping[str, float], losses: Mapping[str, float]) -> Finding:
    """Check Table 4, the F1 after transfer.

    The findings are the range of the loss of F1, and that 3 bands score highest.

    Args:
        area: labelled transfer area.
        f1: band set → F1 of the area's map.
        losses: band set → relative loss of F1 from the test blocks to the area.
    """
    low, high = _percent_range([model.f1_loss for model in IMAGE_MODELS.values()])
    claim = f"that transfer costs {low} to {high}% of the F1, and the 3-band model has the highest F1 there"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(4, claim, Verdict.UNDECIDED, f"{area}: no scores of {_join_names(missing)}")
    least, most = _percent_range([losses[name] for name in IMAGE_MODELS])
    lead = f1["3band"] - max(f1["5band"], f1["7band"])
    cost = _format_loss(area, least, most, low, high)
    reason = f"{cost}, and 3band is {_format_lead(lead, 'better')} of the others ({_scores(f1)})"
    return Finding(4, claim, _combine([_judge_loss(least, most, low, high), _judge_lead(lead)]), reason)


def transfer_without_labels() -> Finding:
    """Return the finding on Table 4 without labels."""
    return check_transfer("any transfer area", {}, {})


def check_findings(results: Sequence[BandSetResult], areas: Sequence[str]) -> list[Finding]:
    """Check all findings on a project's results.

    Args:
        results: results of each evaluated band set.
        areas: labelled transfer areas.
    """
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
    """Return the trial with the study's configuration, if any."""
    for trial in table.trials:
        same = (trial.network, trial.filters, trial.batch_size) == (PLAIN_UNET, theirs.filters, theirs.batch_size)
        if same and isclose(trial.learning_rate, theirs.learning_rate, rel_tol=1e-6):
            return trial
    return None


def _judge_rank(table: Trials, tried: Trial) -> tuple[Verdict, str]:
    """Judge the rank of a trial in its study."""
    place = [trial.run_id for trial in table.ranked].index(tried.run_id) + 1
    behind = table.ranked[0].scores["f1"] - tried.scores["f1"]
    words = f"{place} of {len(table.trials)}"
    if place == 1:
        return Verdict.HOLDS, words
    verdict = Verdict.IN_PART if round(behind, 3) <= EQUAL_F1_TOLERANCE else Verdict.FAILS
    return verdict, f"{words} (validation F1 {behind:.3f} below the best)"


def _combine(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine verdicts; different ones hold in part."""
    if not verdicts:
        return Verdict.UNDECIDED
    return verdicts[0] if len(set(verdicts)) == 1 else Verdict.IN_PART


def _judge_lead(lead: float) -> Verdict:
    """Judge a lead in F1; equal F1 holds in part."""
    if abs(round(lead, 3)) <= EQUAL_F1_TOLERANCE:
        return Verdict.IN_PART
    return Verdict.HOLDS if lead > 0 else Verdict.FAILS


def _judge_loss(least: int, most: int, low: int, high: int) -> Verdict:
    """Judge losses in percent; ranges that overlap the study's hold in part."""
    if most < low or least > high:
        return Verdict.FAILS
    return Verdict.HOLDS if low <= least and most <= high else Verdict.IN_PART


def _percent_range(losses: Sequence[float]) -> tuple[int, int]:
    """Return the lowest and highest share in percent."""
    return round(100 * min(losses)), round(100 * max(losses))


def _format_loss(area: str, least: int, most: int, low: int, high: int) -> str:
    """Format the loss by transfer next to the study's.

    Args:
        area: name of the area.
        least: lowest loss on this data, in percent.
        most: highest loss on this data, in percent.
        low: lowest loss in the study, in percent.
        high: highest loss in the study, in percent.
    """
    if least < 0:
        return f"on {area} F1 changes by {-most:+} to {-least:+}%".replace("-", "−")
    relation = ""
    if most < low:
        relation = ", less than in the study"
    elif least > high:
        relation = ", more than in the study"
    elif low <= least and most <= high:
        relation = ", as in the study"
    return f"on {area} it costs {least} to {most}%{relation}"


def _format_lead(lead: float, which: str) -> str:
    return f"{abs(lead):.3f} {'above' if lead >= 0 else 'below'} the {which}"


def _scores(f1: Mapping[str, float]) -> str:
    return "F1 " + ", ".join(f"{name} {f1[name]:.3f}" for name in IMAGE_MODELS)


def _join_names(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
