"""Versions of the parts of the package that results depend on.

Raise a part's version by one if the same input gives another result: another stack, trial, map or score. Changes of
wording, structure or speed do not count. Trial keys contain the versions `data` and `training`. The pipeline depends on
all versions through the project's file versions.yaml, so `dvc status` lists the stages that an upgrade makes stale.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from talud.errors import ParamsError, TaludWarning
from talud.files import atomic_replace

VERSIONS = {
    "data": 1,  # sources to stacks, masks and patches
    "training": 2,  # patches to a trial's weights
    "inference": 1,  # model files: export, quantisation, maps and their products
    "evaluation": 1,  # maps and labels to scores, gate and report
}
FILE_NAME = "versions.yaml"
HEADER = """\
# Versions of talud's parts, which dvc.yaml reads: where one changes, dvc repro repeats the stages that depend on it.
# Written by `talud versions`; run it after each upgrade of talud, and commit this file with dvc.lock.
"""


def training_versions() -> str:
    """Return the release and versions of this process's training code.

    Processes that train one study compare this text.
    """
    return f"{version('talud')} (data {VERSIONS['data']}, training {VERSIONS['training']})"


def write_versions(root: Path) -> Path:
    """Write a project's versions.yaml; return its path.

    Args:
        root: root folder of the project.

    Raises:
        OutputError: The file cannot be written.
    """
    path = root / FILE_NAME
    with atomic_replace(path) as scratch:
        scratch.write_text(HEADER + "".join(f"{part}: {number}\n" for part, number in VERSIONS.items()))
    return path


def check_project(folder: Path) -> None:
    """Compare a project's versions.yaml with the package.

    A stage of DVC is refused, because its result would be recorded under the wrong versions. Other commands warn.
    Nothing is checked outside a project.

    Args:
        folder: absolute folder; the project around it is checked.

    Raises:
        ParamsError: The command is a stage of DVC, and versions.yaml is missing or differs.
    """
    root = next((parent for parent in (folder, *folder.parents) if (parent / "params.yaml").is_file()), None)
    if root is None:
        return
    pipeline = _text(root / "dvc.yaml")
    reads = f"- {FILE_NAME}" in pipeline
    if "talud train" in pipeline and not reads:
        warnings.warn(
            f"{root / 'dvc.yaml'}: was written for an earlier talud and does not read {FILE_NAME}, so DVC does not "
            f"detect changes by an upgrade; copy the dvc.yaml of talud {version('talud')} and run talud versions",
            TaludWarning,
            stacklevel=2,
        )
    elif (reads or (root / FILE_NAME).is_file()) and (difference := _describe_difference(root / FILE_NAME)):
        if "DVC_STAGE" in os.environ:
            raise ParamsError(f"{difference}; run talud versions, then dvc repro")
        warnings.warn(
            f"{difference}; run talud versions, then dvc status to see what is stale", TaludWarning, stacklevel=2
        )


def _describe_difference(path: Path) -> str | None:
    """Describe how versions.yaml differs from the package."""
    import yaml

    if not path.is_file():
        return f"{path}: file not found, but dvc.yaml depends on it"
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError:
        found = None
    if not isinstance(found, Mapping):
        return f"{path}: is not a file of talud's versions"
    parts = [part for part in {**found, **VERSIONS} if found.get(part) != VERSIONS.get(part)]
    if not parts:
        return None
    stated = ", ".join(f"{part} {found.get(part, 'missing')}" for part in parts)
    here = ", ".join(f"{part} {VERSIONS.get(part, 'missing')}" for part in parts)
    return f"{path}: states {stated}, but talud {version('talud')} has {here}"


def _text(path: Path) -> str:
    """Return a file's text; empty if unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
