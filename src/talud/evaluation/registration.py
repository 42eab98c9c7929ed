"""Registration of models in the model registry."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
from pydantic_core import to_json

from talud.contract import Adaptation, Contract, FineTuning, ReducedPrecision, variant_path
from talud.engine.model_file import save_model
from talud.engine.runtime import Model, RegistryVersion
from talud.errors import ModelError, RegistryError
from talud.evaluation.results import ScoreTable, Trial, Trials
from talud.files import atomic_replace
from talud.metrics import Confusion
from talud.params.networks import PLAIN_UNET
from talud.project import Project
from talud.registry import EXPERIMENT, ModelVersion, Store
from talud.text import counted

# Hyperparameters in the description of a version.
_DESCRIBED_HYPERPARAMETERS = ("filters", "learning_rate", "batch_size", "epochs")
# Contract fields that do not identify a model.
_IGNORED_FIELDS = {"run_id", "commit", "scores", "memory"}
# Contract fields that older files lack.
_ADDED_FIELDS = ("parity", "calibration", "validation", "subsets", "adapted", "finetuned")


@dataclass(frozen=True)
class Variants:
    """Reduced-precision variants of a model.

    Attributes:
        contracts: contracts of the variants in the registered version.
        passed_over: variant files next to the model that belong to another model and were not registered.
    """

    contracts: tuple[Contract, ...]
    passed_over: tuple[str, ...]


def fingerprint(contract: Contract) -> str:
    """Return the SHA-256 of a contract without run, commit, scores and memory.

    Unset `_ADDED_FIELDS` are left out, so that models of older versions of talud keep their fingerprint.
    """
    stated = contract.flat()
    unstated = {name for name in _ADDED_FIELDS if not stated[name]}
    content = {name: value for name, value in stated.items() if name not in _IGNORED_FIELDS | unstated}
    return hashlib.sha256(to_json(content)).hexdigest()


def is_model_file(reference: str) -> bool:
    """Check if a reference is a file, not a registered version."""
    return reference.endswith(".onnx")


def open_model(root: Path | None, reference: str) -> Model:
    """Open a model from a file or the registry.

    Args:
        root: absolute path of the project's root; may be None if `MLFLOW_TRACKING_URI` names a server.
        reference: path of an .onnx file, or NAME, NAME@ALIAS or NAME/VERSION.

    Raises:
        RegistryError: the store cannot be used, or has no such version.
        ModelError: the file is missing or cannot be run.
    """
    if is_model_file(reference):
        return Model.load(Path(reference))
    store = Store.open(root)
    return open_version(store, store.models.look_up(reference))


def open_version(store: Store, version: ModelVersion) -> Model:
    """Open a registered model."""
    fetched = store.models.fetch(version.uri)
    return Model.load(fetched.path, RegistryVersion(fetched.name, fetched.version))


def write_model(path: Path, graph: onnx.ModelProto, contract: Contract) -> None:
    """Write a model file atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_replace(path) as scratch:
        save_model(graph, contract, scratch)


def register_trained(store: Store, project: Project, model: Model) -> tuple[ModelVersion, Model, Variants]:
    """Register a trained model with its variants.

    If the model is registered already, files that the store has lost are uploaded again.

    Returns:
        The version, the model as loaded from the store, and the variants.

    Raises:
        RegistryError: the store cannot be used, or returns a different model.
        ModelError: a variant does not state its loss.
    """
    contract, graph = model.contract, onnx.load(model.path)
    name, key = f"{EXPERIMENT}-{contract.origin.name}", fingerprint(contract)
    version = store.models.find_by_fingerprint(name, key)
    if version is None:
        version = store.models.register(name, graph, restore_runs(store, project, contract), key)
    else:
        store.models.upload_missing_files(version, graph)
    registered = open_version(store, version)
    _check_equal(model, registered, f"the one in {model.path}")
    variants = _register_variants(store, project, version, model)
    scores = {"validation": dict(contract.measured.scores)}
    scores |= {area: counts.scores() for area, counts in evaluation_counts(project, contract).items()}
    tags = {f"f1_{area.replace(' ', '_')}": f"{score['f1']:.4f}" for area, score in scores.items()}
    tags |= _origin_tags(contract) | {
        f"{variant.derived.precision}_f1_loss": f"{variant.measured.loss['f1']:.4f}" for variant in variants.contracts
    }
    store.models.describe(version, tags, _describe_trained(contract, scores, variants))
    return version, registered, variants


def register_derived(
    root: Path | None, model: Model, graph: onnx.ModelProto, contract: Contract, alias: str | None = None
) -> ModelVersion:
    """Register an adapted or fine-tuned model, in a run of its own.

    It becomes a version of the same registered model, unless the registry holds it already.

    Args:
        root: absolute path of the project's root; may be None if `MLFLOW_TRACKING_URI` names a server.
        model: registered model from which the new one was made.
        graph: network of the new model.
        contract: contract of the new model, which states the adaptation or fine-tuning.
        alias: alias of the new version. Default: none.

    Raises:
        RegistryError: the store cannot be used, or returns a different model.
        ModelError: the original model is not registered, or the contract states no adaptation or fine-tuning.
    """
    derived = contract.derived
    made = derived.finetuned if derived.finetuned != model.contract.derived.finetuned else derived.adapted
    if model.registered_as is None or made is None:
        raise ModelError(f"{model.path}: is not registered, or was neither adapted nor fine-tuned; register it first")
    store, key = Store.open(root), fingerprint(contract)
    tags, (command, parameters) = _origin_tags(contract), _derivation(made)
    version = store.models.find_by_fingerprint(model.registered_as.name, key)
    if version is None:
        run_name = f"{contract.origin.name} · {command} · {made.area}"
        run_tags = {name: tags[name] for name in ("band_set", "data_version", "commit")}
        with store.runs.derivation(command, run_name, parameters, run_tags) as run:
            run.log_scores(_derived_scores(made))
            onnx.helper.set_model_props(graph, contract.replace(run_id=run.run_id).to_metadata())
            version = store.models.register(model.registered_as.name, graph, run.run_id, key)
    with tempfile.TemporaryDirectory(prefix="talud-") as folder:
        save_model(graph, contract, Path(folder) / "made.onnx")
        made_model = Model.load(Path(folder) / "made.onnx")
        _check_equal(made_model, open_version(store, version), f"the one that talud {command} made")
    tags[{"adapt": "adapted_from", "finetune": "finetuned_from"}[command]] = f"models:/{model.name}/{model.version}"
    tags |= {name: str(value) for name, value in parameters.items()}
    store.models.describe(version, tags, _describe_derived(model, made))
    if alias:
        store.models.set_alias(version, alias)
    return version


def evaluation_counts(project: Project, contract: Contract) -> dict[str, Confusion]:
    """Return the counts of a model's evaluation by area.

    They are empty if the model has not been evaluated.
    """
    path = project.scores(contract.origin.name)
    table = ScoreTable.read(path) if path.is_file() else None
    if table is None or (table.weights, table.threshold) != (contract.origin.weights, contract.measured.threshold):
        return {}
    areas = {area: found.assessment.confusion for area, found in table.areas.items()}
    return {"test": table.test_assessment.confusion} | areas


def restore_runs(store: Store, project: Project, contract: Contract) -> str:
    """Return the run of a model's trial, restoring lost runs.

    Each trial of the study is restored with its hyperparameters and scores from the table of trials. Learning curves
    are not in that table and stay lost.

    Raises:
        StudyError: the table of trials is damaged.
        RegistryError: the store cannot be used.
    """
    origin, scores = contract.origin, contract.measured.scores
    if found := store.runs.locate(origin.run_id):
        return found
    tags = {"band_set": origin.name, "data_version": origin.data_version, "commit": origin.commit}
    if not project.trials(origin.name).is_file():
        return store.runs.restore(origin.run_id, origin.name, origin.hyperparameters, scores, tags)
    table = Trials.read(project.trials(origin.name))
    tags["search"] = table.search
    parent = store.runs.locate(table.parent_run_id) or store.runs.restore(
        table.parent_run_id, f"{table.band_set} · {table.search}", {}, {}, tags
    )
    # The best trial comes last: its run is missing after an interrupted restoration.
    for trial in sorted(table.trials, key=lambda trial: trial.run_id == table.best):
        if store.runs.locate(trial.run_id) is None:
            _restore_trial(store, trial, contract, tags, parent)
    store.runs.summarise(parent, f"Restored from models/{table.band_set}.trials.json, which has no learning curves.")
    return store.runs.locate(origin.run_id) or store.runs.restore(
        origin.run_id, origin.name, origin.hyperparameters, scores, tags, parent
    )


def _restore_trial(store: Store, trial: Trial, contract: Contract, tags: dict[str, str], parent: str) -> None:
    shared = contract.origin.hyperparameters
    if trial.network != contract.origin.network_name:  # the options of its network are not in the table
        shared = {name: value for name, value in shared.items() if not name.startswith("network_")}
    # The other hyperparameters are the same in the whole study.
    hyperparameters = {
        **shared,
        "network": trial.network,
        "filters": trial.filters,
        "learning_rate": trial.learning_rate,
        "batch_size": trial.batch_size,
        "epochs": trial.epochs,
    }
    facts = {"best_epoch": float(trial.best_epoch), "seconds": trial.seconds, "parameters": float(trial.parameters)}
    name = f"{contract.origin.name} · {trial.name}"
    store.runs.restore(trial.run_id, name, hyperparameters, {**trial.scores, **facts}, tags, parent)


def _register_variants(store: Store, project: Project, version: ModelVersion, model: Model) -> Variants:
    """Upload the variants next to a model; return all of its version.

    Raises:
        RegistryError: the store returns a different file.
    """
    found, passed_over = [], []
    for precision in get_args(ReducedPrecision):
        ours = variant_path(model.path, precision)
        theirs = variant_path(store.models.fetch(version.uri).path, precision)
        if ours.is_file() and not _is_variant(ours, model.contract):
            passed_over.append(str(ours.relative_to(project.root)))
        elif ours.is_file():
            if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
                store.models.add_file(version, ours, theirs.name)
                theirs = variant_path(store.models.fetch(version.uri).path, precision)
            if theirs.read_bytes() != ours.read_bytes():
                raise RegistryError(
                    f"{theirs}: differs from the registered file {ours}; check the artifact store and register again"
                )
        if theirs.is_file():
            found.append(Model.load(theirs).contract)
    return Variants(tuple(found), tuple(passed_over))


def _is_variant(path: Path, contract: Contract) -> bool:
    """Check if a file is a variant of a model.

    Raises:
        ModelError: the variant does not state its loss.
    """
    variant = Model.load(path).contract
    belongs = variant.is_variant_of(contract)
    if belongs and not {"f1", "mean_difference"} <= variant.measured.loss.keys():
        raise ModelError(f"{path}: does not state its loss against the model; run talud quantize again")
    return belongs


def _check_equal(model: Model, registered: Model, expected: str) -> None:
    """Check that two models have equal contracts and outputs.

    Args:
        model: model that was registered.
        registered: model as loaded from the store.
        expected: description of the first model for the error message.

    Raises:
        RegistryError: they differ.
    """
    cell, bands = 2 * model.contract.input.alignment, model.contract.input.bands
    noise = np.random.default_rng(0).standard_normal((len(bands), cell, cell), np.float32)
    scale = np.array([[band.mean, band.deviation] for band in bands], np.float32)[:, :, np.newaxis, np.newaxis]
    stack = scale[:, 0] + noise * scale[:, 1]
    same = fingerprint(model.contract) == fingerprint(registered.contract)
    if not (same and np.array_equal(model.run(stack), registered.run(stack))):
        raise RegistryError(
            f"{registered.path}: the registered model is not {expected}; no alias was moved; delete "
            f"version {registered.version} of {registered.name} and register again"
        )


def _origin_tags(contract: Contract) -> dict[str, str]:
    """Return the tags common to all versions."""
    return {
        "band_set": contract.origin.name,
        "data_version": contract.origin.data_version,
        "commit": contract.origin.commit,
        "weights": contract.origin.weights,
        "threshold": f"{contract.measured.threshold:g}",
    }


def _describe_trained(contract: Contract, scores: Mapping[str, Mapping[str, float]], variants: Variants) -> str:
    """Describe a trained model in Markdown."""
    hyperparameters = contract.origin.hyperparameters.items()
    choice = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in hyperparameters if name in _DESCRIBED_HYPERPARAMETERS
    )
    losses = [
        f"The {variant.derived.precision} variant loses {variant.measured.loss['f1']:.4f} of the F1 on the validation "
        f"blocks; its probabilities differ by {variant.measured.loss['mean_difference']:.2g} in the mean."
        for variant in variants.contracts
    ]
    network = contract.origin.network_name
    kind = "U-Net" if network == PLAIN_UNET else f"Network `{network}`"
    lines = [
        f"{kind} over {', '.join(contract.input.band_names)} at {contract.input.pixel_size:g} m, trained on "
        f"{', '.join(contract.areas_with_sizes)} ({choice}). Landslide where the probability is at least "
        f"{contract.measured.threshold:g}.",
        "",
        "| pixels | F1 | precision | recall |",
        "| --- | --- | --- | --- |",
        *(f"| {area} | {s['f1']:.3f} | {s['precision']:.3f} | {s['recall']:.3f} |" for area, s in scores.items()),
    ]
    return "\n".join([*lines, *(["", *losses] if losses else [])])


def _derivation(made: Adaptation | FineTuning) -> tuple[str, dict[str, float | int | str]]:
    """Return the command that made a model, and its parameters."""
    if isinstance(made, Adaptation):
        return "adapt", {
            "area": made.area,
            "raster": made.raster,
            "aligned": made.aligned,
            "strength": made.strength,
        }
    return "finetune", {
        "area": made.area,
        "patches": made.patches,
        "seed": made.seed,
        "steps": made.steps,
        "learning_rate": made.learning_rate,
        "recipe": made.recipe,
        "rehearsed": ", ".join(made.rehearsed) or "nothing",
    }


def _derived_scores(made: Adaptation | FineTuning) -> dict[str, float]:
    if isinstance(made, Adaptation):
        signs = ("agreement_before", "agreement_after", "share_before", "share_after")
        return {name: sign for name in signs if (sign := getattr(made, name)) is not None}
    scores = {"f1_before": made.f1_before, "f1_after": made.f1_after}
    return {name: score for name, score in scores.items() if score is not None}


def _describe_derived(model: Model, made: Adaptation | FineTuning) -> str:
    """Describe an adapted or fine-tuned model in Markdown."""
    if isinstance(made, Adaptation):
        return (
            f"{model.title}, adapted to {made.area} from {made.raster} without labels ({made.label}). "
            "Threshold and scores are those of the original; use that for other areas."
        )
    measured = (
        f"F1 on the area's other labelled patches: {made.f1_before:.3f} before, {made.f1_after:.3f} after."
        if made.f1_before is not None and made.f1_after is not None
        else "No other patch of the area is labelled, so its accuracy is unknown."
    )
    return (
        f"{model.title}, fine-tuned on {counted(made.patches, 'labelled patch', 'labelled patches')} of {made.area} "
        f"({counted(made.landslide_pixels, 'landslide pixel')}, seed {made.seed}). {measured}"
    )
