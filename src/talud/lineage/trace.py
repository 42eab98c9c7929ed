"""Origin of maps and models: run, commit and training data, and the maps made with a model.

A model states its data version: the MD5 over the MD5s of the stacks and masks that it was trained on. Each dvc.lock in
the history of a project lists such MD5s, and the hash of the sources that each stack was made of, so that the data are
found by their content. A commit alone would not do: it does not state changes made after it. DVC itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from talud import registry
from talud.contract import Contract
from talud.data.record import version_of
from talud.engine import model_file
from talud.errors import ModelError, RegistryError, SourceError, TaludError
from talud.lineage.provenance import MapProvenance, RecordedMap, recorded_maps

_FILE_SUFFIXES = (".gpkg", ".tif", ".tiff", ".json", ".geojson", ".onnx")
UNCOMMITTED_SUFFIX = "+changes"
_WORKING_FOLDER = ""  # in place of a commit
_TRAINING_RECORDS_FOLDER = "stacks/training/"
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, twenty times as fast if it is built


@dataclass(frozen=True)
class TrainingArea:
    """An area that a model was trained on.

    Attributes:
        area: the name of the area.
        stack_md5: the MD5 of its stack.
        mask_md5: the MD5 of its mask.
        folder: the folder of its sources, relative to the project's root.
        sources_md5: DVC's hash of that folder, which ends with .dir.
        stage: the DVC stage that makes the stack.
    """

    area: str
    stack_md5: str
    mask_md5: str
    folder: str
    sources_md5: str
    stage: str


@dataclass(frozen=True)
class TrainingData:
    """The training data of a model, and commands that restore them.

    Attributes:
        areas: the areas; empty if no dvc.lock on record has them.
        commit: the commit that has the sources on record; empty if unknown.
        tracked: .dvc file of sources in that commit, relative to the project's root → the hash in it.
        restore: commands, to be run in the project's root, that restore the data.
        doubts: sentences on what is unknown or uncertain.
    """

    areas: tuple[TrainingArea, ...]
    commit: str
    tracked: Mapping[str, str]
    restore: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """The origin of a map or a model, and the maps made with a model.

    Attributes:
        asked: the name that the user gave.
        kind: "map" or "model".
        model: name, version, precision and weights.
        registered: URI of each registered version with this network → its aliases.
        run_id: the id of the run in MLflow.
        run: the run in the store; None if it is missing, or the store cannot be asked.
        commit: the project's commit at training, with +changes if there were any.
        data_version: the MD5 over the MD5s of the stacks and masks trained on.
        trained_on: the training areas.
        data: the data on record in git and DVC; None outside a project.
        parameters: the hyperparameters.
        mapped: for a map: the raster and its origin, and the threshold.
        maps: for a model: the recorded maps.
        unknown: sentences on what could not be answered, with the reason.
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
    data: TrainingData | None
    parameters: Mapping[str, float | int | str]
    mapped: Mapping[str, str] | None
    maps: tuple[RecordedMap, ...]
    unknown: tuple[str, ...]


def trace_lineage(asked: str, root: Path | None) -> Lineage:
    """Find the origin of a map or a model.

    Args:
        asked: a map (its folder or one of its files), an .onnx file, or a registered model: NAME (its champion),
            NAME@ALIAS, NAME/VERSION, or any MLflow URI.
        root: the project's root, absolute; None outside a project.

    Raises:
        SourceError: there is no such file, or it is not a map of talud's.
        ModelError: the file is not a model of talud's.
        RegistryError: the registry has no such model, or cannot be reached.
    """
    path = Path(asked)
    if not path.exists():
        if path.suffix.lower() in _FILE_SUFFIXES and ":/" not in asked:
            raise SourceError(f"{asked}: no such file; name a map, an .onnx file, or a registered model")
        fetched = registry.fetch(registry.model_uri(asked), root)
        return _of_model(asked, model_file.read_contract(fetched.path), (fetched.name, fetched.version), root)
    if path.suffix.lower() == ".onnx":
        return _of_model(asked, model_file.read_contract(path), None, root)
    return _of_map(asked, MapProvenance.read(path), root)


def _of_model(asked: str, contract: Contract, named: tuple[str, str] | None, root: Path | None) -> Lineage:
    origin = contract.origin
    name, version = named if named and named[1] else (origin.name, "unregistered")
    stated = MapProvenance(
        name, version, origin.run_id, origin.commit, origin.data_version, origin.weights, contract.derived.precision,
        f"{contract.measured.threshold:g}", {},
    )  # fmt: skip
    answer = _lineage(asked, "model", stated, contract, root)
    if root is None:
        return replace(answer, unknown=(*answer.unknown, "the maps: they are recorded in projects, and this is none"))
    known = (origin.weights, origin.data_version)
    made = [entry for entry in recorded_maps(root) if (entry.statement.weights, entry.statement.data_version) == known]
    return replace(answer, maps=tuple(made))


def _of_map(asked: str, stated: MapProvenance, root: Path | None) -> Lineage:
    contract, why_not = _find_contract(stated, root)
    answer = _lineage(asked, "map", stated, contract, root)
    mapped = {**stated.raster, "threshold": stated.threshold}
    unknown = [*answer.unknown, *([why_not] if why_not else [])]
    if "digest" not in mapped:
        unknown.append("the raster's digest and sources: an earlier release made the map")
    elif "sources" not in mapped:
        unknown.append("the raster's sources: it is no stack of talud's, or one that an earlier release made")
    return replace(answer, mapped=mapped, unknown=tuple(unknown))


def _lineage(asked: str, kind: str, stated: MapProvenance, contract: Contract | None, root: Path | None) -> Lineage:
    """Find the run, versions, commit and data of a network."""
    unknown = []
    run, registered = None, {}
    try:
        store = registry.Store.open(root)
        run, registered = store.runs.find(stated.run), store.models.find_by_weights(stated.weights)
        if run is None:
            unknown.append(f"the store of MLflow has no run {stated.run or '(none is stated)'}")
        if not registered:
            unknown.append("no version in the store holds this network: it was never registered there, or was deleted")
    except RegistryError as error:
        unknown.append(f"run and registered versions: {error}")
    data = find_data(root, stated.data_version, stated.commit) if root else None
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


def _find_contract(stated: MapProvenance, root: Path | None) -> tuple[Contract | None, str]:
    """Return the contract of the model of a map, or the reason why it is missing.

    It comes from the project's own files, else from the store.
    """
    for path in sorted((root / "models").glob("*.onnx")) if root else ():
        try:
            contract = model_file.read_contract(path)
        except ModelError:
            continue
        if (contract.origin.weights, contract.origin.data_version) == (stated.weights, stated.data_version):
            return contract, ""
    try:
        models = registry.Store.open(root).models
        for uri in models.find_by_weights(stated.weights):
            contract = model_file.read_contract(models.fetch(uri).path)
            if contract.origin.data_version == stated.data_version:
                return contract, ""
    except TaludError as error:
        return None, f"the model's own file: {error}"
    return None, "the model's own file: neither models/ nor the store has it; the parameters, if any, are its run's"


def find_data(root: Path, data_version: str, stated: str) -> TrainingData:
    """Find the data of a data version in the history of a project.

    Args:
        root: the project's root, absolute.
        data_version: the data version that the model, or the map, states.
        stated: the commit that it states, with +changes if there were any.
    """
    head = stated.removesuffix(UNCOMMITTED_SUFFIX)
    known = _has_commit(root, head)
    areas, matching = _find_areas(root, data_version)
    candidates = (
        [head] if known and not stated.endswith(UNCOMMITTED_SUFFIX) else [commit for commit in matching if commit]
    )
    commit = candidates[-1] if candidates else ""  # the oldest: the nearest to the training
    tracked = _dvc_entries(root, commit, areas) if commit else ()
    doubts = (*_commit_doubts(stated, known, commit), *_data_doubts(root, areas, matching, commit, tracked))
    hashes = {each.file: each.md5 for each in tracked}
    return TrainingData(areas, commit, hashes, _restore_commands(commit, hashes, areas), doubts)


@dataclass(frozen=True)
class _DvcEntry:
    """An entry of a .dvc file, with paths relative to the project's root."""

    file: str
    path: PurePosixPath
    md5: str


def _commit_doubts(stated: str, known: bool, commit: str) -> Iterator[str]:
    head = stated.removesuffix(UNCOMMITTED_SUFFIX)
    if not known:
        yield f"the commit it states, {stated or 'none'}, is not in this repository"
    if stated.endswith(UNCOMMITTED_SUFFIX):
        yield f"it was trained with changes that were not committed on top of {head[:12]}"
        if commit:
            yield f"{commit[:12]} is the first commit whose dvc.lock has its data; code and params.yaml may differ"


def _data_doubts(
    root: Path, areas: tuple[TrainingArea, ...], matching: list[str], commit: str, tracked: tuple[_DvcEntry, ...]
) -> Iterator[str]:
    if not areas:
        yield "no dvc.lock, of this folder or in the history of git, has the stacks and masks of that data version"
    elif matching == [_WORKING_FOLDER] and not commit:
        yield "the data are those of the working folder, and not committed: commit dvc.lock and the .dvc files"
    if not commit:
        return
    if not tracked:
        yield f"no .dvc file of {commit[:12]} holds the sources"
    elif not areas:
        yield f"so whether the sources that {commit[:12]} has are those it was trained on, is not proven"
    for area in areas if tracked else ():
        found = _sources_hash(root, area, tracked)
        if found not in ("", area.sources_md5):
            yield f"{commit[:12]} has other sources of {area.area} than its stack was made of ({found})"
        elif not found and not any(_dvc_entries(root, one, areas) == tracked for one in matching):
            yield f"whether {commit[:12]} has the sources of {area.area} is not proven: DVC's list of them is not here"


def _sources_hash(root: Path, area: TrainingArea, tracked: tuple[_DvcEntry, ...]) -> str:
    """Return DVC's hash of an area's folder according to .dvc files; empty if unknown.

    For a part of a tracked folder, it follows from the list that DVC's cache keeps of the whole.
    """
    folder = PurePosixPath(area.folder)
    whole = next((each for each in tracked if folder.is_relative_to(each.path)), None)
    if whole is None or whole.path == folder:
        return whole.md5 if whole else ""
    try:
        listed = json.loads((root / ".dvc/cache/files/md5" / whole.md5[:2] / whole.md5[2:]).read_bytes())
        paths = {whole.path / str(entry["relpath"]): str(entry["md5"]) for entry in listed}
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    inside = {str(path.relative_to(folder)): digest for path, digest in paths.items() if path.is_relative_to(folder)}
    part = [{"md5": digest, "relpath": path} for path, digest in sorted(inside.items())]
    return hashlib.md5(json.dumps(part).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _restore_commands(commit: str, tracked: Mapping[str, str], areas: tuple[TrainingArea, ...]) -> tuple[str, ...]:
    if not (commit and tracked):
        return ()
    stages = [shlex.join(["dvc", "repro", *(area.stage for area in areas)])] if areas else []
    return (f"git checkout {commit}", shlex.join(["dvc", "pull", *tracked]), *stages)


def _find_areas(root: Path, data_version: str) -> tuple[tuple[TrainingArea, ...], list[str]]:
    """Return the areas of a data version, and the commits whose dvc.lock has them.

    The working folder comes first, then commits, newest first.
    """
    found: tuple[TrainingArea, ...] = ()
    matching = []
    log = _git(root, "log", "--all", "--format=%H", "--", "dvc.lock") or ""
    for commit in (_WORKING_FOLDER, *log.split()):
        areas = _training_areas(_read_yaml(root, commit, "dvc.lock"))
        if areas and version_of([md5 for area in areas for md5 in (area.stack_md5, area.mask_md5)]) == data_version:
            matching.append(commit)
            found = areas
    return found, matching


def _training_areas(lock: Mapping[str, Any]) -> tuple[TrainingArea, ...]:
    """Return the areas of a dvc.lock whose stage writes a training record."""
    areas = []
    for stage, content in dict(lock.get("stages") or {}).items():
        outs = {str(out["path"]): str(out.get("md5", "")) for out in content.get("outs", [])}
        deps = {str(dep["path"]): str(dep.get("md5", "")) for dep in content.get("deps", [])}
        for record in (path for path in outs if path.startswith(_TRAINING_RECORDS_FOLDER)):
            area = PurePosixPath(record).stem
            params = dict(content.get("params", {})).get("params.yaml", {})
            folder = str(dict(params.get(f"areas.{area}", {})).get("folder", ""))
            stack, mask = outs.get(f"stacks/{area}.tif", ""), outs.get(f"stacks/{area}.mask.tif", "")
            areas.append(TrainingArea(area, stack, mask, folder, deps.get(folder, ""), stage))
    return tuple(areas)


def _dvc_entries(root: Path, commit: str, areas: tuple[TrainingArea, ...]) -> tuple[_DvcEntry, ...]:
    """Return the entries of a commit's .dvc files for the areas; all if there are none."""
    folders = [PurePosixPath(area.folder) for area in areas]
    names = (_git(root, "ls-tree", "-r", "-z", "--name-only", commit) or "").split("\0") if commit else ()
    found = []
    for name in (name for name in names if name.endswith(".dvc")):
        for out in _read_yaml(root, commit, name).get("outs") or []:
            path = PurePosixPath(name).parent / str(out.get("path", ""))
            if not folders or any(path.is_relative_to(folder) or folder.is_relative_to(path) for folder in folders):
                found.append(_DvcEntry(name, path, str(out.get("md5", ""))))
    return tuple(found)


def _has_commit(root: Path, commit: str) -> bool:
    """Return whether git has a commit; text that is no hash is none."""
    return (
        bool(re.fullmatch(r"[0-9a-f]{7,64}", commit))
        and _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is not None
    )


def _read_yaml(root: Path, commit: str, name: str) -> Mapping[str, Any]:
    """Read a YAML file of a commit or the working folder; empty if missing or damaged."""
    try:
        if commit == _WORKING_FOLDER:
            text: str | None = (root / name).read_text(encoding="utf-8")
        else:
            text = _git(root, "show", f"{commit}:./{name}")
        content = yaml.load(text or "", Loader=_YAML_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _git(root: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it fails or is missing."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
