"""Promotion of registered models: the alias that a model gets, and the reason.

Two questions are kept apart. The gate (`gate`) decides if a model *may* be the champion: by its rules a person may
promote any version. The pipeline makes it the champion *by itself* if it passes the gate and its F1 is higher than the
champion's on all deciding pixels together, both scored again with the present stacks and masks. The validation blocks
favour the new model, whose epoch, trial and threshold were chosen on them; gate areas chose nothing, so that a team
that has the labels should name one. Fewer than `gate.MINIMUM_GATE_BLOCKS` blocks decide nothing: the champion stays.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from talud.contract import Contract
from talud.data.record import current_stack
from talud.engine.runtime import Model
from talud.errors import MismatchError, ModelError, PromotionError
from talud.evaluation import gate as gates
from talud.evaluation.gate import Gate
from talud.evaluation.registration import evaluation_counts, open_version, register_trained
from talud.files import atomic_replace
from talud.mapping.reader import open_stack
from talud.metrics import lack_of_skill
from talud.project import Project
from talud.registry import SET_ASIDE, ModelVersion, Store

REASON, GATE = "alias_reason", "gate"  # tags of a version: the reason of its alias, and the result of the gate


@dataclass(frozen=True)
class Registration:
    """The result of registering or promoting a model.

    Attributes:
        name: the name of the registered model.
        version: the version that holds the model.
        alias: `champion` or `challenger`.
        reason: the reason of the alias.
        gate: the result of the gate when the alias was decided.
        run_id: the MLflow run of the trial.
        variants: the reduced precisions in which the version holds the model too.
        passed_over: files beside the model that are named like its variants and belong to another model.
        warnings: sentences on areas where the model is no better than calling everything, or nothing, a landslide.
        weights: the checksum of the model's weights.
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
        """Return the faults of the model's file; empty if it is the champion.

        A lack of skill is a result of training, and no fault of the file.
        """
        faults = [check for check in self.gate.failed_model_rules if not check.rule.startswith(gates.SKILL)]
        return "" if self.alias == "champion" else gates.format_checks(faults)


def register(project: Project, band_set: str) -> Registration:
    """Register a band set's model, and give it its alias.

    A model that is registered already is not registered again: two models are the same if weights, training data, and
    all else that their contracts state are equal, except for run, commit and scores. Variants of reduced precision
    beside the model that belong to it go into the same version, also into one that was registered without them. The
    alias moves last, after the registered version has been fetched and opened. The result is written to
    `registered/BAND_SET.json`.

    Raises:
        ParamsError: there is no such band set.
        ModelError: its model is missing, or is not one that talud can run.
        RegistryError: the store cannot be used, or gives back something else.
        SourceError: there is a champion, and a stack or mask to compare on is missing.
    """
    project.params.band_set(band_set)
    path = project.model(band_set)
    if not path.is_file():
        raise ModelError(f"{path}: not found; run talud train {band_set} first")
    model = Model.load(path)
    if model.contract.origin.name != band_set:
        raise ModelError(f"{path}: its contract says '{model.contract.origin.name}', not '{band_set}'; train it again")
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
    """Give a registered version its alias; return it, the reason and the gate's result."""
    champion = store.models.champion(version.name)
    if champion and champion.version == version.version:
        return "champion", version.tags.get(REASON, "the champion already"), recorded_gate(version) or Gate(())
    alias, reason, gate = _decide(store, project, version, model, champion)
    _record(store, version, reason, gate)
    if alias == "champion":
        store.models.promote(version)
    else:
        store.models.set_alias(version, alias)
    return alias, reason, gate


def _warnings(project: Project, contract: Contract) -> tuple[str, ...]:
    """Return warnings that a model is no better than a constant map.

    The scores are those of its validation blocks and of its evaluation.
    """
    validation = [contract.measured.lack_of_skill] if contract.measured.lack_of_skill else []
    found = {area: lack_of_skill(counts) for area, counts in evaluation_counts(project, contract).items()}
    return (*validation, *(f"on {area} {sentence}" for area, sentence in found.items() if sentence))


def promote(project: Project, name: str, number: str) -> Registration:
    """Make a registered version the champion for a person, if it passes the gate.

    The version that it replaces is set aside: the pipeline does not put it back by itself. A version that does not
    pass becomes the challenger, and the champion stays.

    Args:
        project: the project with the stacks and masks on which version and champion are compared.
        name: the name of the registered model.
        number: the number of the version.

    Raises:
        RegistryError: there is no such version, or the store cannot be used.
        PromotionError: the version does not pass the gate.
        SourceError, MismatchError: the models cannot be compared on the present stacks.
    """
    store = Store.open(project.root)
    version = store.models.look_up(f"{name}/{number}")
    champion = store.models.champion(name)
    if champion and champion.version == version.version:
        reason = version.tags.get(REASON, "the champion already")
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
    """The champion that a model is compared with.

    Attributes:
        name: its name for a sentence.
        model: the model; None if there is no champion, or it cannot be run.
        reason: the reason why it cannot be run, or empty.
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
        for area in (*project.params.areas_of("training"), *project.params.areas_of("gate")):
            with open_stack(current_stack(project, area), model.contract):
                pass
    except (MismatchError, ModelError) as error:
        return _Champion(named, None, f"{named}, cannot be run on the present stacks: {error}")
    return _Champion(named, model)


def _decide(
    store: Store, project: Project, version: ModelVersion, model: Model, champion: ModelVersion | None
) -> tuple[str, str, Gate]:
    """Decide the alias of a model; return it, the reason and the gate's result."""
    present = _load_champion(store, project, champion)
    gate = gates.run_gate(project, model, present.model)
    if gate.failed_model_rules:
        return "challenger", f"failed the gate: {gates.format_checks(gate.failed)}", gate
    if gate.failed:
        return "challenger", f"worse than {present.name}: {gates.format_checks(gate.failed)}", gate
    if SET_ASIDE in version.tags:
        again = f"talud models promote {version.name} {version.version} makes it the champion again"
        return "challenger", f"set aside {version.tags[SET_ASIDE]}; {again}", gate
    if present.model is None:
        return "champion", present.reason or f"the first version of {version.name}", gate
    place, f1 = list(gate.f1.items())[-1]  # all deciding pixels together, or the only ones
    numbers = f"F1 {f1['model']:.3f} against {f1['champion']:.3f} on {place}"
    if f1["model"] > f1["champion"] and gate.blocks < gates.MINIMUM_GATE_BLOCKS:
        few = f"{gate.blocks} block{'s'[: gate.blocks != 1]}, and fewer than {gates.MINIMUM_GATE_BLOCKS} decide nothing"
        advice = f"name a gate area, or run talud models promote {version.name} {version.version}"
        return "challenger", f"not known to be better than {present.name}: {numbers}, {few}; {advice}", gate
    if f1["model"] > f1["champion"]:
        return "champion", f"better than {present.name}: {numbers}", gate
    return "challenger", f"no better than {present.name}: {numbers}", gate


def _record(store: Store, version: ModelVersion, reason: str, gate: Gate) -> None:
    """Tag a version with the result of the gate, and the reason of its alias."""
    store.models.describe(version, {REASON: reason, GATE: gate.to_json()})


def recorded_gate(version: ModelVersion) -> Gate | None:
    """Return the result of a version's last examination; None if never examined."""
    return Gate.from_json(version.tags[GATE], version.uri) if GATE in version.tags else None
