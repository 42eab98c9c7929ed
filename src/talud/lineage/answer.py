"""The answer of `talud lineage`: from a map or a model back to run, commit and data, and on to the maps of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from talud import registry
from talud.contract import Contract
from talud.engine import model_file
from talud.errors import ModelError, RegistryError, SourceError, TaludError
from talud.lineage import history, maps
from talud.lineage.history import Data
from talud.lineage.maps import Entry, Statement

_FILES = (".gpkg", ".tif", ".tiff", ".json", ".geojson", ".onnx")


@dataclass(frozen=True)
class Lineage:
    """Where a map or a model came from, and what was made with it.

    Attributes:
        asked: as the user named it.
        kind: "map" or "model".
        model: name, version, precision and weights, as it is known by.
        registered: URI of each version of the registry that holds this network → its aliases.
        run_id: of MLflow.
        run: what the store has of it; None where it has nothing, or cannot be asked.
        commit: of the project at training, with +changes where it was not clean.
        data_version: MD5 over the MD5s of the stacks and masks trained on.
        trained_on: the areas.
        data: what git and DVC have of it; None outside a project.
        parameters: the hyperparameters.
        mapped: of a map: the raster, and what it says of itself; the threshold.
        maps: of a model: those recorded.
        unknown: what could not be answered, and why.
    """

    asked: str
    kind: str
    model: Mapping[str, str]
    registered: Mapping[str, str]
    run_id: str
    run: registry.RunInfo | None
    commit: str
    data_version: str
    trained_on: tuple[str, ...]
    data: Data | None
    parameters: Mapping[str, float | int | str]
    mapped: Mapping[str, str] | None
    maps: tuple[Entry, ...]
    unknown: tuple[str, ...]


def lineage(asked: str, root: Path | None) -> Lineage:
    """The lineage of a map or a model.

    Args:
        asked: a map (its folder or one of its files), an .onnx file, or a registered model: NAME (its champion),
            NAME@ALIAS, NAME/VERSION, or any MLflow URI.
        root: of the project, absolute, or None outside of one.

    Raises:
        SourceError: there is no such file, or it is no map of talud's.
        ModelError: the file is no model of talud's.
        RegistryError: the registry has no such model, or cannot be reached.
    """
    path = Path(asked)
    if not path.exists():
        if path.suffix.lower() in _FILES and ":/" not in asked:
            raise SourceError(f"{asked}: no such file; name a map, an .onnx file, or a registered model")
        fetched = registry.fetch(registry.model_uri(asked), root)
        return _of_model(asked, model_file.contract_of(fetched.path), (fetched.name, fetched.version), root)
    if path.suffix.lower() == ".onnx":
        return _of_model(asked, model_file.contract_of(path), None, root)
    return _of_map(asked, Statement.read(path), root)


def _of_model(asked: str, contract: Contract, named: tuple[str, str] | None, root: Path | None) -> Lineage:
    origin = contract.origin
    name, version = named if named and named[1] else (origin.name, "unregistered")
    stated = Statement(
        name, version, origin.run_id, origin.commit, origin.data_version, origin.weights, contract.derived.precision,
        f"{contract.measured.threshold:g}", {},
    )  # fmt: skip
    answer = _traced(asked, "model", stated, contract, root)
    if root is None:
        return replace(answer, unknown=(*answer.unknown, "the maps: they are recorded in projects, and this is none"))
    known = (origin.weights, origin.data_version)
    made = [entry for entry in maps.recorded(root) if (entry.statement.weights, entry.statement.data_version) == known]
    return replace(answer, maps=tuple(made))


def _of_map(asked: str, stated: Statement, root: Path | None) -> Lineage:
    contract, why_not = _contract(stated, root)
    answer = _traced(asked, "map", stated, contract, root)
    mapped = {**stated.raster, "threshold": stated.threshold}
    unknown = [*answer.unknown, *([why_not] if why_not else [])]
    if "digest" not in mapped:
        unknown.append("the raster's digest and sources: an earlier release made the map")
    elif "sources" not in mapped:
        unknown.append("the raster's sources: it is no stack of talud's, or one that an earlier release made")
    return replace(answer, mapped=mapped, unknown=tuple(unknown))


def _traced(asked: str, kind: str, stated: Statement, contract: Contract | None, root: Path | None) -> Lineage:
    """What is known of a network by what is stated of it: its run, versions, commit and data."""
    unknown = []
    run, registered = None, {}
    try:
        store = registry.Store.open(root)
        run, registered = store.runs.find(stated.run), store.models.with_weights(stated.weights)
        if run is None:
            unknown.append(f"the store of MLflow has no run {stated.run or '(none is stated)'}")
        if not registered:
            unknown.append("no version in the store holds this network: it was never registered there, or was deleted")
    except RegistryError as error:
        unknown.append(f"run and registered versions: {error}")
    data = history.find(root, stated.data_version, stated.commit) if root else None
    if data is None:
        unknown.append("the data's hashes: they are in the history of the project, and this is none")
    return Lineage(
        asked=asked,
        kind=kind,
        model={
            "name": stated.model,
            "version": stated.version,
            "precision": stated.precision or "float32",
            "weights": stated.weights,
        },
        registered=registered,
        run_id=stated.run,
        run=run,
        commit=stated.commit,
        data_version=stated.data_version,
        trained_on=contract.origin.areas if contract else tuple(area.area for area in data.areas) if data else (),
        data=data,
        parameters=contract.origin.hyperparameters if contract else dict(run.parameters) if run else {},
        mapped=None,
        maps=(),
        unknown=tuple(unknown),
    )


def _contract(stated: Statement, root: Path | None) -> tuple[Contract | None, str]:
    """The contract of the model that made a map: from the project's own files, else from the store; or why not."""
    for path in sorted((root / "models").glob("*.onnx")) if root else ():
        try:
            contract = model_file.contract_of(path)
        except ModelError:
            continue
        if (contract.origin.weights, contract.origin.data_version) == (stated.weights, stated.data_version):
            return contract, ""
    try:
        models = registry.Store.open(root).models
        for uri in models.with_weights(stated.weights):
            contract = model_file.contract_of(models.fetch(uri).path)
            if contract.origin.data_version == stated.data_version:
                return contract, ""
    except TaludError as error:
        return None, f"the model's own file: {error}"
    return None, "the model's own file: neither models/ nor the store has it; the parameters, if any, are its run's"
