"""Workers: processes of this machine or of a Dask cluster, and tasks done by them, each once, whatever becomes of them.

A worker that dies costs what its task had not kept: Dask gives the task to another one, up to `DEATHS` times on this
machine, elsewhere as often as the cluster's own `distributed.scheduler.allowed-failures` says. Only as many tasks are
handed out as can run at once, for with a worker's death Dask counts every task that waits for it as suspect too.

Dask comes with the extra `cluster`, and is imported only where workers are asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
import subprocess
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from talud.errors import ClusterError, ParamsError, TaludError
from talud.text import first_line

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

Workers = int | str  # so many processes of this machine, or those of the scheduler at an address
Tell = Callable[[Any], None]  # takes what MessagePack can carry: numbers, texts, lists of them
Task = TypeVar("Task")
Result = TypeVar("Result")

PATIENCE = 5  # seconds to wait for a scheduler, and for its first worker
DEATHS = 3  # of workers of this machine over one task, before it counts as lost
PULSE = 2  # seconds between two looks at who has come or gone
LULL = 600  # seconds without any worker, after which none is waited for: a batch job may have to queue again
RESOURCES = ("GPU", "trial")  # of Dask, of which a task takes 1: the first that any worker offers
ENDED = object()
IGNORE_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
LOCAL: dict[
    str, Any
] = {  # Dask's settings for processes of this machine: no pages, and an environment as this process has it
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.allowed-failures": DEATHS - 1,
    "distributed.worker.http.routes": [],
    "distributed.nanny.pre-spawn-environ": {},
}


@dataclass(frozen=True)
class Lost:
    """What comes of a task that its workers did not survive."""

    reason: str


@dataclass(frozen=True)
class Offer:
    """What a worker has.

    Attributes:
        threads: that run tasks.
        resources: of Dask, by name.
        gpus: that CUDA gives it, by a name that no other GPU has.
    """

    threads: int
    resources: Mapping[str, float]
    gpus: tuple[str, ...]

    def at_once(self, resource: str | None) -> int:
        """How many tasks it would run at the same time."""
        return min(self.threads, int(self.resources.get(resource, 0))) if resource else self.threads


@dataclass(frozen=True)
class Cluster:
    """Workers that do one task at a time each, none of which shares its GPU.

    Attributes:
        client: the connection to them.
        resource: of Dask that a task takes; None where no worker offers one.
    """

    client: Client
    resource: str | None
    _offers: dict[str, Offer] = field(default_factory=dict)

    def slots(self) -> int:
        """How many tasks can run now; workers that have joined are looked at first.

        Raises:
            ClusterError: one runs several tasks at once, two share a GPU, or the scheduler is lost.
        """
        try:
            present = self.client.nthreads()
            joined = [address for address in present if address not in self._offers]
            if joined:
                check_release(self.client, joined)
                self._offers.update(self.client.run(_offer, workers=joined, on_error="ignore"))
        except (OSError, CancelledError) as error:
            raise ClusterError("the scheduler was lost") from error
        for address in self._offers.keys() - present.keys():
            del self._offers[address]
        return len(_fit(self._offers, self.resource))


@contextmanager
def opened(workers: Workers, folder: Path, environment: Mapping[str, str]) -> Iterator[Cluster]:
    """Workers for tasks that need a process, and perhaps a GPU, of their own.

    Args:
        workers: a number of processes on this machine, or the address of a Dask scheduler. Where this machine has
            GPUs, each of its processes gets one.
        folder: on this machine, for what Dask writes.
        environment: of the processes on this machine, beside that of this one.

    Raises:
        ParamsError: there is no such number of workers, or there are fewer GPUs.
        ClusterError: they cannot be had, are of another release, run several tasks at once, or share a GPU.
    """
    with connected(workers, folder, environment, _one_gpu_each(workers)) as client:
        check_release(client)
        offers: dict[str, Offer] = client.run(_offer, on_error="ignore")
        if not offers:
            raise ClusterError("all workers were lost before they had said what they have; start some that stay")
        resource = next((name for name in RESOURCES if any(name in each.resources for each in offers.values())), None)
        cluster = Cluster(client, resource, offers)
        cluster.slots()
        yield cluster


def across(
    work: Callable[[Task, Tell], Result],
    tasks: Sequence[Task],
    cluster: Cluster,
    hear: Callable[[Task, Any], object] = lambda _task, _message: None,
) -> Iterator[tuple[Task, Result | Lost]]:
    """Do tasks by workers; each comes back once, in the order in which they end.

    Args:
        work: a function of a module that the workers have too, since it goes there by its name. A task whose worker
            died begins again. What it tells reaches `hear`; where nobody waits for it any more, telling raises
            KeyboardInterrupt.
        tasks: that pickle can carry.
        cluster: whose workers do them.
        hear: gets what a task tells, in the calling thread.

    Raises:
        TaludError: what `work` raised first, as any other error that it raises. Tasks that run then are dropped.
        ClusterError: the scheduler is lost, or no worker was left for `LULL` seconds.
    """
    client, topic = cluster.client, f"talud-{uuid4().hex}"
    waiting = deque(enumerate(tasks))
    running: dict[int, Future[Any]] = {}
    events: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    client.subscribe_topic(topic, lambda event: events.put(tuple(event[1])))
    needs = {cluster.resource: 1} if cluster.resource else {}
    alone_since = None
    try:
        while waiting or running:
            slots = cluster.slots()
            alone_since = None if slots else alone_since or time.monotonic()
            if alone_since and time.monotonic() - alone_since > LULL:
                raise ClusterError(f"no worker was left for {LULL} s; start some, and run the same command again")
            for number, task in [waiting.popleft() for _ in range(min(slots - len(running), len(waiting)))]:
                packed = pickle.dumps((work, task))  # not for the scheduler to unpack, and import what it may not have
                future = client.submit(_do, packed, number, topic, key=f"{topic}-{number}", pure=False, resources=needs)
                running[number] = future
                future.add_done_callback(partial(_ended, events, number))
            for number, message in _soon(events):
                if number in running and message is not ENDED:
                    hear(tasks[number], message)
                elif number in running:
                    yield tasks[number], _result(running.pop(number))
    finally:
        for future in running.values():
            future.release()
        if client.status == "running":
            client.unsubscribe_topic(topic)


@contextmanager
def connected(
    workers: Workers, folder: Path, environment: Mapping[str, str] | None = None, preload: Sequence[str] = ()
) -> Iterator[Client]:
    """A connection to workers; those of this machine end with it, however this process ends.

    Args:
        workers: a number of processes on this machine, of one thread each, or the address of a Dask scheduler.
        folder: on this machine, for what Dask writes.
        environment: of the processes on this machine, beside that of this one.
        preload: scripts that they run first.

    Raises:
        ParamsError: there is no such number of workers.
        ClusterError: they cannot be had.
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
        held.enter_context(dask.config.set(LOCAL | {"distributed.worker.preload": [IGNORE_CTRL_C, *preload]}))
        if isinstance(workers, int):
            cluster = held.enter_context(_processes(workers, folder, environment or {}))
            yield held.enter_context(Client(cluster, set_as_default=False))
        else:
            yield held.enter_context(_joined(workers))


def check_release(client: Client, workers: Sequence[str] | None = None) -> None:
    """That scheduler and workers, all or those at some addresses, have the same release.

    They are asked by what any Python knows, talud or not. A worker that is gone before it answers is no error.

    Raises:
        ClusterError: one has not.
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


def host(address: str) -> str:
    """The machine that a worker's address names."""
    return urlsplit(address).hostname or ""


@contextmanager
def _processes(number: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Any]:
    """A Dask cluster of processes of this machine.

    Raises:
        ClusterError: they do not start.
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
def _joined(address: str) -> Iterator[Client]:
    """A connection to a scheduler that has a worker at least.

    Raises:
        ClusterError: it does not answer, or has none.
    """
    from distributed import Client

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own thread has a loop already
            thread.submit(asyncio.run, _greet(address)).result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages in other versions; those that matter are compared
            client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"{address}: no Dask scheduler of this release answers there within {PATIENCE} s") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ClusterError(f"{address}: the scheduler has no workers; start some: dask worker {address}") from error
        yield client


async def _greet(address: str) -> None:
    """See that a scheduler answers: Dask's client would wait for ever for one that is silent.

    Raises:
        OSError: it does not in time.
    """
    from distributed.comm import connect
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=PATIENCE, **arguments), PATIENCE)
    await comm.close()


def _one_gpu_each(workers: Workers) -> tuple[str, ...]:
    """A script that gives each process of this machine one of its GPUs; none where there are no GPUs.

    Raises:
        ParamsError: there are fewer GPUs than processes.
    """
    gpus = _gpus("") if isinstance(workers, int) else ()
    if not gpus or not isinstance(workers, int):
        return ()
    if workers > len(gpus):
        raise ParamsError(
            f"the number of workers is {workers}, but a trial needs a GPU of its own and CUDA gives this process "
            f"{len(gpus)}; ask for no more, or set CUDA_VISIBLE_DEVICES= to do without"
        )
    give = f"os.environ['CUDA_VISIBLE_DEVICES'] = {gpus!r}[worker.name]"
    return (f"import os\ndef dask_setup(worker):\n    {give}\n",)


def _gpus(machine: str) -> tuple[str, ...]:
    """The GPUs that CUDA gives this process."""
    command = shutil.which("nvidia-smi")
    query = [command or "", "--query-gpu=uuid", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False) if command else None
    there = said.stdout.split() if said and said.returncode == 0 else []
    return _visible(there, os.environ.get("CUDA_VISIBLE_DEVICES"), machine)


def _visible(there: Sequence[str], chosen: str | None, machine: str) -> tuple[str, ...]:
    """Names of GPUs that no other GPU bears.

    Args:
        there: the UUIDs of a machine's GPUs, by number; empty where it does not tell them.
        chosen: `CUDA_VISIBLE_DEVICES`: numbers or UUIDs; -1 hides itself and all that follow.
        machine: makes a number a name.
    """
    if chosen is None:
        return tuple(there)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    names = names[: names.index("-1")] if "-1" in names else names
    if not there:
        return tuple(f"{machine} {name}".strip() for name in names)
    known = {str(number): uuid for number, uuid in enumerate(there)}
    return tuple(known.get(name, name) for name in names if name in known or not name.isdigit())


def _offer(dask_worker: Worker) -> Offer:
    """What a worker has, asked there."""
    state = dask_worker.state
    return Offer(state.nthreads, dict(state.total_resources), _gpus(host(dask_worker.address)))


def _fit(offers: Mapping[str, Offer], resource: str | None) -> tuple[str, ...]:
    """The addresses of the workers that take tasks.

    Raises:
        ClusterError: one of them runs several at once, or two have the same GPU.
    """
    takers = {address: offer for address, offer in offers.items() if offer.at_once(resource) > 0}
    owner: dict[str, str] = {}
    for address, offer in takers.items():
        if offer.at_once(resource) > 1:
            raise ClusterError(
                f"worker {address} would run {offer.at_once(resource)} trials in one process, but each needs its own; "
                "start it with --nthreads 1"
            )
        for gpu in offer.gpus:
            if gpu in owner:
                raise ClusterError(
                    f"workers {owner[gpu]} and {address} would share GPU {gpu}; give each its own by "
                    "CUDA_VISIBLE_DEVICES, or none by CUDA_VISIBLE_DEVICES="
                )
            owner[gpu] = address
    return tuple(takers)


def _ended(events: SimpleQueue[tuple[int, Any]], number: int, _: Future[Any]) -> None:
    events.put((number, ENDED))


def _soon(events: SimpleQueue[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """What has happened, or happens within a pulse."""
    try:
        yield events.get(timeout=PULSE)
        while True:
            yield events.get_nowait()
    except Empty:
        return


def _result(future: Future[Result]) -> Result | Lost:
    """What came of a task that has ended.

    Raises:
        ClusterError: the scheduler was lost, or a worker lacks a package.
    """
    from distributed import KilledWorker

    try:
        result: Result = future.result()
    except KilledWorker as error:
        return Lost(f"{error.allowed_failures + 1} workers in turn died of it; is there enough memory?")
    except ImportError as error:
        raise ClusterError(f"a worker lacks a package: {error}; give it the same installation") from error
    except CancelledError as error:
        raise ClusterError("the scheduler was lost, or another process has cancelled the work") from error
    else:
        return result
    finally:
        future.release()  # while somebody holds a result that was lost with its worker, Dask does the task again


def _do(packed: bytes, number: int, topic: str) -> Any:
    """Do a task, in a worker."""
    from distributed import get_worker

    worker = get_worker()
    work, task = pickle.loads(packed)
    key = worker.get_current_task()

    def tell(message: Any) -> None:
        if not _wanted(worker, key):
            raise KeyboardInterrupt
        worker.log_event(topic, [number, message])

    try:
        return work(task, tell)
    except KeyboardInterrupt:
        told: TaludError = ClusterError("a worker has stopped what it was not to do any more")
    except TaludError as error:
        told = type(error)(str(error))
    raise told  # alone: what an error remembers as its cause may not survive the wire


def _wanted(worker: Worker, key: object) -> bool:
    """Whether somebody waits for a task that this worker runs; when its study has ended, or begun anew, nobody does."""
    state = worker.state.tasks.get(key)
    serving = worker.status.name in ("running", "paused", "closing_gracefully")
    return serving and state is not None and state.state in ("executing", "long-running")
