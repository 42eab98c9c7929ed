"""Search for the origin of maps and models: run, commit and training data.

A model states its data version, which is the MD5 over the MD5s of its training stacks and masks. Each dvc.lock in the
history of a project lists these MD5s and the hashes of the sources of each stack, so the data are found by content.
The commit alone is not sufficient, because the project may have had uncommitted changes. DVC is not required.
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
from talud.data.stack_record import hash_data_version
from talud.engine import model_file
from talud.errors import ModelError, RegistryError, SourceError, TaludError
from talud.lineage.provenance import MapProvenance, RecordedMap, recorded_maps

_FILE_SUFFIXES = (".gpkg", ".tif", ".tiff", ".json", ".geojson", ".onnx")
UNCOMMITTED_SUFFIX = "+changes"
# Stands for the working folder in a list of commits.
_WORKING_FOLDER = ""
_TRAINING_RECORDS_FOLDER = "stacks/training/"
# The C loader is twenty times as fast, but not always built.
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class TrainingArea:
    """Area that a model was trained on.

    Attributes:
        area: name of the area.
        stack_md5: MD5 of its stack.
        mask_md5: MD5 of its mask.
        folder: folder of its sources, relative to the project's root.
        sources_md5: DVC's hash of that folder, which ends with ".dir".
        stage: DVC stage that makes the stack.
    """

    area: str
    stack_md5: str
    mask_md5: str
    folder: str
    sources_md5: str
    stage: str


@dataclass(frozen=True)
class TrainingData:
    """Training data of a model and the commands that restore them.

    Attributes:
        areas: training areas; empty if no dvc.lock contains them.
        commit: commit that contains the sources; empty if unknown.
        tracked: hashes in the .dvc files of that commit, by path relative to the project's root.
        restore: commands that restore the data when run in the project's root.
        doubts: clauses on unknown or uncertain facts.
    """

    areas: tuple[TrainingArea, ...]
    commit: str
    tracked: Mapping[str, str]
    restore: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """Origin of a map or model, and for a model its maps.

    Attributes:
        asked: name given by the user.
        kind: "map" or "model".
        model: name, version, precision and weights.
        registered: aliases of each registered version with this network, by URI.
        run_id: id of the MLflow run.
        run: run in the store; None if it is missing or the store cannot be reached.
        commit: commit of the project at training, with "+changes" if it was not clean.
        data_version: MD5 over the MD5s of the training stacks and masks.
        trained_on: training areas.
        data: training data in git and DVC; None outside a project.
        parameters: hyperparameters.
        mapped: for a map, the raster, its origin and the threshold; None for a model.
        maps: for a model, the recorded maps.
        unknown: clauses on unknown facts, with the reason.
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
    """Find the origin of a map or model.

    Args:
        asked: folder or file of a map, .onnx file, or registered model: NAME (its champion), NAME@ALIAS,
            NAME/VERSION or an MLflow URI.
        root: absolute path of the project's root; None outside a project.

    Raises:
        SourceError: The file is missing or not part of a talud map.
        ModelError: The file is not a talud model.
        RegistryError: The registry has no such model, or cannot be reached.
    """
    path = Path(asked)
    if not path.exists():
        if path.suffix.lower() in _FILE_SUFFIXES and ":/" not in asked:
            raise SourceError(f"{asked}: no such file; give a map, an .onnx file or a registered model")
        fetched = registry.fetch(registry.model_uri(asked), root)
        return _model_lineage(asked, model_file.read_contract(fetched.path), (fetched.name, fetched.version), root)
    if path.suffix.lower() == ".onnx":
        return _model_lineage(asked, model_file.read_contract(path), None, root)
    return _map_lineage(asked, MapProvenance.read(path), root)


def _model_lineage(asked: str, contract: Contract, named: tuple[str, str] | None, root: Path | None) -> Lineage:
    origin = contract.origin
    name, version = named if named and named[1] else (origin.name, "unregistered")
    stated = MapProvenance(
        name, version, origin.run_id, origin.commit, origin.data_version, origin.weights, contract.derived.precision,
        f"{contract.measured.threshold:g}", {},
    )  # fmt: skip
    lineage = _find_lineage(asked, "model", stated, contract, root)
    if root is None:
        no_maps = "the maps of the model: only projects record maps, and this folder is not in one"
        return replace(lineage, unknown=(*lineage.unknown, no_maps))
    known = (origin.weights, origin.data_version)
    made = [entry for entry in recorded_maps(root) if (entry.statement.weights, entry.statement.data_version) == known]
    return replace(lineage, maps=tuple(made))


def _map_lineage(asked: str, stated: MapProvenance, root: Path | None) -> Lineage:
    contract, reason = _find_contract(stated, root)
    lineage = _find_lineage(asked, "map", stated, contract, root)
    mapped = {**stated.raster, "threshold": stated.threshold}
    unknown = [*lineage.unknown, *([reason] if reason else [])]
    if "digest" not in mapped:
        unknown.append("the digest and sources of the raster: the map was made by an earlier release of talud")
    elif "sources" not in mapped:
        unknown.append("the sources of the raster: it is not a stack of talud, or was made by an earlier release")
    return replace(lineage, mapped=mapped, unknown=tuple(unknown))


def _find_lineage(
    asked: str, kind: str, stated: MapProvenance, contract: Contract | None, root: Path | None
) -> Lineage:
    """Find the run, versions and training data of a network."""
    unknown = []
    run, registered = None, {}
    try:
        store = registry.Store.open(root)
        run, registered = store.runs.find(stated.run), store.models.find_by_weights(stated.weights)
        if run is None:
            unknown.append(f"the MLflow run: the store has no run {stated.run or '(none is stated)'}")
        if not registered:
            unknown.append("the registered version: no version in the store contains this network")
    except RegistryError as error:
        unknown.append(f"the MLflow run and registered versions: {error}")
    data = find_data(root, stated.data_version, stated.commit) if root else None
    if data is None:
        unknown.append("the data's hashes: they are in the history of a project, and this folder is not in one")
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
    """Return the contract of a map's model, or the reason why it is missing.

    The model files of the project are searched first, then the store.
    """
    files = ("models/*.onnx", "predictions/*/*.adapted/model.onnx")
    for path in sorted(path for pattern in files for path in root.glob(pattern)) if root else ():
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
        return None, f"the model file: {error}"
    return None, "the model file: it is neither in models/ nor in the store; parameters, if shown, are those of the run"


def find_data(root: Path, data_version: str, stated: str) -> TrainingData:
    """Find the training data in the history of a project.

    Args:
        root: absolute path of the project's root.
        data_version: data version stated by the model or map.
        stated: commit stated by the model or map, with "+changes" if the project was not clean.

    Returns:
        The training data, with doubts if they are not certain.
    """
    head = stated.removesuffix(UNCOMMITTED_SUFFIX)
    known = _has_commit(root, head)
    areas, matching = _find_areas(root, data_version)
    candidates = (
        [head] if known and not stated.endswith(UNCOMMITTED_SUFFIX) else [commit for commit in matching if commit]
    )
    # The oldest commit is closest to the training.
    commit = candidates[-1] if candidates else ""
    tracked = _dvc_entries(root, commit, areas) if commit else ()
    doubts = (*_commit_doubts(stated, known, commit), *_data_doubts(root, areas, matching, commit, tracked))
    hashes = {each.file: each.md5 for each in tracked}
    return TrainingData(areas, commit, hashes, _restore_commands(commit, hashes, areas), doubts)


@dataclass(frozen=True)
class _DvcEntry:
    """Entry of a .dvc file; paths are relative to the project's root."""

    file: str
    path: PurePosixPath
    md5: str


def _commit_doubts(stated: str, known: bool, commit: str) -> Iterator[str]:
    head = stated.removesuffix(UNCOMMITTED_SUFFIX)
    if not known:
        yield f"the stated commit, {stated or 'none'}, is not in this repository"
    if stated.endswith(UNCOMMITTED_SUFFIX):
        yield f"it was trained with uncommitted changes after {head[:12]}"
        if commit:
            yield f"{commit[:12]} is the first commit whose dvc.lock contains its data; code and params.yaml may differ"


def _data_doubts(
    root: Path, areas: tuple[TrainingArea, ...], matching: list[str], commit: str, tracked: tuple[_DvcEntry, ...]
) -> Iterator[str]:
    if not areas:
        yield "no dvc.lock in this folder or in the git history contains the stacks and masks of this data version"
    elif matching == [_WORKING_FOLDER] and not commit:
        yield "the data are in the working folder, but not committed; commit dvc.lock and the .dvc files"
    if not commit:
        return
    if not tracked:
        yield f"no .dvc file of {commit[:12]} contains the sources"
    elif not areas:
        yield f"it is not proven that it was trained on the sources in {commit[:12]}"
    for area in areas if tracked else ():
        found = _sources_hash(root, area, tracked)
        if found not in ("", area.sources_md5):
            yield f"{commit[:12]} has other sources of {area.area} than its stack was made from ({found})"
        elif not found and not any(_dvc_entries(root, one, areas) == tracked for one in matching):
            yield f"it is not proven that {commit[:12]} has the sources of {area.area}: DVC's list of them is missing"


def _sources_hash(root: Path, area: TrainingArea, tracked: tuple[_DvcEntry, ...]) -> str:
    """Return DVC's hash of an area's folder, or "" if unknown.

    For part of a tracked folder, the hash is computed from the file list of the whole folder in DVC's cache.
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
    """Return the areas of a data version and the commits that contain them.

    The working folder is searched first, then the commits with a dvc.lock, newest first.
    """
    found: tuple[TrainingArea, ...] = ()
    matching = []
    log = _git(root, "log", "--all", "--format=%H", "--", "dvc.lock") or ""
    for commit in (_WORKING_FOLDER, *log.split()):
        areas = _training_areas(_read_yaml(root, commit, "dvc.lock"))
        if (
            areas
            and hash_data_version([md5 for area in areas for md5 in (area.stack_md5, area.mask_md5)]) == data_version
        ):
            matching.append(commit)
            found = areas
    return found, matching


def _training_areas(lock: Mapping[str, Any]) -> tuple[TrainingArea, ...]:
    """Return the areas in a dvc.lock that have a training record."""
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
    """Return the .dvc entries of areas in a commit.

    All entries are returned if there are no areas.
    """
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
    """Check if the repository has a commit."""
    return (
        bool(re.fullmatch(r"[0-9a-f]{7,64}", commit))
        and _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is not None
    )


def _read_yaml(root: Path, commit: str, name: str) -> Mapping[str, Any]:
    """Read a YAML file; empty if it is missing or damaged."""
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
    """Run git and return its output; None if it fails or is missing."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
