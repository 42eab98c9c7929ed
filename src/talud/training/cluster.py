"""Trials run by workers: processes of this machine, or those of a Dask cluster, one trial a process.

A worker finds the project where this process has it, goes on from a trial's checkpoint there, and logs to the store of
runs itself. To a cluster goes the address of that store, never a login: Dask may carry it unencrypted, so the workers
have theirs in their own environment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from talud import cluster
from talud.cluster import Cluster, Lost, across
from talud.cluster_connection import Workers
from talud.engine.session import physical_cores
from talud.errors import ClusterError, TaludError
from talud.project import Project
from talud.registry import Store
from talud.training import work
from talud.training.study import Runner
from talud.training.work import Entry, Task, Tell
from talud.versions import training_code


@dataclass(frozen=True)
class Place:
    """What a worker must have in common with the process that hands out the trials.

    Attributes:
        root: of the project.
        store: the address of the server of runs; None for workers whose environment is this process's own.
        code: the release and the versions of the training code.
    """

    root: Path
    store: str | None
    code: str


@contextmanager
def workers(asked: Workers, project: Project) -> Iterator[Runner]:
    """A runner of trials for `study.run`: workers, each of which has been seen to reach the project and the store.

    Args:
        asked: a number of processes on this machine, which share its cores, or the address of a Dask scheduler.
        project: whose stacks and checkpoints the workers find at the same path.

    Raises:
        ParamsError: there is no such number of workers, or there are fewer GPUs.
        ClusterError: they cannot be had, differ from this process, do not see the project, or would share a GPU.
        RegistryError: the store of runs cannot be used, from here or by a worker.
    """
    Store.open(project.root, create=True)
    place = Place(project.root, _server() if isinstance(asked, str) else None, training_code())
    threads = str(max(physical_cores() // asked, 1)) if isinstance(asked, int) and asked > 0 else ""
    shared = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    with (
        tempfile.TemporaryDirectory(prefix="talud-") as folder,
        cluster.opened(asked, Path(folder), shared) as found,
    ):
        for address, trouble in found.client.run(_trouble, place, on_error="ignore").items():
            if trouble:
                raise type(trouble)(f"worker {address}: {trouble}")
        yield partial(_run, found, place)


def _server() -> str:
    """The address of the server of runs, without a login that may stand in it.

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


def _run(found: Cluster, place: Place, tasks: Sequence[Task], tell: Tell) -> Iterator[Entry]:
    """Run trials by workers; one that no worker survives is recorded as failed."""
    for task, result in across(partial(_perform, place), tasks, found, lambda _, message: tell(*message)):
        yield work.failed(task, result.reason) if isinstance(result, Lost) else result


def _perform(place: Place, task: Task, tell: cluster.Tell) -> Entry:
    """Run a trial, in a worker.

    Raises:
        TaludError: as `work.perform`, or the worker has not what it must have.
    """
    if trouble := _trouble(place):
        raise trouble
    return work.perform(task, lambda *progress: tell(progress))


def _trouble(place: Place) -> TaludError | None:
    """What keeps a worker from running trials, asked there."""
    if place.store is not None:
        os.environ["MLFLOW_TRACKING_URI"] = place.store
    if training_code() != place.code:
        return ClusterError(
            f"has the training code of talud {training_code()}, and this process that of {place.code}; install the same"
        )
    if not (place.root / "params.yaml").is_file():
        return ClusterError(
            f"does not see {place.root}; the project must lie on a disk that all workers reach under the same path"
        )
    try:
        Store.open(place.root)
    except TaludError as error:
        return type(error)(str(error))
    return None
