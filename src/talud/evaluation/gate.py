"""Promotion gate: rules that a model must pass to become the champion.

Some rules concern the model alone: parity with the Keras model, contract, size, speed and skill. A model has skill if
it is better than calling everything, or nothing, a landslide (`talud.metrics.lack_of_skill`), both on its validation
blocks (counts of its contract) and on every gate area (current stacks and masks).

The other rules compare it with the champion, on the pixels that both map and with the current stacks and masks: on the
validation blocks of the training areas, and on every gate area as a whole. Such a rule fails if the model is worse
beyond chance: if the whole 95 % interval of the difference in F1 is below 0. Transfer areas are never used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from talud.contract import Contract
from talud.engine.runtime import Model
from talud.errors import RegistryError
from talud.evaluation.bootstrap import f1_difference
from talud.evaluation.comparison import compare_blocks, compare_maps
from talud.measurement.assessment import Assessment
from talud.metrics import lack_of_skill
from talud.params import Promotion
from talud.project import Project

VALIDATION_BLOCKS = "validation blocks"
PARITY, CONTRACT, SIZE, SPEED, SKILL = MODEL_RULES = ("parity", "contract", "size", "speed", "skill")
# Least number of blocks with which a challenger can win. With five blocks, a model is better in all of them by chance
# once in 2^5 = 32 times, which is more than the 2.5 % on one side of a 95 % interval.
MINIMUM_GATE_BLOCKS = 6
ALL_PIXELS = "all of them"
_UNKNOWN = ("", "unknown")
# The timed window; the fastest pass counts.
_TIMED_SIDE_PIXELS, _TIMED_PASSES = 256, 3


@dataclass(frozen=True)
class Check:
    """Result of one rule.

    Attributes:
        rule: name of the rule.
        passed: True if the model passes the rule.
        value: measured value; None if nothing was measured.
        limit: limit of the value; None if there is none.
        words: result as text.
    """

    rule: str
    passed: bool
    value: float | None
    limit: float | None
    words: str


@dataclass(frozen=True)
class Gate:
    """Result of the gate.

    Attributes:
        checks: result of each rule.
        f1: set of pixels → F1 of the model and of the champion on it, as {"model": …, "champion": …}; `ALL_PIXELS`
            comes last. Empty without a champion.
        blocks: number of blocks on which both were compared; 0 in older records.
    """

    checks: tuple[Check, ...]
    f1: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    blocks: int = 0

    @property
    def failed(self) -> tuple[Check, ...]:
        """Rules that the model fails."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def failed_model_rules(self) -> tuple[Check, ...]:
        """Failed rules that concern the model alone."""
        return tuple(check for check in self.failed if check.rule in MODEL_RULES or check.rule.startswith(SKILL))

    def to_json(self) -> str:
        """Serialise the result as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Self:
        """Parse the output of `to_json`.

        Args:
            text: content of a version's tag.
            origin: URI of the version, for the error message.

        Raises:
            RegistryError: the text is damaged.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise RegistryError(f"{origin}: the tag 'gate' is damaged; delete the tag and register again") from error


def run_gate(project: Project, model: Model, champion: Model | None) -> Gate:
    """Check a model against every rule.

    Args:
        project: project with stacks, masks and params.yaml.
        model: model to check.
        champion: champion to compare with, which fits the current stacks; None if there is none.

    Raises:
        SourceError: a stack or mask is missing, of a gate area or (with a champion) of a training area.
        MismatchError: the model does not fit a stack.
    """
    limits = project.params.promotion
    checks: tuple[Check, ...] = (
        _parity(model.contract),
        _contract(model.contract),
        _size(model, limits),
        _speed(model, limits),
        _skill(SKILL, model.contract.measured.lack_of_skill, limits),
    )
    models = (model,) if champion is None else (model, champion)
    gates = {area: compare_maps(models, project, area) for area in project.params.areas_with_role("gate")}
    checks += tuple(
        _skill(f"{SKILL} on {area}", lack_of_skill(found[0].confusion), limits) for area, found in gates.items()
    )
    if champion is None:
        return Gate(checks)
    counts = {
        VALIDATION_BLOCKS: compare_blocks(models, project, project.params.areas_with_role("training"), "validation")
    } | gates
    checks += tuple(_not_worse(place, found, project) for place, found in counts.items())
    blocks = sum(len(found[0].blocks) for found in counts.values())
    if len(counts) > 1:
        counts[ALL_PIXELS] = tuple(map(Assessment.total, zip(*counts.values(), strict=True)))
    return Gate(checks, {place: _f1(found) for place, found in counts.items()}, blocks)


def missing_facts(contract: Contract) -> list[str]:
    """Return the names of the facts that a contract lacks."""
    stated: dict[str, object] = {
        "stack": contract.input.stack,
        "areas": contract.origin.areas,
        "hyperparameters": contract.origin.hyperparameters,
        "scores": "f1" in contract.measured.scores,
        "data_version": contract.origin.data_version not in _UNKNOWN,
        "commit": contract.origin.commit not in _UNKNOWN,
        "run_id": contract.origin.run_id not in _UNKNOWN,
        "weights": contract.origin.weights not in _UNKNOWN,
    }
    for what, values in (
        ("unit", {band.name: band.unit for band in contract.input.bands}),
        ("histogram", {band.name: band.shares for band in contract.input.bands}),
    ):
        without = [name for name, value in values.items() if not value]
        stated[f"{what} of {', '.join(without)}"] = not without
    return [name for name, value in stated.items() if not value]


def _parity(contract: Contract) -> Check:
    difference, allowed = contract.measured.parity.get("difference"), contract.measured.parity.get("allowed")
    if difference is None or allowed is None:
        return Check(
            PARITY, False, None, None, "the file does not state its difference from the Keras model; train it again"
        )
    words = f"differs from the Keras model by {difference:.1e}, limit {allowed:.1e}"
    return Check(PARITY, difference <= allowed, difference, allowed, words)


def _contract(contract: Contract) -> Check:
    gaps = missing_facts(contract)
    return Check(CONTRACT, not gaps, float(len(gaps)), 0.0, f"missing: {', '.join(gaps)}" if gaps else "complete")


def _size(model: Model, limits: Promotion) -> Check:
    found, limit = round(model.path.stat().st_size / 1e6, 3), limits.megabytes
    allowed = f", limit {limit:g} MB" if limit else ", no limit"
    return Check(SIZE, limit is None or found <= limit, found, limit, f"{found:.3g} MB{allowed}")


def _speed(model: Model, limits: Promotion) -> Check:
    limit = limits.seconds_per_megapixel
    if limit is None:
        return Check(SPEED, True, None, None, "not measured, no limit")
    found = round(seconds_per_megapixel(model), 3)
    words = f"{found:.3g} s per million pixels on this CPU, limit {limit:g} s"
    return Check(SPEED, found <= limit, found, limit, words)


def seconds_per_megapixel(model: Model) -> float:
    """Measure a network's seconds per million pixels on this CPU.

    The result is the fastest of three passes over a square of 256² pixels. A first pass, in which ONNX Runtime plans
    its memory, is not timed. The halo of tiles is not included.
    """
    timed = Model.load(model.path, provider="cpu")
    bands = np.array([[band.mean] for band in timed.contract.input.bands], np.float32)
    square = np.repeat(bands, _TIMED_SIDE_PIXELS * _TIMED_SIDE_PIXELS, axis=1).reshape(
        -1, _TIMED_SIDE_PIXELS, _TIMED_SIDE_PIXELS
    )
    seconds = []
    for _ in range(1 + _TIMED_PASSES):
        start = time.perf_counter()
        timed.probability(square)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / _TIMED_SIDE_PIXELS**2 * 1e6


def _skill(rule: str, lack: str, limits: Promotion) -> Check:
    """Check that a model is better than a constant map.

    Args:
        rule: name of the rule.
        lack: result of `talud.metrics.lack_of_skill`.
        limits: options of the gate.
    """
    if not lack:
        return Check(rule, True, None, None, "better than calling everything, or nothing, a landslide; or unknown")
    if not limits.require_skill:
        return Check(rule, True, None, None, f"{lack}; allowed because promotion.require_skill is false in params.yaml")
    return Check(rule, False, None, None, f"{lack} (promotion.require_skill: false in params.yaml allows it)")


def _not_worse(place: str, counts: Sequence[Assessment], project: Project) -> Check:
    model, champion = (one.block_counts for one in counts)
    found = f1_difference(model, champion, project.params.promotion.resamples, project.params.seed)
    f1 = _f1(counts)
    verdict = "worse beyond chance" if found.worse else "not worse beyond chance"
    words = f"{f1['model']:.3f} against the champion's {f1['champion']:.3f}, {verdict}: difference {found}"
    return Check(f"F1 on {place}", not found.worse, round(found.high, 6), 0.0, words)


def _f1(counts: Sequence[Assessment]) -> dict[str, float]:
    """Return the F1 of both models, rounded to six decimals."""
    model, champion = counts
    return {"model": round(model.f1, 6), "champion": round(champion.f1, 6)}


def format_checks(checks: Sequence[Check]) -> str:
    """Format results of rules on one line."""
    return "; ".join(f"{check.rule}: {check.words}" for check in checks)
