"""Keys of trials and studies: hashes of everything that a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from talud.project import Project
from talud.training.search import Hyperparameters
from talud.versions import VERSIONS


def trial_key(project: Project, bands: Sequence[str], data_version: str, choice: Hyperparameters) -> str:
    """Return a trial's key: 32 hex digits of a SHA-256 over data, split, hyperparameters and versions.

    Two trials with the same key are the same trial.
    """
    params = project.params
    content = {
        "bands": list(bands),
        "data_version": data_version,
        "split": params.split_choices,
        # What is left out comes after all trials.
        "training": params.training.model_dump(exclude={"calibrate"}),
        "recipe": params.learning.model_dump(exclude={"dropping": {"tolerance"}}),
        "choice": asdict(choice),
        "versions": {part: VERSIONS[part] for part in ("data", "training")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def study_key(keys: Sequence[str], search: str) -> str:
    """Return a study's key: a hash of its search's name and the keys of its trials."""
    return hashlib.sha256("\n".join((search, *keys)).encode()).hexdigest()[:32]
