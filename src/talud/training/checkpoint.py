"""Keys and checkpoints of trials.

A key is a hash of everything on which a trial's result depends. A trial that resumes from a checkpoint on the same
machine reaches the same weights as an uninterrupted one.
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
from talud.params import Recipe
from talud.params.networks import PLAIN_UNET
from talud.project import Project
from talud.training.search import Hyperparameters
from talud.versions import VERSIONS

_NEWER_AUGMENTATION = {"light", "hue", "unchanged", "shrink"}


def trial_key(project: Project, bands: Sequence[str], data_version: str, hyperparameters: Hyperparameters) -> str:
    """Return the key of a trial, 32 hex digits.

    It is a SHA-256 hash of the data, the split, the hyperparameters and the versions of the code. Two trials with the
    same key are the same trial.
    """
    params = project.params
    # `calibrate` takes effect only after the trials; trials of older versions were not balanced. `networks` has the
    # settings of all networks.
    left_out = {"calibrate", "networks"} | ({"balance"} if params.training.balance == "none" else set())
    choice, network = asdict(hyperparameters), hyperparameters.network
    if network == PLAIN_UNET:  # trials of older versions state no network
        del choice["network"]
    else:
        options = params.training.network_options(network, hyperparameters.filters, bands).pinned(project.root)
        choice["network"] = [network, options.model_dump(mode="json", exclude_none=True)]
    content = {
        "bands": list(bands),
        "data_version": data_version,
        "split": params.split_hyperparameters,
        "training": params.training.model_dump(exclude=left_out),
        "recipe": _recipe_content(params.chosen_recipe),
        "choice": choice,
        "versions": {part: VERSIONS[part] for part in ("data", "training")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _recipe_content(recipe: Recipe) -> dict[str, Any]:
    """Return the options of a recipe on which the weights depend.

    Options that older versions lacked are left out while they have their defaults.
    """
    # The tolerance takes effect only after the trials, too.
    content: dict[str, Any] = recipe.model_dump(exclude={"dropping": {"tolerance"}})
    augmentation = content["augmentation"]
    newer = recipe.augmentation.model_dump(include=_NEWER_AUGMENTATION, exclude_defaults=True)
    content["augmentation"] = {
        name: value for name, value in augmentation.items() if name in newer or name not in _NEWER_AUGMENTATION
    }
    if recipe.encoder_rate == 1:
        del content["encoder_rate"]
    return content


def study_key(keys: Sequence[str], search: str) -> str:
    """Return the key of a study, 32 hex digits.

    It is a SHA-256 hash of the name of its search and the keys of its trials.
    """
    return hashlib.sha256("\n".join((search, *keys)).encode()).hexdigest()[:32]


Weights = list[NDArray[Any]]
ARRAYS = ("best", "weights", "optimizer")


@dataclass(frozen=True)
class Epoch:
    """A finished epoch.

    Attributes:
        number: number of the epoch, counted from 1.
        time: time of its end, in milliseconds since 1970.
        metrics: `loss` and the four scores on the training patches; with the prefix `val_` on the validation patches.
    """

    number: int
    time: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class TrialState:
    """State of a trial after its last finished epoch.

    Attributes:
        epochs: finished epochs, in order.
        best_epoch: number of the epoch with the highest validation F1; 0 before the first epoch.
        best: weights of the best epoch, in the order of `keras.Model.get_weights`.
        weights: weights after the last epoch.
        optimizer: variables of the optimiser after the last epoch.
        weight_count: number of trainable weights.
        seconds: training time so far, in seconds.
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
        """State without its arrays."""
        return replace(self, best=None, weights=None, optimizer=None)

    @property
    def scores(self) -> dict[str, float]:
        """Validation scores of the best epoch.

        They are precision, recall, f1 and iou at a threshold of 0.5.
        """
        metrics = self.epochs[self.best_epoch - 1].metrics
        return {name: metrics[f"val_{name}"] for name in ("precision", "recall", "f1", "iou")}

    def best_f1_up_to(self, epoch: int) -> float:
        """Return the highest validation F1 up to an epoch."""
        return max((one.metrics["val_f1"] for one in self.epochs[:epoch]), default=0.0)

    def is_finished(self, epochs: int, patience: int | None) -> bool:
        """Check if all epochs are done or the patience has run out.

        Args:
            epochs: number of the last epoch.
            patience: number of epochs without a higher validation F1 after which training stops; None: no limit.
        """
        done = len(self.epochs)
        return done >= epochs or (patience is not None and done - self.best_epoch >= patience)


def write(path: Path, state: TrialState) -> None:
    """Write a state to a file atomically.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    record = asdict(state.without_arrays)
    record |= {name: None if getattr(state, name) is None else len(getattr(state, name)) for name in ARRAYS}
    arrays = {f"{name}_{i}": array for name in ARRAYS for i, array in enumerate(getattr(state, name) or ())}
    with atomic_replace(path) as scratch:
        np.savez(scratch, record=np.frombuffer(json.dumps(record).encode(), np.uint8), **arrays)
        sync_to_disk(scratch)


def read(path: Path) -> TrialState:
    """Read a state; return the initial one if missing or damaged.

    Raises:
        StudyError: The file exists, but the system does not allow reading it.
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
def counting_crashes(path: Path) -> Iterator[None]:
    """Count a crash if the process is killed inside the block.

    An exception is not a crash. The count is stored next to the checkpoint, and reset when the checkpoint is written.

    Args:
        path: path of the trial's checkpoint.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    before, stamp = crash_count(path), _checkpoint_stamp(path)
    _write_count(path, before + 1)
    try:
        yield
    finally:
        if before and _checkpoint_stamp(path) == stamp:
            _write_count(path, before)
        else:
            crash_file(path).unlink(missing_ok=True)


def crash_count(path: Path) -> int:
    """Return the number of crashes since the last checkpoint."""
    try:
        stamp, number = crash_file(path).read_text(encoding="ascii").split()
        return int(number) if stamp == _checkpoint_stamp(path) else 0
    except (OSError, ValueError):
        return 0


def crash_file(path: Path) -> Path:
    """Return the path of the crash counter of a checkpoint."""
    return path.with_suffix(".kills")


def _write_count(path: Path, number: int) -> None:
    with translate_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        crash_file(path).write_text(f"{_checkpoint_stamp(path)} {number}", encoding="ascii")


def _checkpoint_stamp(path: Path) -> str:
    """Return the modification time of a checkpoint, or "none"."""
    return str(path.stat().st_mtime_ns) if path.exists() else "none"
