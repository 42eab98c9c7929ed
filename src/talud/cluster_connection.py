"""Connections to Dask workers, on this machine or on a cluster.

Dask belongs to the extra `cluster`, and is imported only when workers are requested.
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

# Number of processes on this machine, or address of a Dask scheduler.
Workers = int | str

# Timeout for a scheduler, and for its first worker.
CONNECT_TIMEOUT_SECONDS = 5
# Number of workers on this machine that may die of one task before it counts as lost.
MAX_WORKER_DEATHS = 3
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
# Dask's settings for processes on this machine: no web pages, and the environment of this process.
LOCAL_DASK_CONFIG: dict[str, Any] = {
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.allowed-failures": MAX_WORKER_DEATHS - 1,
    "distributed.worker.http.routes": [],
    # On a busy machine a killed worker may need minutes to restart.
    "distributed.deploy.lost-worker-timeout": "10 minutes",
    "distributed.nanny.pre-spawn-environ": {},
}


@contextmanager
def connect_workers(
    workers: Workers, folder: Path, environment: Mapping[str, str] | None = None, preload: Sequence[str] = ()
) -> Iterator[Client]:
    """Connect to workers; local ones end with the connection.

    Local workers also end if this process is killed.

    Args:
        workers: number of single-threaded processes on this machine, or address of a Dask scheduler.
        folder: folder on this machine for the files of Dask.
        environment: additional environment variables of the processes on this machine.
        preload: scripts that the processes on this machine run first.

    Raises:
        ParamsError: The number of workers is less than 1.
        ClusterError: The workers are not available.
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
        # Ctrl-C reaches all processes of a terminal; workers ignore it, and this process ends them.
        held.enter_context(
            dask.config.set(LOCAL_DASK_CONFIG | {"distributed.worker.preload": [IGNORE_CTRL_C, *preload]})
        )
        if isinstance(workers, int):
            cluster = held.enter_context(_start_local_cluster(workers, folder, environment or {}))
            yield held.enter_context(Client(cluster, set_as_default=False))
        else:
            yield held.enter_context(_join_cluster(workers))


def check_release(client: Client, workers: Sequence[str] | None = None) -> None:
    """Check that scheduler and workers run the same talud release.

    The check needs only Python there, not talud. A worker that has disconnected is not an error.

    Args:
        client: connection to the cluster.
        workers: addresses of the workers to check; None checks all.

    Raises:
        ClusterError: One of them runs another release, or has no talud.
    """
    found: dict[str, object] = client.run(version, "talud", workers=workers, on_error="return")
    found = {f"worker {address}": release for address, release in found.items() if not isinstance(release, OSError)}
    try:
        # The scheduler deserialises objects of talud, so it needs the same release.
        found["the scheduler"] = client.run_on_scheduler(version, "talud")
    except PackageNotFoundError as error:
        found["the scheduler"] = error
    here = version("talud")
    for name, release in found.items():
        if release != here:
            has = f"talud {release}" if isinstance(release, str) else "no talud"
            raise ClusterError(f"{name} has {has}, but this process has {here}; install the same version")


def machine_of(address: str) -> str:
    """Return the host name in a worker's address."""
    return urlsplit(address).hostname or ""


@contextmanager
def _start_local_cluster(number: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Any]:
    """Start a Dask cluster of processes on this machine.

    Raises:
        ClusterError: The processes do not start.
    """
    from distributed import LocalCluster

    try:
        cluster = LocalCluster(
            n_workers=number,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            security=True,  # other users of this machine cannot send tasks
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            memory_limit=None,  # Dask would pause workers forever; tasks bound their memory themselves
            local_directory=str(folder / "workers"),
            silence_logs=logging.CRITICAL,
            env=dict(environment),
        )
    except Exception as error:
        # Dask's errors, and the system's if it has no process, port or memory left.
        reason = first_line(error).rstrip(".")
        raise ClusterError(
            f"the worker processes (workers={number}) did not start: {reason}; a script must start them under "
            "if __name__ == '__main__':, because each process imports the script"
        ) from error
    with cluster:
        yield cluster


@contextmanager
def _join_cluster(address: str) -> Iterator[Client]:
    """Connect to a scheduler that has at least one worker.

    Raises:
        ClusterError: The scheduler does not answer, or has no workers.
    """
    from distributed import Client

    try:
        # In a thread of its own, because a notebook's thread already runs an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _await_scheduler(address)).result()
        with warnings.catch_warnings():
            # Warnings about other versions of packages; `check_release` compares the versions that matter.
            warnings.simplefilter("ignore")
            client = Client(address, timeout=CONNECT_TIMEOUT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no Dask scheduler of this Dask release answers within {CONNECT_TIMEOUT_SECONDS} s; check "
            "that it runs"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_SECONDS)
        except TimeoutError as error:
            raise ClusterError(
                f"{address}: the scheduler has no workers; start one with: dask worker {address}"
            ) from error
        yield client


async def _await_scheduler(address: str) -> None:
    """Wait until a scheduler answers.

    Dask's own client would wait without limit for a scheduler that accepts a connection and stays silent.

    Raises:
        OSError: The scheduler does not answer in time.
    """
    from distributed.comm import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(
        connect(address, timeout=CONNECT_TIMEOUT_SECONDS, **arguments), CONNECT_TIMEOUT_SECONDS
    )
    await comm.close()
