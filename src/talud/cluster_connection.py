"""Connections to Dask workers: processes of this machine, or those of a cluster.

Dask comes with the extra `cluster`, and is imported only where workers are asked for.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from talud.errors import ClusterError, ParamsError
from talud.text import first_line

if TYPE_CHECKING:
    from distributed import Client

# A number of processes of this machine, or the address of a scheduler.
Workers = int | str

CONNECT_TIMEOUT_SECONDS = 5  # for a scheduler, and for its first worker
MAX_WORKER_DEATHS = 3  # of workers of this machine over one task, before the task counts as lost
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
# Dask's settings for processes of this machine: no pages, and an environment as this process has it.
LOCAL_DASK_CONFIG: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.allowed-failures": MAX_WORKER_DEATHS - 1,
    "distributed.worker.http.routes": [],
    # On a busy machine a killed worker may need minutes to come back.
    "distributed.deploy.lost-worker-timeout": "10 minutes",
    "distributed.nanny.pre-spawn-environ": {},
}


@contextmanager
def connect_workers(
    workers: Workers, folder: Path, environment: Mapping[str, str] | None = None, preload: Sequence[str] = ()
) -> Iterator[Client]:
    """Connect to workers; those of this machine end with the connection, however this process ends.

    Args:
        workers: a number of processes on this machine, of one thread each, or the address of a Dask scheduler.
        folder: folder on this machine for the files of Dask.
        environment: variables of the processes on this machine, beside those of this one.
        preload: scripts that they run first.

    Raises:
        ParamsError: There is no such number of workers.
        ClusterError: They cannot be had.
    """
    if isinstance(workers, int) and workers < 1:
        raise ParamsError(f"the number of workers is {workers}; it must be at least 1")
    try:
        import dask
        from distributed import Client
        from distributed.utils import silence_logging_cmgr
    except ImportError as error:
        raise ClusterError("workers need Dask, which is not installed: pip install 'talud[cluster]'") from error
    with ExitStack() as held:
        held.enter_context(silence_logging_cmgr(logging.CRITICAL))
        # Ctrl-C reaches all processes of a terminal; this one ends the workers.
        held.enter_context(
            dask.config.set(LOCAL_DASK_CONFIG | {"distributed.worker.preload": [IGNORE_CTRL_C, *preload]})
        )
        if isinstance(workers, int):
            cluster = held.enter_context(_start_local_cluster(workers, folder, environment or {}))
            yield held.enter_context(Client(cluster, set_as_default=False))
        else:
            yield held.enter_context(_join_cluster(workers))


def check_release(client: Client, workers: Sequence[str] | None = None) -> None:
    """Check that scheduler and workers, all or those at some addresses, have the same release.

    The question is one that any Python can answer, with talud or without. A worker that is gone is no error.

    Raises:
        ClusterError: One has another release.
    """
    found: dict[str, object] = client.run(version, "talud", workers=workers, on_error="return")
    found = {f"worker {address}": theirs for address, theirs in found.items() if not isinstance(theirs, OSError)}
    try:
        found["the scheduler"] = client.run_on_scheduler(version, "talud")  # which unpacks what passes it
    except PackageNotFoundError as error:
        found["the scheduler"] = error
    here = version("talud")
    for name, theirs in found.items():
        if theirs != here:
            has = f"talud {theirs}" if isinstance(theirs, str) else "no talud"
            raise ClusterError(f"{name} has {has}, this process {here}; give it the same")


def machine_of(address: str) -> str:
    """Return the machine that a worker's address names."""
    return urlsplit(address).hostname or ""


@contextmanager
def _start_local_cluster(number: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Any]:
    """Start a Dask cluster of processes of this machine.

    Raises:
        ClusterError: They do not start.
    """
    from distributed import LocalCluster

    try:
        cluster = LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            security=True,  # others on this machine cannot give the workers orders
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            memory_limit=None,  # memory is bounded by the work; Dask would pause workers for good
            local_directory=str(folder / "workers"),
            silence_logs=logging.CRITICAL,
            env=dict(environment),
        )
    except Exception as error:  # Dask's, and the system's where it gives no process, port or memory
        said = first_line(error).rstrip(".")
        raise ClusterError(
            f"the worker processes (workers={number}) did not start: {said}; a script must ask for them under "
            "if __name__ == '__main__':, for each of them runs what stands outside of it"
        ) from error
    with cluster:
        yield cluster


@contextmanager
def _join_cluster(address: str) -> Iterator[Client]:
    """Connect to a scheduler that has at least one worker.

    Raises:
        ClusterError: It does not answer, or has none.
    """
    from distributed import Client

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a loop already
            thread.submit(asyncio.run, _await_scheduler(address)).result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages in other versions; those that matter are compared
            client = Client(address, timeout=CONNECT_TIMEOUT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no Dask scheduler of this release answers there within {CONNECT_TIMEOUT_SECONDS} s"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise ClusterError(f"{address}: the scheduler has no workers; start some: dask worker {address}") from error
        yield client


async def _await_scheduler(address: str) -> None:
    """Wait until a scheduler answers; Dask's own client would wait for ever for one that is silent.

    Raises:
        OSError: It does not answer in time.
    """
    from distributed.comm import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(
        connect(address, timeout=CONNECT_TIMEOUT_SECONDS, **arguments), CONNECT_TIMEOUT_SECONDS
    )
    await comm.close()
