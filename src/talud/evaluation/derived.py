"""Models made of other models, adapted or fine-tuned: from which, and a registered version for what became of it."""

from __future__ import annotations

from pathlib import Path

import onnx

from talud.contract import Adaptation, Contract, FineTuning
from talud.engine.model_file import save, weights_digest
from talud.engine.runtime import Model, Origin
from talud.errors import ModelError, RegistryError
from talud.evaluation.promotion import fingerprint
from talud.files import replacing
from talud.registry import ModelVersion, Store
from talud.text import counted


def is_file(reference: str) -> bool:
    """Whether a reference names a file, and no registered version."""
    return reference.endswith(".onnx")


def original(root: Path | None, reference: str) -> Model:
    """The model that a reference names: an .onnx file, or NAME, NAME@ALIAS or NAME/VERSION of the registry.

    Args:
        root: the project's root, absolute; may be None where `MLFLOW_TRACKING_URI` names a server.
        reference: to it.

    Raises:
        RegistryError: the store cannot be used, or has no such version.
        ModelError: the file is missing, or is not one that talud can run.
    """
    if is_file(reference):
        return Model.load(Path(reference))
    models = Store.open(root).models
    fetched = models.fetch(models.look_up(reference).uri)
    return Model.load(fetched.path, Origin(fetched.name, fetched.version))


def register(
    root: Path | None, model: Model, graph: onnx.ModelProto, contract: Contract, alias: str | None = None
) -> ModelVersion:
    """Make what became of a registered model a version of the same registered model, in a run of its own.

    Where the registry holds the same already, that version is the answer.

    Args:
        root: as for `original`.
        model: the registered one.
        graph: of the new one.
        contract: of the new one; `adapted` or `finetuned` says how it came about.
        alias: that the new version gets.

    Raises:
        RegistryError: the store cannot be used, or gives back something else than was put there.
        ModelError: the model is no registered one, or the contract does not say how the new one came about.
    """
    made = (
        contract.derived.finetuned
        if contract.derived.finetuned != model.contract.derived.finetuned
        else contract.derived.adapted
    )
    if model.origin is None or made is None:
        raise ModelError(f"{model.path}: is no registered model, or nothing was made of it")
    store = Store.open(root)
    key = fingerprint(contract)
    version = store.models.find(model.origin.name, key)
    if version is None:
        tags = {
            "band_set": contract.origin.name,
            "data_version": contract.origin.data_version,
            "commit": contract.origin.commit,
        }
        command, parameters = _facts(made)
        with store.runs.derivation(
            command, f"{contract.origin.name} · {command} · {made.area}", parameters, tags
        ) as run:
            run.log_scores(_scores(made))
            stated = contract.replace(run_id=run.run_id)
            onnx.helper.set_model_props(graph, stated.to_metadata())
            version = store.models.register(model.origin.name, graph, run.run_id, key)
    kept = store.models.fetch(version.uri)
    _check_same(Model.load(kept.path), graph, contract)
    store.models.describe(version, _tags(model, contract, made), _description(model, made))
    if alias:
        store.models.set_alias(version, alias)
    return version


def write(path: Path, graph: onnx.ModelProto, contract: Contract) -> None:
    """Write a model as a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as scratch:
        save(graph, contract, scratch)


def _check_same(kept: Model, graph: onnx.ModelProto, contract: Contract) -> None:
    """That the store gives back what it was given.

    Raises:
        RegistryError: it does not.
    """
    weights = weights_digest(onnx.load(kept.path))
    if fingerprint(kept.contract) != fingerprint(contract) or weights != weights_digest(graph):
        raise RegistryError(f"{kept.path}: is not the model that was registered; is the store sound?")


def _facts(made: Adaptation | FineTuning) -> tuple[str, dict[str, float | int | str]]:
    """The command that made a model, and what decided over it."""
    if isinstance(made, Adaptation):
        return "adapt", {"area": made.area, "raster": made.raster, "strength": made.strength}
    return "finetune", {
        "area": made.area,
        "patches": made.patches,
        "seed": made.seed,
        "steps": made.steps,
        "learning_rate": made.learning_rate,
        "recipe": made.recipe,
        "rehearsed": ", ".join(made.rehearsed) or "nothing",
    }


def _scores(made: Adaptation | FineTuning) -> dict[str, float]:
    if isinstance(made, Adaptation):
        return {"agreement_before": made.agreement_before, "agreement_after": made.agreement_after}
    scores = {"f1_before": made.f1_before, "f1_after": made.f1_after}
    return {name: score for name, score in scores.items() if score is not None}


def _tags(model: Model, contract: Contract, made: Adaptation | FineTuning) -> dict[str, str]:
    """What a version is found by: beside the tags that every version has, what it was made from, and with what."""
    command, parameters = _facts(made)
    source = f"models:/{model.name}/{model.version}"
    return {
        "band_set": contract.origin.name,
        "data_version": contract.origin.data_version,
        "commit": contract.origin.commit,
        "weights": contract.origin.weights,
        "threshold": f"{contract.measured.threshold:g}",
        {"adapt": "adapted_from", "finetune": "finetuned_from"}[command]: source,
        **{name: str(value) for name, value in parameters.items()},
    }


def _description(model: Model, made: Adaptation | FineTuning) -> str:
    """In Markdown, for a person who opens the version."""
    if isinstance(made, Adaptation):
        return (
            f"{model.title}, its features aligned to {made.area} from {made.raster}, without labels (strength "
            f"{made.strength:g}). Threshold and scores are the original's. For other areas take that."
        )
    measured = (
        f"F1 on the area's other labelled patches: {made.f1_before:.3f} before, {made.f1_after:.3f} after."
        if made.f1_before is not None and made.f1_after is not None
        else "No other patch of the area is labelled, so nothing says how good it is."
    )
    return (
        f"{model.title}, trained further on {made.patches} labelled patches of {made.area} "
        f"({counted(made.landslide_pixels, 'landslide pixel')}, seed {made.seed}). {measured}"
    )
