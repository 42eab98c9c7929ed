"""Promotion of registered models to champion or challenger.

The gate (`gate`) decides if a model *may* become the champion: a person can promote any version that passes it. The
pipeline promotes a model *by itself* if it passes the gate and its F1 on all deciding pixels together is higher than
the champion's, both scored again with the current stacks and masks. The validation blocks favour the new model, because
its epoch, trial and threshold were chosen on them. Gate areas were used for no choice, so a team with enough labels
should name one. With fewer than `gate.MINIMUM_GATE_BLOCKS` blocks the champion stays.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from talud.contract import Contract
from talud.data.stack_record import check_current_stack
from talud.engine.runtime import Model
from talud.errors import MismatchError, ModelError, PromotionError
from talud.evaluation import gate as gates
from talud.evaluation.gate import Gate
from talud.evaluation.registration import evaluation_counts, open_version, register_trained
from talud.files import atomic_replace
from talud.mapping.reader import open_stack
from talud.metrics import lack_of_skill
from talud.project import Project
from talud.registry import SET_ASIDE_TAG, ModelVersion, Store
from talud.text import counted

# Tags of a version: the reason for its alias, and the result of the gate.
REASON_TAG, GATE_TAG = "alias_reason", "gate"


@dataclass(frozen=True)
class Registration:
    """Result of registering or promoting a model.

    Attributes:
        name: name of the registered model.
        version: number of the version.
        alias: `champion` or `challenger`.
        reason: reason for the alias.
        gate: result of the gate.
        run_id: MLflow run of the trial.
        variants: precisions of the reduced-precision variants in the version.
        passed_over: variant files next to the model that belong to another model and were not registered.
        warnings: warnings that the model is no better than calling everything, or nothing, a landslide.
        weights: checksum of the model's weights.
    """

    name: str
    version: str
    alias: str
    reason: str
    gate: Gate
    run_id: str = ""
    variants: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    weights: str = ""

    @property
    def file_faults(self) -> str:
        """Faults of the model's file; empty for a champion.

        A lack of skill is a result of training, not a fault of the file.
        """
        faults = [check for check in self.gate.failed_model_rules if not check.rule.startswith(gates.SKILL)]
        return "" if self.alias == "champion" else gates.format_checks(faults)


def register(project: Project, band_set: str) -> Registration:
    """Register a band set's model and set its alias.

    A model is registered only once: two models are the same if their contracts are equal, except for run, commit and
    scores. Reduced-precision variants next to the model are added to its version, even if that exists already. The
    alias is moved last, after the registered version has been fetched and loaded. The result is written to
    `registered/BAND_SET.json`.

    Raises:
        ParamsError: there is no such band set.
        ModelError: the model is missing or cannot be run.
        RegistryError: the store cannot be used, or returns a different model.
        SourceError: a stack or mask for the comparison with the champion is missing.
    """
    project.params.band_set(band_set)
    path = project.model(band_set)
    if not path.is_file():
        raise ModelError(f"{path}: not found; run talud train {band_set} first")
    model = Model.load(path)
    if model.contract.origin.name != band_set:
        raise ModelError(f"{path}: is a model of '{model.contract.origin.name}', not of '{band_set}'; train it again")
    store = Store.open(project.root, create=True)
    version, registered, variants = register_trained(store, project, model)
    alias, reason, gate = _set_alias(store, project, version, registered)
    registration = Registration(
        version.name,
        version.version,
        alias,
        reason,
        gate,
        version.run_id,
        tuple(variant.derived.precision for variant in variants.contracts),
        variants.passed_over,
        _warnings(project, model.contract),
        model.contract.origin.weights,
    )
    with atomic_replace(project.registration(band_set)) as scratch:
        scratch.write_text(json.dumps(asdict(registration), indent=2) + "\n", encoding="utf-8")
    return registration


def _set_alias(store: Store, project: Project, version: ModelVersion, model: Model) -> tuple[str, str, Gate]:
    """Set a version's alias; return alias, reason, gate result."""
    champion = store.models.champion(version.name)
    if champion and champion.version == version.version:
        return "champion", version.tags.get(REASON_TAG, "already the champion"), recorded_gate(version) or Gate(())
    alias, reason, gate = _decide(store, project, version, model, champion)
    _record(store, version, reason, gate)
    if alias == "champion":
        store.models.promote(version)
    else:
        store.models.set_alias(version, alias)
    return alias, reason, gate


def _warnings(project: Project, contract: Contract) -> tuple[str, ...]:
    """Return warnings of a lack of skill.

    The validation blocks and the evaluated areas are checked.
    """
    validation = [contract.measured.lack_of_skill] if contract.measured.lack_of_skill else []
    found = {area: lack_of_skill(counts) for area, counts in evaluation_counts(project, contract).items()}
    return (*validation, *(f"on {area} {sentence}" for area, sentence in found.items() if sentence))


def promote(project: Project, name: str, number: str) -> Registration:
    """Make a version the champion, if it passes the gate.

    The replaced version is set aside: the pipeline does not promote it again by itself. A version that fails the gate
    becomes the challenger, and the champion stays.

    Args:
        project: project with the stacks and masks on which version and champion are compared.
        name: name of the registered model.
        number: number of the version.

    Raises:
        RegistryError: there is no such version, or the store cannot be used.
        PromotionError: the version fails the gate.
        SourceError: a stack or mask is missing.
        MismatchError: the model does not fit the current stacks.
    """
    store = Store.open(project.root)
    version = store.models.look_up(f"{name}/{number}")
    champion = store.models.champion(name)
    if champion and champion.version == version.version:
        reason = version.tags.get(REASON_TAG, "already the champion")
        return Registration(
            name, version.version, "champion", reason, recorded_gate(version) or Gate(()), version.run_id
        )
    model = open_version(store, version)
    present = _load_champion(store, project, champion)
    gate = gates.run_gate(project, model, present.model)
    if gate.failed:
        _record(store, version, f"failed the gate: {gates.format_checks(gate.failed)}", gate)
        store.models.set_alias(version, "challenger")
        raise PromotionError(
            f"{name} version {version.version} does not pass the gate: {gates.format_checks(gate.failed)}"
        )
    place = f"in place of version {champion.version}" if champion else "the first champion"
    _record(store, version, f"promoted by hand, {place}", gate)
    store.models.promote(version, by_hand=True)
    return Registration(name, version.version, "champion", f"promoted by hand, {place}", gate, version.run_id)


@dataclass(frozen=True)
class _Champion:
    """Champion that a model is compared with.

    Attributes:
        name: description for messages.
        model: model; None if there is no champion, or it cannot be run.
        reason: reason why it cannot be run; else empty.
    """

    name: str = ""
    model: Model | None = None
    reason: str = ""


def _load_champion(store: Store, project: Project, champion: ModelVersion | None) -> _Champion:
    if champion is None:
        return _Champion()
    named = f"the champion, version {champion.version}"
    try:
        model = open_version(store, champion)
        for area in (*project.params.areas_with_role("training"), *project.params.areas_with_role("gate")):
            with open_stack(check_current_stack(project, area), model.contract):
                pass
    except (MismatchError, ModelError) as error:
        return _Champion(named, None, f"{named}, cannot be run on the current stacks: {error}")
    return _Champion(named, model)


def _decide(
    store: Store, project: Project, version: ModelVersion, model: Model, champion: ModelVersion | None
) -> tuple[str, str, Gate]:
    """Decide a model's alias; return alias, reason, gate result."""
    present = _load_champion(store, project, champion)
    gate = gates.run_gate(project, model, present.model)
    if gate.failed_model_rules:
        return "challenger", f"failed the gate: {gates.format_checks(gate.failed)}", gate
    if gate.failed:
        return "challenger", f"worse than {present.name}: {gates.format_checks(gate.failed)}", gate
    if SET_ASIDE_TAG in version.tags:
        again = f"talud models promote {version.name} {version.version} makes it the champion again"
        return "challenger", f"set aside {version.tags[SET_ASIDE_TAG]}; {again}", gate
    if present.model is None:
        return "champion", present.reason or f"the first version of {version.name}", gate
    place, f1 = list(gate.f1.items())[-1]  # all deciding pixels together, or the only ones
    numbers = f"F1 {f1['model']:.3f} against {f1['champion']:.3f} on {place}"
    if f1["model"] > f1["champion"] and gate.blocks < gates.MINIMUM_GATE_BLOCKS:
        few = f"{counted(gate.blocks, 'block')}, but at least {gates.MINIMUM_GATE_BLOCKS} are needed"
        advice = f"add a gate area, or run talud models promote {version.name} {version.version}"
        return "challenger", f"not shown to be better than {present.name}: {numbers}, {few}; {advice}", gate
    if f1["model"] > f1["champion"]:
        return "champion", f"better than {present.name}: {numbers}", gate
    return "challenger", f"no better than {present.name}: {numbers}", gate


def _record(store: Store, version: ModelVersion, reason: str, gate: Gate) -> None:
    """Record gate result and reason as tags."""
    store.models.describe(version, {REASON_TAG: reason, GATE_TAG: gate.to_json()})


def recorded_gate(version: ModelVersion) -> Gate | None:
    """Return a version's last gate result, if any."""
    return Gate.from_json(version.tags[GATE_TAG], version.uri) if GATE_TAG in version.tags else None
