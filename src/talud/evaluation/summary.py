"""What the numbers say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from talud.evaluation.results import Result
from talud.evaluation.study import IMAGE_MODELS, INFERENCE_BASIN
from talud.metrics import Confusion


def sentences(results: Sequence[Result], transfer: Sequence[str]) -> list[str]:
    """Which band set scores highest where, and what transfer costs; `transfer` names the labelled transfer areas."""
    said = _without_skill(results, transfer)
    said += ["On the test blocks of the training areas " + ranking({result.name: result.test.f1 for result in results})]
    for area in transfer:
        scored = [result for result in results if area in result.scores.areas]
        if scored:
            counts = {result.name: result.scores.areas[area].assessment.confusion for result in scored}
            said.append(f"On {area} " + ranking({name: confusion.f1 for name, confusion in counts.items()}))
            if any(not _lacks_skill(result, area) for result in scored):
                said.append(change([result.fall(area) for result in scored if not _lacks_skill(result, area)], area))
            said.append(floor(next(iter(counts.values())), area))
    return said


def _without_skill(results: Sequence[Result], areas: Sequence[str]) -> list[str]:
    """Return a sentence for each map that is no better than a constant one."""
    said = []
    for result in results:
        for part in ("test", *(area for area in areas if area in result.scores.areas)):
            if lack := result.lack_of_skill(part):
                place = "the test blocks of the training areas" if part == "test" else part
                said.append(f"{result.name} shows no skill: on {place} it is {lack}.")
    return said


def _lacks_skill(result: Result, area: str) -> bool:
    """Check whether a change of F1 is meaningless.

    It is where the model is no better than a constant map, at home or in the area.
    """
    return bool(result.lack_of_skill("test") or result.lack_of_skill(area))


def study_sentences() -> list[str]:
    """What follows from the counts that the study printed for its inference zone."""
    scores = {name: model.inference.f1 for name, model in IMAGE_MODELS.items()}
    falls = [model.fall for model in IMAGE_MODELS.values()]
    return [
        f"In the study’s own inference zone {INFERENCE_BASIN}, by the counts of its Table 4, {ranking(scores)}",
        change(falls, INFERENCE_BASIN),
        "The “around 0.70” of its text is the training zone’s F1, not this one.",
    ]


def ranking(f1: Mapping[str, float]) -> str:
    """Band sets by F1, the highest first, as the end of a sentence."""
    ranked = sorted(f1.items(), key=lambda item: -item[1])
    best, score = ranked[0]
    if len(ranked) == 1:
        return f"{best} reaches an F1 of {score:.3f}."
    rest = ", ".join(f"{name} {value:.3f}" for name, value in ranked[1:])
    if round(score, 3) == round(ranked[1][1], 3):
        return f"no band set stands out by F1: {best} {score:.3f}, {rest}."
    return f"{best} has the highest F1, {score:.3f}, before {rest}."


def change(falls: Sequence[float], area: str) -> str:
    """The loss of F1 between the test blocks and an area, over the band sets."""
    low, high = round(100 * min(falls)), round(100 * max(falls))
    if high <= 0:
        return f"Transfer to {area} costs no F1: it is {_span(-high, -low)}% higher there than at home."
    if low < 0:
        return f"Transfer to {area} changes F1 by between +{-low}% and −{high}% of what it was at home."
    return f"Transfer to {area} costs {_span(low, high)}% of the F1."


def floor(counts: Confusion, area: str) -> str:
    """What a map would score that calls every pixel a landslide."""
    everything = Confusion(tp=counts.tp + counts.fn, fp=counts.fp + counts.tn)
    return f"A map that calls all of {area} a landslide has an F1 of {everything.f1:.3f}."


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
