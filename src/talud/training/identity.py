"""By what a trial is known again: whatever its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from talud import metrics
from talud.data import patches
from talud.project import Project
from talud.training.search import Hyperparameters


def trial_key(project: Project, bands: Sequence[str], data_version: str, choice: Hyperparameters) -> str:
    """SHA-256, in 32 hex digits, of data, split, hyperparameters and training code; two trials of one key are one."""
    params = project.params
    content = {
        "bands": list(bands),
        "data_version": data_version,
        "split": params.split_choices,
        # What is left out comes after all trials.
        "training": params.training.model_dump(exclude={"calibrate"}),
        "recipe": params.learning.model_dump(exclude={"dropping": {"tolerance"}}),
        "choice": asdict(choice),
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def study_key(keys: Sequence[str], search: str) -> str:
    """The same of a study: of its search's name and all its trials."""
    return hashlib.sha256("\n".join((search, *keys)).encode()).hexdigest()[:32]


@cache
def code_version() -> str:
    """SHA-256 of the sources that decide a trial's weights: this room's, the patches' and the metrics'."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256()
    for source in (*sources, Path(patches.__file__), Path(metrics.__file__)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()
