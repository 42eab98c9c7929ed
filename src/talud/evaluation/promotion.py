"""Registering a trained model, and deciding whether it takes the champion's place.

Two questions are kept apart. Whether a model *may* be the champion, the gate answers (`gate`): by its rules a person
may promote any version. Whether the pipeline makes it the champion *by itself*: where it passes the gate, and its F1 is
higher than the champion's on all deciding pixels together, both scored again as stacks and masks are now. The
validation blocks are kinder to the new model, whose epoch, trial and threshold were chosen on them; gate areas chose
nothing, so that a team that has the labels should name one. Fewer than `gate.MINIMUM_GATE_BLOCKS` blocks decide
nothing: the champion stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic_core import to_json

from talud.contract import Contract, Reduced, variant_path
from talud.data.record import current_stack
from talud.engine.runtime import Model, Origin
from talud.errors import MismatchError, ModelError, PromotionError, RegistryError
from talud.evaluation import gate as gates
from talud.evaluation.gate import Gate
from talud.evaluation.restoration import run_of
from talud.evaluation.results import ScoreTable
from talud.files import replacing
from talud.mapping.reader import open_stack
from talud.metrics import Confusion, lack_of_skill
from talud.project import Project
from talud.registry import EXPERIMENT, SET_ASIDE, ModelVersion, Store

CHOICE = ("filters", "learning_rate", "batch_size", "epochs")  # the hyperparameters that a description names
_LATER = ("parity", "calibration", "validation", "subsets", "adapted", "finetuned")  # fields that older files lack
REASON, GATE = "alias_reason", "gate"  # tags of a version: why it has its alias, and what the gate found


@dataclass(frozen=True)
class Registration:
    """What registering a model came to.

    Attributes:
        name: of the registered model.
        version: that holds the model.
        alias: `champion` or `challenger`.
        reason: of the alias, in words.
        gate: what the gate found when the alias was decided.
        run_id: the MLflow run of the trial.
        variants: the reduced precisions in which the version holds the model too.
        passed_over: files beside the model that are named like its variants and belong to another model.
        warnings: where the model is no better than calling everything, or nothing, a landslide.
        weights: the digest of the model's weights.
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
    def unfit(self) -> str:
        """Return the faults of the model's file; empty if it is the champion.

        A lack of skill is a result of training, and no fault of the file.
        """
        faults = [check for check in self.gate.unfit if not check.rule.startswith(gates.SKILL)]
        return "" if self.alias == "champion" else gates.sentence(faults)


@dataclass(frozen=True)
class Variants:
    """The variants of a model in reduced precision.

    Attributes:
        contracts: of those that the registered version holds.
        passed_over: files that lie beside the model, named like its variants, and belong to another model.
    """

    contracts: tuple[Contract, ...]
    passed_over: tuple[str, ...]


def register(project: Project, band_set: str) -> Registration:
    """Register a band set's model, unless the same model is registered already, and give it its alias.

    Two models are the same if weights, training data, and everything else that their contracts say is equal, but for
    run, commit and scores. Variants of reduced precision that lie beside the model and belong to it go into the same
    version, also into one that was registered without them. The alias moves last, after the registered version has
    been fetched and opened. Writes what it came to to `registered/BAND_SET.json`.

    Raises:
        ParamsError: no such band set.
        ModelError: its model is missing, or is not one that talud can run.
        RegistryError: the store cannot be used, or what it gives back is not what was registered.
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
    version = _version(store, project, model)
    registered = _open(store, version)
    _check_same(model, registered)
    variants = _variants(store, project, version, model)
    _describe(store, project, version, model.contract, variants.contracts)
    registration = _settle(store, project, version, registered, variants)
    with replacing(project.registration(band_set)) as scratch:
        scratch.write_text(json.dumps(asdict(registration), indent=2) + "\n", encoding="utf-8")
    return registration


def _settle(store: Store, project: Project, version: ModelVersion, model: Model, variants: Variants) -> Registration:
    """Give a registered version its alias."""
    champion = store.models.champion(version.name)
    if champion and champion.version == version.version:
        alias, reason, gate = "champion", version.tags.get(REASON, "the champion already"), _kept(version)
    else:
        alias, reason, gate = _challenge(store, project, version, model, champion)
        _keep(store, version, reason, gate)
        if alias == "champion":
            store.models.promote(version)
        else:
            store.models.set_alias(version, alias)
    precisions = tuple(variant.derived.precision for variant in variants.contracts)
    return Registration(
        version.name,
        version.version,
        alias,
        reason,
        gate,
        version.run_id,
        precisions,
        variants.passed_over,
        _warnings(project, model.contract),
        model.contract.origin.weights,
    )


def _warnings(project: Project, contract: Contract) -> tuple[str, ...]:
    """Return warnings that a model is no better than a constant map.

    The scores are those of its validation blocks and of its evaluation.
    """
    validation = [contract.measured.lack_of_skill] if contract.measured.lack_of_skill else []
    evaluated = {place: lack_of_skill(counts) for place, counts in _evaluated(project, contract).items()}
    return (*validation, *(f"on {place} {said}" for place, said in evaluated.items() if said))


def registered_name(band_set: str) -> str:
    """The name of a band set's registered model."""
    return f"{EXPERIMENT}-{band_set}"


def fingerprint(contract: Contract) -> str:
    """SHA-256 of all that a contract states but run, commit and scores: weights, data, threshold, histograms …

    A contract without one of the later fields gives what it gave before there was such a field, so that its version is
    found.
    """
    stated = contract.flat()
    unstated = {name for name in _LATER if not stated[name]}
    content = {name: value for name, value in stated.items() if name not in {"run_id", "commit", "scores"} | unstated}
    return hashlib.sha256(to_json(content)).hexdigest()


def _version(store: Store, project: Project, model: Model) -> ModelVersion:
    """The version that holds the model, made where there is none; files that the store has lost are put back."""
    import onnx

    contract = model.contract
    name, key = registered_name(contract.origin.name), fingerprint(contract)
    version = store.models.find(name, key)
    if version is None:
        version = store.models.register(name, onnx.load(model.path), run_of(store, project, contract), key)
    else:
        store.models.put_back(version, onnx.load(model.path))
    return version


def _variants(store: Store, project: Project, version: ModelVersion, model: Model) -> Variants:
    """The variants that the version holds, once those that lie beside the model are among them.

    Raises:
        RegistryError: the store gives back something else than was put there.
    """
    found, passed_over = [], []
    for precision in get_args(Reduced):
        ours = variant_path(model.path, precision)
        theirs = variant_path(store.models.fetch(version.uri).path, precision)
        if ours.is_file() and not _belongs(ours, model.contract):
            passed_over.append(str(ours.relative_to(project.root)))
        elif ours.is_file():
            if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
                store.models.add_file(version, ours, theirs.name)
                theirs = variant_path(store.models.fetch(version.uri).path, precision)
            if theirs.read_bytes() != ours.read_bytes():
                raise RegistryError(f"{theirs}: is not the file that was registered, {ours}; is the store sound?")
        if theirs.is_file():
            found.append(Model.load(theirs).contract)
    return Variants(tuple(found), tuple(passed_over))


def _belongs(path: Path, contract: Contract) -> bool:
    """Whether a file is a variant of a model.

    Raises:
        ModelError: it is, but does not say what it loses.
    """
    variant = Model.load(path).contract
    belongs = variant.is_variant_of(contract)
    if belongs and not {"f1", "mean_difference"} <= variant.measured.loss.keys():
        raise ModelError(f"{path}: does not say what it loses against the model; make it again with talud quantize")
    return belongs


def _describe(
    store: Store, project: Project, version: ModelVersion, contract: Contract, variants: Sequence[Contract]
) -> None:
    """Give the version the tags and the description that it should have now."""
    scores = _scores(project, contract)
    tags = {f"f1_{place.replace(' ', '_')}": f"{score['f1']:.4f}" for place, score in scores.items()} | {
        "band_set": contract.origin.name,
        "data_version": contract.origin.data_version,
        "commit": contract.origin.commit,
        "weights": contract.origin.weights,
        "threshold": f"{contract.measured.threshold:g}",
    }
    tags |= {f"{variant.derived.precision}_f1_loss": f"{variant.measured.loss['f1']:.4f}" for variant in variants}
    store.models.describe(version, tags, _description(contract, scores, variants))


def _scores(project: Project, contract: Contract) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 by place: those of training, and those of evaluation where this model was evaluated."""
    evaluated = {place: counts.scores() for place, counts in _evaluated(project, contract).items()}
    return {"validation": dict(contract.measured.scores)} | evaluated


def _evaluated(project: Project, contract: Contract) -> dict[str, Confusion]:
    """Return the counts of this model's evaluation by area.

    There are none if it was not evaluated.
    """
    path = project.scores(contract.origin.name)
    table = ScoreTable.read(path) if path.is_file() else None
    if table is None or (table.weights, table.threshold) != (contract.origin.weights, contract.measured.threshold):
        return {}
    return {"test": table.test_assessment.confusion} | {
        area: found.assessment.confusion for area, found in table.areas.items()
    }


def _description(contract: Contract, scores: Mapping[str, Mapping[str, float]], variants: Sequence[Contract]) -> str:
    choice = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in contract.origin.hyperparameters.items() if name in CHOICE
    )
    rows = [
        f"| {place} | {score['f1']:.3f} | {score['precision']:.3f} | {score['recall']:.3f} |"
        for place, score in scores.items()
    ]
    losses = [
        f"The {variant.derived.precision} variant loses {variant.measured.loss['f1']:.4f} of the F1 on the validation "
        f"blocks; its probabilities differ by {variant.measured.loss['mean_difference']:.2g} in the mean."
        for variant in variants
    ]
    return "\n".join(
        [
            f"U-Net over {', '.join(contract.input.band_names)} at {contract.input.pixel_size:g} m, "
            f"trained on {', '.join(contract.origin.areas)} ({choice}). Landslide where the probability is at least "
            f"{contract.measured.threshold:g}.",
            "",
            "| pixels | F1 | precision | recall |",
            "| --- | --- | --- | --- |",
            *rows,
            *(["", *losses] if losses else []),
        ]
    )


def _open(store: Store, version: ModelVersion) -> Model:
    """The registered model, fetched as anybody would fetch it."""
    fetched = store.models.fetch(version.uri)
    return Model.load(fetched.path, Origin(fetched.name, fetched.version))


def _check_same(model: Model, registered: Model) -> None:
    """That the registered model is the one that was to be registered, by what it says and by what it computes.

    Raises:
        RegistryError: it is not.
    """
    cell = 2 * model.contract.input.alignment
    noise = np.random.default_rng(0).standard_normal((len(model.contract.input.bands), cell, cell), np.float32)
    bands = model.contract.input.bands
    scale = np.array([[band.mean, band.deviation] for band in bands], np.float32)[:, :, np.newaxis, np.newaxis]
    stack = scale[:, 0] + noise * scale[:, 1]
    same = fingerprint(model.contract) == fingerprint(registered.contract)
    if not (same and np.array_equal(model.run(stack), registered.run(stack))):
        raise RegistryError(
            f"{registered.path}: the registered model is not that of {model.path}; no alias was moved; delete the "
            f"version {registered.version} of {registered.name} and register again"
        )


def promote(project: Project, name: str, number: str) -> Registration:
    """Make a registered version the champion, because a person wants it, if it passes the gate.

    The version that makes way is set aside: the pipeline does not put it back by itself. A version that does not pass
    becomes the challenger, and the champion stays.

    Args:
        project: on whose present stacks and masks version and champion are compared.
        name: of the registered model.
        number: of the version.

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
        return Registration(name, version.version, "champion", reason, _kept(version), version.run_id)
    model = _open(store, version)
    rival = _rival(store, project, champion)
    gate = gates.examine(project, model, rival.model)
    if gate.failed:
        _keep(store, version, f"failed the gate: {gates.sentence(gate.failed)}", gate)
        store.models.set_alias(version, "challenger")
        raise PromotionError(f"{name} version {version.version} does not pass the gate: {gates.sentence(gate.failed)}")
    place = f"in place of version {champion.version}" if champion else "the first champion"
    _keep(store, version, f"promoted by hand, {place}", gate)
    store.models.promote(version, by_hand=True)
    return Registration(name, version.version, "champion", f"promoted by hand, {place}", gate, version.run_id)


@dataclass(frozen=True)
class _Rival:
    """The champion that a model is compared with.

    Attributes:
        name: in words.
        model: None where there is no champion, or it cannot be run.
        reason: why it cannot, or empty.
    """

    name: str = ""
    model: Model | None = None
    reason: str = ""


def _rival(store: Store, project: Project, champion: ModelVersion | None) -> _Rival:
    if champion is None:
        return _Rival()
    named = f"the champion, version {champion.version}"
    try:
        model = _open(store, champion)
        for area in (*project.params.areas_of("training"), *project.params.areas_of("gate")):
            with open_stack(current_stack(project, area), model.contract):
                pass
    except (MismatchError, ModelError) as error:
        return _Rival(named, None, f"{named}, cannot be run on the present stacks: {error}")
    return _Rival(named, model)


def _challenge(
    store: Store, project: Project, version: ModelVersion, model: Model, champion: ModelVersion | None
) -> tuple[str, str, Gate]:
    """The alias that a model deserves, why, and what the gate found."""
    rival = _rival(store, project, champion)
    gate = gates.examine(project, model, rival.model)
    if gate.unfit:
        return "challenger", f"failed the gate: {gates.sentence(gate.failed)}", gate
    if gate.failed:
        return "challenger", f"worse than {rival.name}: {gates.sentence(gate.failed)}", gate
    if SET_ASIDE in version.tags:
        again = f"talud models promote {version.name} {version.version} makes it the champion again"
        return "challenger", f"set aside {version.tags[SET_ASIDE]}; {again}", gate
    if rival.model is None:
        return "champion", rival.reason or f"the first version of {version.name}", gate
    place, f1 = list(gate.f1.items())[-1]  # all deciding pixels together, or the only ones
    numbers = f"F1 {f1['model']:.3f} against {f1['champion']:.3f} on {place}"
    if f1["model"] > f1["champion"] and gate.blocks < gates.MINIMUM_GATE_BLOCKS:
        few = f"{gate.blocks} block{'s'[: gate.blocks != 1]}, and fewer than {gates.MINIMUM_GATE_BLOCKS} decide nothing"
        advice = f"name a gate area, or run talud models promote {version.name} {version.version}"
        return "challenger", f"not known to be better than {rival.name}: {numbers}, {few}; {advice}", gate
    if f1["model"] > f1["champion"]:
        return "champion", f"better than {rival.name}: {numbers}", gate
    return "challenger", f"no better than {rival.name}: {numbers}", gate


def _keep(store: Store, version: ModelVersion, reason: str, gate: Gate) -> None:
    """Tag a version with what the gate found, and why it has its alias."""
    store.models.describe(version, {REASON: reason, GATE: gate.to_json()})


def _kept(version: ModelVersion) -> Gate:
    """What the gate found of a version when it was examined last."""
    return Gate.from_json(version.tags[GATE], version.uri) if GATE in version.tags else Gate(())
