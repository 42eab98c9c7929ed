"""The data that a model was trained on, as git and DVC have them on record.

A model states its data version: the MD5 over the MD5s of the stacks and masks that it was trained on. Each dvc.lock in
the history of a project lists such MD5s, and the hash of the sources that each stack was made of, so the data of a
model are found by what they are, and not by when they were: a commit says what was there only if nothing was changed
after it. DVC itself is not needed for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from talud.data.record import version_of

CHANGES = "+changes"
_HERE = ""  # in place of a commit: the working folder as it is
_RECORDS = "stacks/training/"


@dataclass(frozen=True)
class TrainingArea:
    """An area that a model was trained on.

    Attributes:
        area: its name.
        stack_md5: of its stack.
        mask_md5: of its mask.
        folder: of its sources, relative to the project's root.
        sources_md5: DVC's hash of that folder; its name for a folder ends with .dir.
        stage: the DVC stage that makes the stack.
    """

    area: str
    stack_md5: str
    mask_md5: str
    folder: str
    sources_md5: str
    stage: str


@dataclass(frozen=True)
class Data:
    """What a model was trained on, and how to have it again.

    Attributes:
        areas: empty where no dvc.lock on record has them.
        commit: that has the sources on record; empty where none is known.
        tracked: the .dvc files of the sources in that commit, relative to the project's root → the hash in them.
        restore: commands, to be run in the project's root, that bring the data back.
        doubts: what is not known, or not sure.
    """

    areas: tuple[TrainingArea, ...]
    commit: str
    tracked: Mapping[str, str]
    restore: tuple[str, ...]
    doubts: tuple[str, ...]


def find(root: Path, data_version: str, stated: str) -> Data:
    """The data of a data version.

    Args:
        root: of the project, absolute.
        data_version: what the model, or the map, states.
        stated: the commit that it states, with +changes where there were any.
    """
    head = stated.removesuffix(CHANGES)
    known = _known(root, head)
    areas, matching = _search(root, data_version)
    candidates = [head] if known and not stated.endswith(CHANGES) else [commit for commit in matching if commit]
    commit = candidates[-1] if candidates else ""  # the oldest: the nearest to the training
    tracked = _tracked(root, commit, areas) if commit else ()
    doubts = (*_about_commit(stated, known, commit), *_about_data(root, areas, matching, commit, tracked))
    hashes = {each.file: each.md5 for each in tracked}
    return Data(areas, commit, hashes, _commands(commit, hashes, areas), doubts)


@dataclass(frozen=True)
class _Tracked:
    """What a .dvc file holds: the file, the path of the data, and their hash; both from the project's root."""

    file: str
    path: PurePosixPath
    md5: str


def _about_commit(stated: str, known: bool, commit: str) -> Iterator[str]:
    head = stated.removesuffix(CHANGES)
    if not known:
        yield f"the commit it states, {stated or 'none'}, is not in this repository"
    if stated.endswith(CHANGES):
        yield f"it was trained with changes that were not committed on top of {head[:12]}"
        if commit:
            yield f"{commit[:12]} is the first commit whose dvc.lock has its data; code and params.yaml may differ"


def _about_data(
    root: Path, areas: tuple[TrainingArea, ...], matching: list[str], commit: str, tracked: tuple[_Tracked, ...]
) -> Iterator[str]:
    if not areas:
        yield "no dvc.lock, of this folder or in the history of git, has the stacks and masks of that data version"
    elif matching == [_HERE] and not commit:
        yield "the data are those of the working folder, and not committed: commit dvc.lock and the .dvc files"
    if not commit:
        return
    if not tracked:
        yield f"no .dvc file of {commit[:12]} holds the sources"
    elif not areas:
        yield f"so whether the sources that {commit[:12]} has are those it was trained on, is not proven"
    for area in areas if tracked else ():
        found = _sources_of(root, area, tracked)
        if found not in ("", area.sources_md5):
            yield f"{commit[:12]} has other sources of {area.area} than its stack was made of ({found})"
        elif not found and not any(_tracked(root, one, areas) == tracked for one in matching):
            yield f"whether {commit[:12]} has the sources of {area.area} is not proven: DVC's list of them is not here"


def _sources_of(root: Path, area: TrainingArea, tracked: tuple[_Tracked, ...]) -> str:
    """DVC's hash of an area's folder, as .dvc files have it; empty where it does not follow from them alone.

    Where the folder is a part of what one tracks, it follows from the list that DVC's cache keeps of the whole.
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


def _commands(commit: str, tracked: Mapping[str, str], areas: tuple[TrainingArea, ...]) -> tuple[str, ...]:
    if not (commit and tracked):
        return ()
    stages = [shlex.join(["dvc", "repro", *(area.stage for area in areas)])] if areas else []
    return (f"git checkout {commit}", shlex.join(["dvc", "pull", *tracked]), *stages)


def _search(root: Path, data_version: str) -> tuple[tuple[TrainingArea, ...], list[str]]:
    """The areas of a data version, and where a dvc.lock has them: the working folder, then commits, newest first."""
    found: tuple[TrainingArea, ...] = ()
    matching = []
    log = _git(root, "log", "--all", "--format=%H", "--", "dvc.lock") or ""
    for commit in (_HERE, *log.split()):
        areas = _training_areas(_read(root, commit, "dvc.lock"))
        if areas and version_of([md5 for area in areas for md5 in (area.stack_md5, area.mask_md5)]) == data_version:
            matching.append(commit)
            found = areas
    return found, matching


def _training_areas(lock: Mapping[str, Any]) -> tuple[TrainingArea, ...]:
    """The training areas of a dvc.lock: those whose stage makes a record for a training area."""
    areas = []
    for stage, content in dict(lock.get("stages") or {}).items():
        outs = {str(out["path"]): str(out.get("md5", "")) for out in content.get("outs", [])}
        deps = {str(dep["path"]): str(dep.get("md5", "")) for dep in content.get("deps", [])}
        for record in (path for path in outs if path.startswith(_RECORDS)):
            area = PurePosixPath(record).stem
            params = dict(content.get("params", {})).get("params.yaml", {})
            folder = str(dict(params.get(f"areas.{area}", {})).get("folder", ""))
            stack, mask = outs.get(f"stacks/{area}.tif", ""), outs.get(f"stacks/{area}.mask.tif", "")
            areas.append(TrainingArea(area, stack, mask, folder, deps.get(folder, ""), stage))
    return tuple(areas)


def _tracked(root: Path, commit: str, areas: tuple[TrainingArea, ...]) -> tuple[_Tracked, ...]:
    """What the .dvc files of a commit hold of the areas' folders; of all data where no areas are known."""
    folders = [PurePosixPath(area.folder) for area in areas]
    names = (_git(root, "ls-tree", "-r", "-z", "--name-only", commit) or "").split("\0") if commit else ()
    found = []
    for name in (name for name in names if name.endswith(".dvc")):
        for out in _read(root, commit, name).get("outs") or []:
            path = PurePosixPath(name).parent / str(out.get("path", ""))
            if not folders or any(path.is_relative_to(folder) or folder.is_relative_to(path) for folder in folders):
                found.append(_Tracked(name, path, str(out.get("md5", ""))))
    return tuple(found)


def _known(root: Path, commit: str) -> bool:
    """Whether git has a commit; what is no hash (a map can state anything) is none."""
    return (
        bool(re.fullmatch(r"[0-9a-f]{7,64}", commit))
        and _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}") is not None
    )


def _read(root: Path, commit: str, name: str) -> Mapping[str, Any]:
    """A YAML file of a commit, or of the working folder; empty where there is none, or it is damaged."""
    try:
        if commit == _HERE:
            text: str | None = (root / name).read_text(encoding="utf-8")
        else:
            text = _git(root, "show", f"{commit}:./{name}")
        content = yaml.load(text or "", Loader=_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, twenty times as fast where it is built


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where it fails, or is not there."""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
