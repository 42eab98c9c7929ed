"""Trials on disk: the keys by which they are found, and checkpoints from which they are resumed.

A key is a hash of everything that a trial's result depends on. A checkpoint resumes a trial on the same machine to the
same weights.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from talud.errors import StudyError
from talud.files import atomic_replace, sync_to_disk, translate_write_errors
from talud.project import Project
from talud.training.search import Hyperparameters
from talud.versions import VERSIONS


def trial_key(project: Project, bands: Sequence[str], data_version: str, hyperparameters: Hyperparameters) -> str:
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
        "choice": asdict(hyperparameters),
        "versions": {part: VERSIONS[part] for part in ("data", "training")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def study_key(keys: Sequence[str], search: str) -> str:
    """Return a study's key: a hash of its search's name and the keys of its trials."""
    return hashlib.sha256("\n".join((search, *keys)).encode()).hexdigest()[:32]


Weights = list[NDArray[Any]]
ARRAYS = ("best", "weights", "optimizer")


@dataclass(frozen=True)
class Epoch:
    """An epoch that is over.

    Attributes:
        number: counted from 1.
        time: when it ended, in milliseconds since 1970.
        metrics: `loss`, the four scores, and `val_` of each.
    """

    number: int
    time: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialState:
    """A trial after some epochs.

    Attributes:
        epochs: all that are over, in order.
        best_epoch: the one of the highest validation F1; 0 before the first.
        best: its weights, in the order of `keras.Model.get_weights`.
        weights: of the last epoch.
        optimizer: the optimiser's variables after the last epoch.
        weight_count: number of trainable weights.
        seconds: that the training took so far.
    """

    epochs: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    best: Weights | None = None
    weights: Weights | None = None
    optimizer: Weights | None = None
    weight_count: int = 0
    seconds: float = 0.0

    @property
    def stored_arrays(self) -> frozenset[str]:
        """Names of the arrays that are present."""
        return frozenset(name for name in ARRAYS if getattr(self, name) is not None)

    @property
    def without_arrays(self) -> TrialState:
        """The state without its arrays."""
        return replace(self, best=None, weights=None, optimizer=None)

    @property
    def scores(self) -> dict[str, float]:
        """Precision, recall, f1 and iou of the best epoch on the validation patches, at a threshold of 0.5."""
        metrics = self.epochs[self.best_epoch - 1].metrics
        return {name: metrics[f"val_{name}"] for name in ("precision", "recall", "f1", "iou")}

    def best_f1_up_to(self, epoch: int) -> float:
        """Return the highest validation F1 up to an epoch, counted from 1; 0 before the first."""
        return max((one.metrics["val_f1"] for one in self.epochs[:epoch]), default=0.0)

    def is_finished(self, epochs: int, patience: int | None) -> bool:
        """Return True if all epochs are done, or the last `patience` brought no higher F1."""
        done = len(self.epochs)
        return done >= epochs or (patience is not None and done - self.best_epoch >= patience)


def write(path: Path, state: TrialState) -> None:
    """Write a state atomically.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    record = asdict(state.without_arrays)
    record |= {name: None if getattr(state, name) is None else len(getattr(state, name)) for name in ARRAYS}
    arrays = {f"{name}_{i}": array for name in ARRAYS for i, array in enumerate(getattr(state, name) or ())}
    with atomic_replace(path) as scratch:
        np.savez(scratch, record=np.frombuffer(json.dumps(record).encode(), np.uint8), **arrays)
        sync_to_disk(scratch)


def read(path: Path) -> TrialState:
    """Read the state in a file; the one before the first epoch if missing or damaged.

    Raises:
        StudyError: there is one, and the system does not let it be read.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            record = json.loads(file["record"].tobytes())
            for name in ARRAYS:
                count = record[name]
                record[name] = None if count is None else [file[f"{name}_{i}"] for i in range(count)]
            return TrialState(**record | {"epochs": tuple(Epoch(**epoch) for epoch in record["epochs"])})
    except (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return TrialState()
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def crash_counted(path: Path) -> Iterator[None]:
    """Count a process that is killed inside the block; any other end is not counted.

    Args:
        path: of the trial's checkpoint. The count lies beside it, and begins anew when it is written.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    before, place = crash_count(path), _place(path)
    _count(path, before + 1)
    try:
        yield
    finally:
        if before and _place(path) == place:
            _count(path, before)
        else:
            crash_file(path).unlink(missing_ok=True)


def crash_count(path: Path) -> int:
    """Return the number of processes killed at a trial since its last checkpoint."""
    try:
        place, number = crash_file(path).read_text(encoding="ascii").split()
        return int(number) if place == _place(path) else 0
    except (OSError, ValueError):
        return 0


def crash_file(path: Path) -> Path:
    """Return the file next to a checkpoint in which `crash_counted` counts."""
    return path.with_suffix(".kills")


def _count(path: Path, number: int) -> None:
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        crash_file(path).write_text(f"{_place(path)} {number}", encoding="ascii")


def _place(path: Path) -> str:
    """Return a text that changes whenever the checkpoint is written."""
    return str(path.stat().st_mtime_ns) if path.exists() else "none"
