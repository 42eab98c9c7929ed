"""Whether the study's findings hold on this data: a sentence for each of its Tables 2, 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isclose

from talud.evaluation.results import Result, Trial, Trials
from talud.evaluation.study import IMAGE_MODELS, TRIALS, ImageModel

ABOUT_EQUAL = 0.02  # of F1; the study's own Table 3 tells apart what differs by 0.03, printed to two decimals


class Verdict(StrEnum):
    """What became of a finding."""

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
        """Whether the data say anything of it."""
        return self.verdict is not Verdict.UNDECIDED


def configurations(trials: Mapping[str, Trials]) -> Finding:
    """Table 2: is the study's best configuration of each image model the best here? `trials` is by band set.

    A band set counts where its search tried that configuration; one within `ABOUT_EQUAL` of the best F1 holds in part.
    """
    claim = f"which of {TRIALS} configurations is best for each image model"
    verdicts, said, missing = [], [], []
    for name, theirs in IMAGE_MODELS.items():
        table = trials.get(name)
        tried = _tried(table, theirs) if table and len(table.trials) > 1 else None
        if table is None or tried is None:
            missing.append(name)
            continue
        verdict, words = _standing(table, tried)
        verdicts.append(verdict)
        said.append(f"for {name} {words}")
    if missing:
        said.append(f"for {_listed(missing)} not tried against others")
    verdict = _together(verdicts)
    if missing and verdict is Verdict.HOLDS:
        verdict = Verdict.IN_PART
    return Finding(2, claim, verdict, f"the study’s choice is {', '.join(said)}")


def training_zone(f1: Mapping[str, float]) -> Finding:
    """Table 3: do 3 and 7 bands do about equally well, and 5 bands worse? `f1` is of the test blocks, by band set."""
    claim = "that in the training zone 3 and 7 bands do about equally well and 5 bands worse"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(3, claim, Verdict.UNDECIDED, f"no scores of {_listed(missing)}")
    three, five, seven = (f1[name] for name in IMAGE_MODELS)
    gap, lead = abs(three - seven), min(three, seven) - five
    equal = Verdict.HOLDS if round(gap, 3) <= ABOUT_EQUAL else Verdict.FAILS
    apart = f"3band and 7band differ by {gap:.3f}, and 5band lies {_above(-lead, 'lower')} of them"
    said = f"{_scores(f1)}; {apart} (up to {ABOUT_EQUAL} counts as equal)"
    return Finding(3, claim, _together([equal, _clearly(lead)]), said)


def transfer(area: str, f1: Mapping[str, float], falls: Mapping[str, float]) -> Finding:
    """Table 4: does transfer cost as much of the F1 as in the study, and has the 3-band model the highest F1 there?

    Args:
        area: a labelled area of the role transfer.
        f1: of its map, by band set.
        falls: the part of the test blocks' F1 that is lost there, by band set.
    """
    low, high = _span([model.fall for model in IMAGE_MODELS.values()])
    claim = f"that transfer costs {low} to {high}% of the F1, and the 3-band model has the highest F1 there"
    if missing := [name for name in IMAGE_MODELS if name not in f1]:
        return Finding(4, claim, Verdict.UNDECIDED, f"{area}: no scores of {_listed(missing)}")
    least, most = _span([falls[name] for name in IMAGE_MODELS])
    lead = f1["3band"] - max(f1["5band"], f1["7band"])
    cost = _cost(area, least, most, low, high)
    said = f"{cost}, and 3band lies {_above(lead, 'better')} of the others ({_scores(f1)})"
    return Finding(4, claim, _together([_within(least, most, low, high), _clearly(lead)]), said)


def unlabelled() -> Finding:
    """Table 4 where no transfer area has an inventory."""
    return transfer("any transfer area", {}, {})


def of(results: Sequence[Result], areas: Sequence[str]) -> list[Finding]:
    """The findings on a project's results; `areas` are the labelled ones of the role transfer."""
    by_name = {result.name: result for result in results}
    away = []
    for area in areas:
        scored = {name: result for name, result in by_name.items() if area in result.scores.areas}
        f1 = {name: result.scores.areas[area].assessment.confusion.f1 for name, result in scored.items()}
        away.append(transfer(area, f1, {name: result.fall(area) for name, result in scored.items()}))
    return [
        configurations({name: result.trials for name, result in by_name.items()}),
        training_zone({name: result.test.f1 for name, result in by_name.items()}),
        *(away or [unlabelled()]),
    ]


def _tried(table: Trials, theirs: ImageModel) -> Trial | None:
    """The trial of the study's best configuration."""
    for trial in table.trials:
        same = (trial.filters, trial.batch_size) == (theirs.filters, theirs.batch_size)
        if same and isclose(trial.learning_rate, theirs.learning_rate, rel_tol=1e-6):
            return trial
    return None


def _standing(table: Trials, tried: Trial) -> tuple[Verdict, str]:
    """Where the study's configuration stands among the trials of a band set."""
    place = [trial.run_id for trial in table.ranked].index(tried.run_id) + 1
    behind = table.ranked[0].scores["f1"] - tried.scores["f1"]
    words = f"number {place} of {len(table.trials)}"
    if place == 1:
        return Verdict.HOLDS, words
    verdict = Verdict.IN_PART if round(behind, 3) <= ABOUT_EQUAL else Verdict.FAILS
    return verdict, f"{words} ({behind:.3f} of validation F1 behind the best)"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict on several claims: theirs where they agree."""
    if not verdicts:
        return Verdict.UNDECIDED
    return verdicts[0] if len(set(verdicts)) == 1 else Verdict.IN_PART


def _clearly(lead: float) -> Verdict:
    """Whether one F1 is above another; in part where the two count as equal."""
    if abs(round(lead, 3)) <= ABOUT_EQUAL:
        return Verdict.IN_PART
    return Verdict.HOLDS if lead > 0 else Verdict.FAILS


def _within(least: int, most: int, low: int, high: int) -> Verdict:
    """Whether what is lost here lies between the least and the most of the study; in part where the two overlap."""
    if most < low or least > high:
        return Verdict.FAILS
    return Verdict.HOLDS if low <= least and most <= high else Verdict.IN_PART


def _span(falls: Sequence[float]) -> tuple[int, int]:
    """The least and the most of some shares, in percent."""
    return round(100 * min(falls)), round(100 * max(falls))


def _cost(area: str, least: int, most: int, low: int, high: int) -> str:
    """What transfer costs here (least to most, in percent), beside what it costs in the study (low to high)."""
    if least < 0:
        return f"on {area} F1 changes by {-most:+} to {-least:+}%".replace("-", "−")
    beside = "less" if most < low else "more" if least > high else "as much" if low <= least and most <= high else ""
    return f"on {area} it costs {least} to {most}%" + (f", {beside}" if beside else "")


def _above(lead: float, which: str) -> str:
    return f"{abs(lead):.3f} {'above' if lead >= 0 else 'below'} the {which}"


def _scores(f1: Mapping[str, float]) -> str:
    return "F1 " + ", ".join(f"{name} {f1[name]:.3f}" for name in IMAGE_MODELS)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
