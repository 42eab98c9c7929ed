"""Trials performed on record in MLflow, from their checkpoints onwards: in this process, or by workers.

Workers are processes of this machine, or those of a Dask cluster, with one trial a process. A worker finds the project
at the same path as this process, resumes a trial from its checkpoint there, and logs to the store of runs itself. To a
cluster goes the address of that store, never a login: Dask may carry it unencrypted, so the workers have theirs in
their own environment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from talud import cluster
from talud.cluster import Cluster, LostTask, run_tasks
from talud.cluster_connection import Workers
from talud.data.record import data_version
from talud.engine.session import physical_cores
from talud.errors import ClusterError, RegistryError, StudyError, TaludError
from talud.params import Params, TrainingOptions
from talud.project import Project
from talud.registry import Store, TrialRun, short_timeouts
from talud.text import first_line
from talud.training import checkpoint
from talud.training.checkpoint import TrialState
from talud.training.dataset import Dataset
from talud.training.search import Hyperparameters, recorded_hyperparameters
from talud.training.trial import TrialConfig, train
from talud.versions import training_code

MAX_CRASHES = 3  # processes killed at the same epoch, after which a trial is not tried again


@dataclass(frozen=True)
class TrialTask:
    """A trial, or the next part of one, to be performed.

    Attributes:
        project: which workers must find at the same path.
        band_set: of the study.
        hyperparameters: the trial's hyperparameters.
        key: by which it is known again (`checkpoint.trial_key`).
        max_epochs: the epoch up to which it is trained now.
        parent_run_id: the study's run.
        tags: of the trial's run.
    """

    project: Project
    band_set: str
    hyperparameters: Hyperparameters
    key: str
    max_epochs: int
    parent_run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class TrialResult:
    """State of a trial after it was performed, or why it failed.

    Attributes:
        run_id: of its run.
        hyperparameters: its hyperparameters.
        key: by which it is known again.
        state: without anything large.
        holds: what its checkpoint holds that is large, by name.
        failure: empty where it did not fail.
    """

    run_id: str
    hyperparameters: Hyperparameters
    key: str
    state: TrialState
    stored_arrays: frozenset[str] = frozenset()
    failure: str = ""

    @property
    def summary(self) -> str:
        """Describe the result of the trial."""
        if self.failure:
            return f"failed: {self.failure}"
        state = self.state
        done = f"epoch {state.best_epoch} of {len(state.epochs)}"
        return f"validation F1 {state.scores['f1']:.3f} at {done}, {state.seconds:.0f} s"


EpochCallback = Callable[[str, int, float], None]  # a trial's key, its last epoch, and the validation F1 of that


def run_trial(task: TrialTask, on_epoch: EpochCallback) -> TrialResult:
    """Train a trial from its checkpoint up to an epoch, and record it, even if it fails.

    Epochs that the store of runs cannot take at once, for it does not answer, are sent with later ones, at the latest
    when the trial ends.

    Raises:
        RegistryError: the store does not answer when the trial begins or ends; the checkpoint is kept.
        OutputError: the checkpoint cannot be written.
    """
    project, path = task.project, task.project.checkpoint(task.key)
    store = Store.open(project.root)
    data = load_dataset(project, task.band_set)
    if data.version != task.tags["data_version"]:
        raise ClusterError(
            f"{project.root} holds other stacks here than where the study was started; let all workers share one disk"
        )
    state = checkpoint.read(path)
    if state.weights is None and not state.is_finished(task.max_epochs, task.hyperparameters.patience):
        state = TrialState()  # an earlier search was done with it, and kept no weights to go on from
    result = TrialResult("", task.hyperparameters, task.key, state.without_arrays, state.stored_arrays)
    if state.is_finished(task.max_epochs, task.hyperparameters.patience):
        run_id = store.runs.finished_trial(task.parent_run_id, task.key, len(state.epochs))
        if run_id:
            return replace(result, run_id=run_id)
    try:
        with _record(store, task, len(state.epochs)) as record:
            result = replace(result, run_id=record.run_id)
            record.log_dataset("+".join(data.blocks), data.version, "stacks/training")
            logger = _EpochLogger(record)
            with _memory_errors_as_failure(task):
                state = train(
                    data,
                    TrialConfig.of(project.params, task.hyperparameters),
                    path,
                    state=state,
                    max_epochs=task.max_epochs,
                    on_epoch=lambda now: on_epoch(task.key, len(now.epochs), now.epochs[-1].metrics["val_f1"]),
                    on_write=logger.try_log,
                )
            logger.log(state)
            figures = {"best_epoch": state.best_epoch, "seconds": state.seconds, "parameters": state.weight_count}
            record.log_scores({**state.scores, **figures})
    except StudyError as error:
        return replace(result, failure=str(error))
    return replace(result, state=state.without_arrays, stored_arrays=state.stored_arrays)


def run_with_crash_limit(task: TrialTask, on_epoch: EpochCallback) -> TrialResult:
    """Run a trial in this process; fail it after too many crashes.

    A trial that has crashed `MAX_CRASHES` processes since its last checkpoint is recorded as failed.

    Raises:
        As `run_trial`.
    """
    path = task.project.checkpoint(task.key)
    crash_count = checkpoint.crash_count(path)
    if crash_count < MAX_CRASHES:
        with checkpoint.crash_counted(path):
            return run_trial(task, on_epoch)
    return record_failure(
        task,
        f"its process was killed {crash_count} times between epoch {len(checkpoint.read(path).epochs)} and the next "
        f"checkpoint, probably out of memory; {_memory_advice(task.project.params.training)}; to retry, delete "
        f"{checkpoint.crash_file(path).relative_to(task.project.root)}",
    )


def record_failure(task: TrialTask, reason: str) -> TrialResult:
    """Record a trial as failed for a reason that its process could not record.

    Raises:
        RegistryError: the store does not answer.
    """
    state = checkpoint.read(task.project.checkpoint(task.key))
    store = Store.open(task.project.root)
    with suppress(StudyError), _record(store, task, len(state.epochs)) as record:
        result = TrialResult(
            record.run_id, task.hyperparameters, task.key, state.without_arrays, state.stored_arrays, reason
        )
        raise StudyError(reason)  # with which the run ends
    return result


def _record(store: Store, task: TrialTask, epochs: int) -> AbstractContextManager[TrialRun]:
    """Open the run of a trial that has so many finished epochs."""
    tags = {**task.tags, "trial": task.key}
    name, hyperparameters = (
        f"{task.band_set} · {task.hyperparameters.name}",
        recorded_hyperparameters(task.project.params, task.hyperparameters),
    )
    return store.runs.trial(task.parent_run_id, name, hyperparameters, tags, epochs)


class _EpochLogger:
    """Epochs of a trial that its run holds already."""

    def __init__(self, record: TrialRun) -> None:
        self._record = record
        self._epochs = record.logged_epochs

    def try_log(self, state: TrialState) -> None:
        """Send new epochs, unless the store does not answer."""
        try:
            with short_timeouts():
                self.log(state)
        except RegistryError:
            return  # it goes along with the next

    def log(self, state: TrialState) -> None:
        """Send new epochs."""
        self._record.log_epochs([(epoch.number, epoch.time, epoch.metrics) for epoch in state.epochs[self._epochs :]])
        self._epochs = len(state.epochs)


@contextmanager
def _memory_errors_as_failure(task: TrialTask) -> Iterator[None]:
    """Raise a lack of memory inside the block as the failure of the trial."""
    try:
        yield
    except MemoryError as error:
        raise StudyError(_out_of_memory_message(task, error)) from error
    except Exception as error:
        # TensorFlow and JAX have errors of their own for it, with this one word in common.
        said = f"{type(error).__name__} {error}".replace("_", "").lower()
        if not any(word in said for word in ("resourceexhausted", "out of memory", "outofmemory", "allocfailed")):
            raise
        raise StudyError(_out_of_memory_message(task, error)) from error


def _out_of_memory_message(task: TrialTask, error: BaseException) -> str:
    """Return the error message of a trial that ran out of memory."""
    return f"out of memory ({first_line(error)[:200]}); {_memory_advice(task.project.params.training)}"


def _memory_advice(options: TrainingOptions) -> str:
    """Return a hint that names the choices which need less memory and are not made yet."""
    choices = ["a smaller batch_size"]
    choices += ["training.rematerialise: true"] if not options.rematerialise else []
    choices += ["training.mixed_precision: float16"] if not options.mixed_precision else []
    return f"less memory is needed with {' or '.join(choices)}"


def load_dataset(project: Project, band_set: str) -> Dataset:
    """Return the data set of a study; the last one is cached for the next trial.

    Raises:
        As `Dataset.load`.
    """
    version = data_version(project, project.params.areas_of("training"))
    return _loaded(project.root, project.params.model_dump_json(), band_set, version)


@lru_cache(maxsize=1)
def _loaded(root: Path, params: str, band_set: str, _version: str) -> Dataset:
    return Dataset.load(Project(root, Params.model_validate_json(params)), band_set)


class TrialRunner(Protocol):
    """Runner of trials, in this process or by workers."""

    def __call__(self, tasks: Sequence[TrialTask], on_epoch: EpochCallback) -> Iterator[TrialResult]:
        """Run tasks and yield their entries, in any order."""


def run_here(tasks: Sequence[TrialTask], on_epoch: EpochCallback) -> Iterator[TrialResult]:
    """Run tasks in this process, one after another."""
    return (run_with_crash_limit(task, on_epoch) for task in tasks)


@dataclass(frozen=True)
class WorkerContext:
    """Project, store and code that a worker shares with the process that gives it trials.

    Attributes:
        root: of the project.
        store: the address of the server of runs; None for workers whose environment is this process's own.
        code: the release and the versions of the training code.
    """

    root: Path
    store: str | None
    code: str


@contextmanager
def open_workers(requested: Workers, project: Project) -> Iterator[TrialRunner]:
    """Open workers as a runner for `study.run`; check that each reaches project and store.

    Args:
        requested: a number of processes on this machine, which share its cores, or the address of a Dask scheduler.
        project: whose stacks and checkpoints the workers find at the same path.

    Raises:
        ParamsError: there is no such number of workers, or there are fewer GPUs.
        ClusterError: they cannot be had, differ from this process, do not see the project, or would share a GPU.
        RegistryError: the store of runs cannot be used, from here or by a worker.
    """
    Store.open(project.root, create=True)
    context = WorkerContext(project.root, _tracking_server() if isinstance(requested, str) else None, training_code())
    threads = str(max(physical_cores() // requested, 1)) if isinstance(requested, int) and requested > 0 else ""
    shared = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    with (
        tempfile.TemporaryDirectory(prefix="talud-") as folder,
        cluster.open_cluster(requested, Path(folder), shared) as found,
    ):
        for address, trouble in found.client.run(_worker_problem, context, on_error="ignore").items():
            if trouble:
                raise type(trouble)(f"worker {address}: {trouble}")
        yield partial(_run_on_workers, found, context)


def _tracking_server() -> str:
    """Return the address of the server of runs, without a login in it.

    Raises:
        ClusterError: there is none.
    """
    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if address.scheme not in ("http", "https"):
        raise ClusterError(
            "the workers of a cluster log to an MLflow server, and MLFLOW_TRACKING_URI names none; set it to the "
            "server's address, such as https://mlflow.example.org"
        )
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _run_on_workers(
    found: Cluster, context: WorkerContext, tasks: Sequence[TrialTask], on_epoch: EpochCallback
) -> Iterator[TrialResult]:
    """Run trials by workers; one that no worker survives is recorded as failed."""
    for task, result in run_tasks(
        partial(_run_on_worker, context), tasks, found, lambda _, message: on_epoch(*message)
    ):
        yield record_failure(task, result.reason) if isinstance(result, LostTask) else result


def _run_on_worker(context: WorkerContext, task: TrialTask, on_epoch: cluster.SendMessage) -> TrialResult:
    """Run a trial, in a worker.

    Raises:
        TaludError: as `run_trial`, or the worker has not what it must have.
    """
    if trouble := _worker_problem(context):
        raise trouble
    return run_trial(task, lambda *progress: on_epoch(progress))


def _worker_problem(context: WorkerContext) -> TaludError | None:
    """Return the reason why this worker cannot run trials, None if it can."""
    if context.store is not None:
        os.environ["MLFLOW_TRACKING_URI"] = context.store
    if training_code() != context.code:
        return ClusterError(
            f"has the training code of talud {training_code()}, but this process has that of {context.code}; install "
            "the same version"
        )
    if not (context.root / "params.yaml").is_file():
        return ClusterError(
            f"does not see {context.root}; the project must lie on a disk that all workers reach under the same path"
        )
    try:
        Store.open(context.root)
    except TaludError as error:
        return type(error)(str(error))
    return None
