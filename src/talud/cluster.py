"""Tasks on Dask workers, on this machine or on a cluster.

When a worker dies, Dask gives its task to another one: up to `MAX_WORKER_DEATHS` times on this machine, on a cluster as
often as its setting `distributed.scheduler.allowed-failures` allows. Only as many tasks are submitted as can run at
once, because Dask counts a worker's death against every task that is queued on it.

Dask belongs to the extra `cluster`, and is imported only when workers are requested.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from talud.cluster_connection import Workers, check_release, connect_workers, machine_of
from talud.errors import ClusterError, ParamsError, TaludError

if TYPE_CHECKING:
    from distributed import Client, Future, Worker


# Callback that sends a message: anything that MessagePack can serialise, such as numbers, texts and lists of them.
SendMessage = Callable[[Any], None]
Task = TypeVar("Task")
Result = TypeVar("Result")

# Interval between two checks for new and lost workers.
POLL_INTERVAL_SECONDS = 2
# Time without any worker before a run fails; a batch job may have to queue again.
NO_WORKER_TIMEOUT_SECONDS = 600
# Dask resources of which a task takes 1: the first that any worker offers.
RESOURCE_NAMES = ("GPU", "trial")
_ENDED = object()


@dataclass(frozen=True)
class LostTask:
    """Result of a task that its workers did not survive.

    Attributes:
        deaths: number of workers that died while they ran it.
    """

    deaths: int

    @property
    def reason(self) -> str:
        """Sentence for an error message."""
        return f"{self.deaths} workers died while they ran it; check that they have enough memory"


@dataclass(frozen=True)
class WorkerResources:
    """Resources of a worker.

    Attributes:
        threads: number of threads that run tasks.
        resources: amount of each Dask resource, by name.
        gpus: unique names of the GPUs that CUDA gives it.
    """

    threads: int
    resources: Mapping[str, float]
    gpus: tuple[str, ...]

    def concurrent_tasks(self, resource: str | None) -> int:
        """Return the number of tasks that it runs concurrently."""
        return min(self.threads, int(self.resources.get(resource, 0))) if resource else self.threads


@dataclass(frozen=True)
class Cluster:
    """Workers for tasks.

    Attributes:
        client: connection to the workers.
        exclusive: true if each process runs one task at a time and no two share a GPU; else each thread runs one.
        resource: Dask resource that a task takes; None if no worker offers one.
    """

    client: Client
    exclusive: bool
    resource: str | None
    _resources: dict[str, WorkerResources] = field(default_factory=dict)

    def count_slots(self) -> int:
        """Return the number of tasks that can run now.

        Workers that have joined since the last call are checked first.

        Raises:
            ClusterError: A process would run several tasks at once, two share a GPU, or the scheduler was lost.
        """
        try:
            present = self.client.nthreads()
            joined = [address for address in present if address not in self._resources]
            if joined:
                check_release(self.client, joined)
                self._resources.update(
                    self.client.run(_get_resources, self.exclusive, workers=joined, on_error="ignore")
                )
        except (OSError, CancelledError) as error:
            raise ClusterError("the scheduler was lost") from error
        for address in self._resources.keys() - present.keys():
            del self._resources[address]
        if self.exclusive:
            return len(_task_workers(self._resources, self.resource))
        return sum(self.threads_by_machine().values())

    def threads_by_machine(self) -> dict[str, int]:
        """Return the number of worker threads on each machine."""
        threads: dict[str, int] = {}
        for address, worker in self._resources.items():
            threads[machine_of(address)] = threads.get(machine_of(address), 0) + worker.threads
        return threads


@contextmanager
def open_cluster(
    workers: Workers, folder: Path, environment: Mapping[str, str], *, exclusive: bool = True
) -> Iterator[Cluster]:
    """Connect to workers for tasks.

    Args:
        workers: number of processes on this machine, or address of a Dask scheduler.
        folder: folder on this machine for the files of Dask.
        environment: additional environment variables of the processes on this machine.
        exclusive: true if each task needs a process of its own and, if there are GPUs, a GPU of its own. Each process
            on this machine then gets one of its GPUs.

    Raises:
        ParamsError: The number of workers is less than 1, or there are fewer GPUs.
        ClusterError: The workers are not available, run another release, run several tasks at once, or share a GPU.
    """
    with connect_workers(workers, folder, environment, _one_gpu_each(workers) if exclusive else ()) as client:
        check_release(client)
        resources: dict[str, WorkerResources] = client.run(_get_resources, exclusive, on_error="ignore")
        if not resources:
            raise ClusterError(
                "all workers disconnected before they reported their resources; restart them and try again"
            )
        offered = {name for each in resources.values() for name in each.resources}
        resource = next((name for name in RESOURCE_NAMES if name in offered), None) if exclusive else None
        cluster = Cluster(client, exclusive, resource, resources)
        cluster.count_slots()
        yield cluster


def run_tasks(
    work: Callable[[Task, SendMessage], Result],
    tasks: Sequence[Task],
    cluster: Cluster,
    on_message: Callable[[Task, Any], object] = lambda _task, _message: None,
) -> Iterator[tuple[Task, Result | LostTask]]:
    """Run tasks on workers; yield results as tasks end.

    Each task is yielded once, with its result.

    Args:
        work: importable function that runs a task; the workers import it by name. A task whose worker died starts
            again. The messages that it sends reach `on_message`; sending one raises KeyboardInterrupt if the task was
            cancelled.
        tasks: picklable tasks.
        cluster: workers that run them.
        on_message: callback that receives a task and its message, in the calling thread.

    Raises:
        TaludError: The first error that `work` raised; other errors propagate too. Running tasks are cancelled.
        ClusterError: The scheduler was lost, or there was no worker for `NO_WORKER_TIMEOUT_SECONDS`.
    """
    client, topic = cluster.client, f"talud-{uuid4().hex}"
    waiting = deque(enumerate(tasks))
    running: dict[int, Future[Any]] = {}
    events: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    client.subscribe_topic(topic, lambda event: events.put(tuple(event[1])))
    needs = {cluster.resource: 1} if cluster.resource else {}
    empty_since = None
    try:
        while waiting or running:
            slots = cluster.count_slots()
            empty_since = None if slots else empty_since or time.monotonic()
            if empty_since and time.monotonic() - empty_since > NO_WORKER_TIMEOUT_SECONDS:
                raise ClusterError(
                    f"there was no worker for {NO_WORKER_TIMEOUT_SECONDS} s; start workers and try again"
                )
            for number, task in [waiting.popleft() for _ in range(min(slots - len(running), len(waiting)))]:
                # Serialised here, so that the scheduler does not import packages that it may not have.
                packed = pickle.dumps((work, task))
                future = client.submit(
                    _run_task, packed, number, topic, key=f"{topic}-{number}", pure=False, resources=needs
                )
                running[number] = future
                future.add_done_callback(partial(_queue_end, events, number))
            for number, message in _next_events(events):
                if number in running and message is not _ENDED:
                    on_message(tasks[number], message)
                elif number in running:
                    yield tasks[number], _result(running.pop(number))
    finally:
        for future in running.values():
            future.release()
        if client.status == "running":
            client.unsubscribe_topic(topic)


def _one_gpu_each(workers: Workers) -> tuple[str, ...]:
    """Return a script that assigns a GPU to each process.

    The result is empty for remote workers, and on a machine without GPUs.

    Raises:
        ParamsError: There are fewer GPUs than processes.
    """
    gpus = _gpus("") if isinstance(workers, int) else ()
    if not gpus or not isinstance(workers, int):
        return ()
    if workers > len(gpus):
        raise ParamsError(
            f"the number of workers is {workers}, but each trial needs a GPU of its own and CUDA gives this process "
            f"{len(gpus)}; lower the number, or set CUDA_VISIBLE_DEVICES= to train without GPUs"
        )
    give = f"os.environ['CUDA_VISIBLE_DEVICES'] = {gpus!r}[worker.name]"
    return (f"import os\ndef dask_setup(worker):\n    {give}\n",)


def _gpus(machine: str) -> tuple[str, ...]:
    """Return the GPUs that CUDA gives this process."""
    command = shutil.which("nvidia-smi")
    query = [command or "", "--query-gpu=uuid", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False) if command else None
    uuids = answer.stdout.split() if answer and answer.returncode == 0 else []
    return _visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"), machine)


def _visible(uuids: Sequence[str], chosen: str | None, machine: str) -> tuple[str, ...]:
    """Return unique names of the visible GPUs.

    Args:
        uuids: UUIDs of the machine's GPUs in order; empty if unknown.
        chosen: value of `CUDA_VISIBLE_DEVICES`: numbers or UUIDs; -1 hides itself and all that follow.
        machine: name that makes a number unique.
    """
    if chosen is None:
        return tuple(uuids)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    names = names[: names.index("-1")] if "-1" in names else names
    if not uuids:
        return tuple(f"{machine} {name}".strip() for name in names)
    known = {str(number): uuid for number, uuid in enumerate(uuids)}
    return tuple(known.get(name, name) for name in names if name in known or not name.isdigit())


def _get_resources(exclusive: bool, dask_worker: Worker) -> WorkerResources:
    """Return the resources of a worker; Dask calls it there.

    GPUs are listed only if tasks must not share them.
    """
    state = dask_worker.state
    gpus = _gpus(machine_of(dask_worker.address)) if exclusive else ()
    return WorkerResources(state.nthreads, dict(state.total_resources), gpus)


def _task_workers(resources: Mapping[str, WorkerResources], resource: str | None) -> tuple[str, ...]:
    """Return the addresses of the workers that run tasks.

    Raises:
        ClusterError: A worker runs several tasks at once, or two have the same GPU.
    """
    chosen = {address: worker for address, worker in resources.items() if worker.concurrent_tasks(resource) > 0}
    owner: dict[str, str] = {}
    for address, worker in chosen.items():
        if (number := worker.concurrent_tasks(resource)) > 1:
            raise ClusterError(
                f"worker {address} would run {number} trials in one process, but each needs its own; start it with "
                "--nthreads 1"
            )
        for gpu in worker.gpus:
            if gpu in owner:
                raise ClusterError(
                    f"workers {owner[gpu]} and {address} would share GPU {gpu}; set CUDA_VISIBLE_DEVICES to a "
                    "different GPU for each, or to nothing to train without GPUs"
                )
            owner[gpu] = address
    return tuple(chosen)


def _queue_end(events: SimpleQueue[tuple[int, Any]], number: int, _: Future[Any]) -> None:
    events.put((number, _ENDED))


def _next_events(events: SimpleQueue[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield queued events after at most a poll interval."""
    try:
        yield events.get(timeout=POLL_INTERVAL_SECONDS)
        while True:
            yield events.get_nowait()
    except Empty:
        return


def _result(future: Future[Result]) -> Result | LostTask:
    """Return the result of a task that has ended.

    Raises:
        ClusterError: The scheduler was lost, or a worker lacks a package.
    """
    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    try:
        result: Result = future.result()
    except KilledWorker as error:
        return LostTask(error.allowed_failures + 1)
    except ImportError as error:
        raise ClusterError(f"a worker lacks a package: {error}; install the same packages there") from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterError("the scheduler was lost, or another process cancelled the tasks") from error
    else:
        return result
    finally:
        # Dask would run the task again if its result were lost with the worker while a future is held.
        future.release()


def _run_task(packed: bytes, number: int, topic: str) -> Any:
    """Run a task inside a worker."""
    from distributed import get_worker

    worker = get_worker()
    work, task = pickle.loads(packed)
    key = worker.get_current_task()

    def send(message: Any) -> None:
        if not _is_wanted(worker, key):
            raise KeyboardInterrupt
        worker.log_event(topic, [number, message])

    try:
        return work(task, send)
    except KeyboardInterrupt:
        failure: TaludError = ClusterError("the task was cancelled")
    except TaludError as error:
        failure = type(error)(str(error))
    # The cause is dropped, because it may not be picklable.
    raise failure


def _is_wanted(worker: Worker, key: object) -> bool:
    """Check if the caller still waits for a task."""
    state = worker.state.tasks.get(key)
    serving = worker.status.name in ("running", "paused", "closing_gracefully")
    return serving and state is not None and state.state in ("executing", "long-running")
