"""Running of trials, in this process or on workers.

Workers are processes of this machine or of a Dask cluster, each of which runs one trial at a time. A worker needs the
project at the same path as this process. It resumes a trial from its checkpoint there, and logs to the store of runs
itself. The workers of a cluster get the address of the store but no credentials, since Dask may send them unencrypted;
credentials come from the workers' own environment.
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
from talud.data.stack_record import data_version
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
from talud.versions import training_versions

MAX_CRASHES = 3  # processes killed at the same epoch, after which a trial is not tried again


@dataclass(frozen=True)
class TrialTask:
    """Trial to be run, from its checkpoint up to an epoch.

    Attributes:
        project: project, which workers must find at the same path.
        band_set: name of the study's band set.
        hyperparameters: hyperparameters of the trial.
        key: key of the trial (`checkpoint.trial_key`).
        max_epochs: number of the epoch up to which the trial is trained now.
        parent_run_id: MLflow run of the study.
        tags: tags of the trial's run.
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
    """Result of a trial, or the reason why it failed.

    Attributes:
        run_id: MLflow run of the trial.
        hyperparameters: hyperparameters of the trial.
        key: key of the trial.
        state: state of the trial without its arrays.
        stored_arrays: names of the arrays in its checkpoint.
        failure: reason for the failure; empty if the trial succeeded.
    """

    run_id: str
    hyperparameters: Hyperparameters
    key: str
    state: TrialState
    stored_arrays: frozenset[str] = frozenset()
    failure: str = ""

    @property
    def summary(self) -> str:
        """Result in one line, for messages."""
        if self.failure:
            return f"failed: {self.failure}"
        state = self.state
        done = f"epoch {state.best_epoch} of {len(state.epochs)}"
        return f"validation F1 {state.scores['f1']:.3f} at {done}, {state.seconds:.0f} s"


# Called with a trial's key, the number of its last epoch, and the validation F1 of that epoch.
EpochCallback = Callable[[str, int, float], None]


def run_trial(task: TrialTask, on_epoch: EpochCallback) -> TrialResult:
    """Train a trial from its checkpoint and log its run.

    A failed trial is logged, too. If the store of runs does not respond after an epoch, the epoch is logged with a
    later one, at the latest when the trial ends.

    Raises:
        RegistryError: The store does not respond when the trial begins or ends; the checkpoint is kept.
        OutputError: The checkpoint cannot be written.
    """
    project, path = task.project, task.project.checkpoint(task.key)
    store = Store.open(project.root)
    data = load_dataset(project, task.band_set)
    if data.version != task.tags["data_version"]:
        raise ClusterError(
            f"{project.root}: its stacks differ from those of the process that started the study; let all workers "
            "share one disk"
        )
    state = checkpoint.read(path)
    if state.weights is None and not state.is_finished(task.max_epochs, task.hyperparameters.patience):
        state = TrialState()  # an earlier study deleted the weights, so that training cannot resume
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
                    TrialConfig.of(project, task.hyperparameters, data.bands),
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
    """Run a trial here; fail it after too many crashes.

    A trial that has crashed `MAX_CRASHES` processes since its last checkpoint is recorded as failed.

    Raises:
        RegistryError: The store does not respond when the trial begins or ends; the checkpoint is kept.
        OutputError: The checkpoint cannot be written.
    """
    path = task.project.checkpoint(task.key)
    crash_count = checkpoint.crash_count(path)
    if crash_count < MAX_CRASHES:
        with checkpoint.counting_crashes(path):
            return run_trial(task, on_epoch)
    return record_failure(
        task,
        f"its process was killed {crash_count} times between epoch {len(checkpoint.read(path).epochs)} and the next "
        f"checkpoint, probably out of memory; {_memory_advice(task.project.params.training)}; to retry, delete "
        f"{checkpoint.crash_file(path).relative_to(task.project.root)}",
    )


def record_failure(task: TrialTask, reason: str) -> TrialResult:
    """Record a trial as failed if its own process could not.

    Args:
        task: trial that failed.
        reason: reason for the failure.

    Raises:
        RegistryError: The store does not respond.
    """
    state = checkpoint.read(task.project.checkpoint(task.key))
    store = Store.open(task.project.root)
    with suppress(StudyError), _record(store, task, len(state.epochs)) as record:
        result = TrialResult(
            record.run_id, task.hyperparameters, task.key, state.without_arrays, state.stored_arrays, reason
        )
        raise StudyError(reason)  # ends the run as failed
    return result


def _record(store: Store, task: TrialTask, epochs: int) -> AbstractContextManager[TrialRun]:
    """Open the MLflow run of a trial."""
    tags, params = {**task.tags, "trial": task.key}, task.project.params
    hyperparameters = recorded_hyperparameters(params, task.hyperparameters, params.band_set(task.band_set))
    name = f"{task.band_set} · {task.hyperparameters.name}"
    return store.runs.trial(task.parent_run_id, name, hyperparameters, tags, epochs)


class _EpochLogger:
    """Logger of a trial's new epochs."""

    def __init__(self, record: TrialRun) -> None:
        self._record = record
        self._epochs = record.logged_epochs

    def try_log(self, state: TrialState) -> None:
        """Log new epochs; do nothing if the store does not respond."""
        try:
            with short_timeouts():
                self.log(state)
        except RegistryError:
            return  # the epochs are logged with the next ones

    def log(self, state: TrialState) -> None:
        """Log new epochs."""
        self._record.log_epochs([(epoch.number, epoch.time, epoch.metrics) for epoch in state.epochs[self._epochs :]])
        self._epochs = len(state.epochs)


@contextmanager
def _memory_errors_as_failure(task: TrialTask) -> Iterator[None]:
    """Convert out-of-memory errors inside the block to StudyError."""
    try:
        yield
    except MemoryError as error:
        raise StudyError(_out_of_memory_message(task, error)) from error
    except Exception as error:
        # TensorFlow and JAX have their own error types, which are identified by their names and messages.
        text = f"{type(error).__name__} {error}".replace("_", "").lower()
        if not any(word in text for word in ("resourceexhausted", "out of memory", "outofmemory", "allocfailed")):
            raise
        raise StudyError(_out_of_memory_message(task, error)) from error


def _out_of_memory_message(task: TrialTask, error: BaseException) -> str:
    """Return the message for an out-of-memory error."""
    return f"out of memory ({first_line(error)[:200]}); {_memory_advice(task.project.params.training)}"


def _memory_advice(options: TrainingOptions) -> str:
    """Return a hint that names unused options that save memory."""
    remedies = ["a smaller batch_size"]
    remedies += ["training.rematerialise: true"] if not options.rematerialise else []
    remedies += ["training.mixed_precision: float16"] if not options.mixed_precision else []
    return f"to save memory, use {' or '.join(remedies)}"


def load_dataset(project: Project, band_set: str) -> Dataset:
    """Return the dataset of a study, cached for the next trial.

    Raises:
        ParamsError: There is no such band set.
        StudyError: The stacks are missing or unsuitable, or show no landslide.
        SourceError: A raster cannot be read.
    """
    version = data_version(project, project.params.areas_with_role("training"))
    return _loaded(project.root, project.params.model_dump_json(), band_set, version)


@lru_cache(maxsize=1)
def _loaded(root: Path, params: str, band_set: str, _version: str) -> Dataset:
    return Dataset.load(Project(root, Params.model_validate_json(params)), band_set)


class TrialRunner(Protocol):
    """Runner of trials, in this process or by workers."""

    def __call__(self, tasks: Sequence[TrialTask], on_epoch: EpochCallback) -> Iterator[TrialResult]:
        """Run tasks and yield their results, in any order."""


def run_here(tasks: Sequence[TrialTask], on_epoch: EpochCallback) -> Iterator[TrialResult]:
    """Run tasks in this process, one after another."""
    return (run_with_crash_limit(task, on_epoch) for task in tasks)


@dataclass(frozen=True)
class WorkerContext:
    """Settings that workers share with the starting process.

    Attributes:
        root: root folder of the project.
        store: address of the MLflow server; None for workers that inherit this process's environment.
        code: release and versions of the training code.
    """

    root: Path
    store: str | None
    code: str


@contextmanager
def open_workers(requested: Workers, project: Project) -> Iterator[TrialRunner]:
    """Open workers as a runner for `study.run`.

    Each worker is checked for access to the project and to the store of runs.

    Args:
        requested: number of processes on this machine, which share its cores, or address of a Dask scheduler.
        project: project with the stacks and checkpoints, at the same path for all workers.

    Raises:
        ParamsError: The number of workers is not positive, or exceeds the number of GPUs.
        ClusterError: The workers cannot be started or reached, run other code, do not see the project, or would share
            a GPU.
        RegistryError: This process or a worker cannot use the store of runs.
    """
    Store.open(project.root, create=True)
    context = WorkerContext(
        project.root, _tracking_server() if isinstance(requested, str) else None, training_versions()
    )
    threads = str(max(physical_cores() // requested, 1)) if isinstance(requested, int) and requested > 0 else ""
    shared = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    with (
        tempfile.TemporaryDirectory(prefix="talud-") as folder,
        cluster.open_cluster(requested, Path(folder), shared) as dask_cluster,
    ):
        for address, problem in dask_cluster.client.run(_worker_problem, context, on_error="ignore").items():
            if problem:
                raise type(problem)(f"worker {address}: {problem}")
        yield partial(_run_on_workers, dask_cluster, context)


def _tracking_server() -> str:
    """Return the address of the MLflow server without credentials.

    Raises:
        ClusterError: MLFLOW_TRACKING_URI names no server.
    """
    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if address.scheme not in ("http", "https"):
        raise ClusterError(
            "the workers of a cluster need an MLflow server, but MLFLOW_TRACKING_URI names none; set it to the address "
            "of the server, such as https://mlflow.example.org"
        )
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _run_on_workers(
    dask_cluster: Cluster, context: WorkerContext, tasks: Sequence[TrialTask], on_epoch: EpochCallback
) -> Iterator[TrialResult]:
    """Run trials on workers and yield their results.

    A trial that crashed several workers is recorded as failed.
    """
    for task, result in run_tasks(
        partial(_run_on_worker, context), tasks, dask_cluster, lambda _, message: on_epoch(*message)
    ):
        yield record_failure(task, result.reason) if isinstance(result, LostTask) else result


def _run_on_worker(context: WorkerContext, task: TrialTask, on_epoch: cluster.SendMessage) -> TrialResult:
    """Run a trial in this worker.

    Raises:
        TaludError: The worker cannot run trials, or `run_trial` fails.
    """
    if problem := _worker_problem(context):
        raise problem
    return run_trial(task, lambda *progress: on_epoch(progress))


def _worker_problem(context: WorkerContext) -> TaludError | None:
    """Return why this worker cannot run trials, else None."""
    if context.store is not None:
        os.environ["MLFLOW_TRACKING_URI"] = context.store
    if training_versions() != context.code:
        return ClusterError(
            f"has the training code of talud {training_versions()}, but this process has that of {context.code}; "
            "install the same version"
        )
    if not (context.root / "params.yaml").is_file():
        return ClusterError(
            f"does not see {context.root}; put the project on a disk that all workers reach under the same path"
        )
    try:
        Store.open(context.root)
    except TaludError as error:
        return type(error)(str(error))
    return None
