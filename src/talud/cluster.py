"""Tasks on Dask workers: processes of this machine, or those of a cluster.

When a worker dies, Dask gives its task to another one: up to `MAX_WORKER_DEATHS` times on this machine, on a cluster as
often as its setting `distributed.scheduler.allowed-failures` allows. Only as many tasks are submitted as can run at
once, because Dask counts a worker's death against every task that is queued on it.

Dask comes with the extra `cluster`, and is imported only where workers are asked for.
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


SendMessage = Callable[[Any], None]  # takes what MessagePack can carry: numbers, texts, lists of them
Task = TypeVar("Task")
Result = TypeVar("Result")


POLL_INTERVAL_SECONDS = 2  # between two looks at the workers that are there
NO_WORKER_TIMEOUT_SECONDS = 600  # a batch job may have to queue again
RESOURCE_NAMES = ("GPU", "trial")  # of Dask, of which a task takes 1: the first that any worker resources
_ENDED = object()


@dataclass(frozen=True)
class LostTask:
    """The end of a task that its workers did not survive.

    Attributes:
        deaths: number of workers that died of it.
    """

    deaths: int

    @property
    def reason(self) -> str:
        """Return the reason in words."""
        return f"{self.deaths} workers in turn died of it; is there enough memory?"


@dataclass(frozen=True)
class WorkerResources:
    """The means of a worker.

    Attributes:
        threads: threads that run tasks.
        resources: Dask's resources by name.
        gpus: GPUs that CUDA gives it, by a name that no other GPU has.
    """

    threads: int
    resources: Mapping[str, float]
    gpus: tuple[str, ...]

    def concurrent_tasks(self, resource: str | None) -> int:
        """Return the number of tasks that it would run at the same time."""
        return min(self.threads, int(self.resources.get(resource, 0))) if resource else self.threads


@dataclass(frozen=True)
class Cluster:
    """Workers for tasks.

    Attributes:
        client: connection to them.
        exclusive: each process does one task at a time, and no two share a GPU; else each thread does one.
        resource: Dask resource that a task takes; None where no worker resources one.
    """

    client: Client
    exclusive: bool
    resource: str | None
    _resources: dict[str, WorkerResources] = field(default_factory=dict)

    def count_slots(self) -> int:
        """Return the number of tasks that can run now; workers that have joined are checked first.

        Raises:
            ClusterError: A process would run several tasks at once, two share a GPU, or the scheduler is lost.
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
        """Return the number of threads of the workers on each machine, by its address."""
        threads: dict[str, int] = {}
        for address, worker in self._resources.items():
            threads[machine_of(address)] = threads.get(machine_of(address), 0) + worker.threads
        return threads


@contextmanager
def open_cluster(
    workers: Workers, folder: Path, environment: Mapping[str, str], *, exclusive: bool = True
) -> Iterator[Cluster]:
    """Open workers for tasks.

    Args:
        workers: a number of processes on this machine, or the address of a Dask scheduler.
        folder: folder on this machine for the files of Dask.
        environment: variables of the processes on this machine, beside those of this one.
        exclusive: each task needs a process of its own, and a GPU where there are GPUs: of those of this machine, each
            of its processes gets one.

    Raises:
        ParamsError: There is no such number of workers, or there are fewer GPUs.
        ClusterError: They cannot be had, are of another release, run several tasks at once, or share a GPU.
    """
    with connect_workers(workers, folder, environment, _one_gpu_each(workers) if exclusive else ()) as client:
        check_release(client)
        resources: dict[str, WorkerResources] = client.run(_get_resources, exclusive, on_error="ignore")
        if not resources:
            raise ClusterError("all workers were lost before they had said what they have; start some that stay")
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
    """Do tasks on workers; yield each once, in the order in which they end.

    Args:
        work: a function of a module that the workers have too, since it goes there by its name. A task whose worker
            died begins again. Its messages reach `on_message`; when nobody waits for the task any more, sending one
            raises KeyboardInterrupt.
        tasks: tasks that pickle can carry.
        cluster: workers that do them.
        on_message: callback that gets the messages of a task, in the calling thread.

    Raises:
        TaludError: The first that `work` raised, and likewise any other error. Tasks that run then are dropped.
        ClusterError: The scheduler is lost, or there was no worker for `NO_WORKER_TIMEOUT_SECONDS`.
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
                    f"no worker was left for {NO_WORKER_TIMEOUT_SECONDS} s; start some, and run the same command again"
                )
            for number, task in [waiting.popleft() for _ in range(min(slots - len(running), len(waiting)))]:
                # Packed, so that the scheduler does not unpack it and import packages that it may not have.
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
    """Return a script that gives each process of this machine one of its GPUs; none where there are no GPUs.

    Raises:
        ParamsError: There are fewer GPUs than processes.
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
    """Return the GPUs that CUDA gives this process."""
    command = shutil.which("nvidia-smi")
    query = [command or "", "--query-gpu=uuid", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False) if command else None
    there = said.stdout.split() if said and said.returncode == 0 else []
    return _visible(there, os.environ.get("CUDA_VISIBLE_DEVICES"), machine)


def _visible(there: Sequence[str], chosen: str | None, machine: str) -> tuple[str, ...]:
    """Return unique names of the visible GPUs.

    Args:
        there: UUIDs of the machine's GPUs in their order; empty where they are unknown.
        chosen: value of `CUDA_VISIBLE_DEVICES`: numbers or UUIDs; -1 hides itself and all that follow.
        machine: name that makes a number unique.
    """
    if chosen is None:
        return tuple(there)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    names = names[: names.index("-1")] if "-1" in names else names
    if not there:
        return tuple(f"{machine} {name}".strip() for name in names)
    known = {str(number): uuid for number, uuid in enumerate(there)}
    return tuple(known.get(name, name) for name in names if name in known or not name.isdigit())


def _get_resources(exclusive: bool, dask_worker: Worker) -> WorkerResources:
    """Return the means of a worker, called there; its GPUs only for tasks that do not share them."""
    state = dask_worker.state
    gpus = _gpus(machine_of(dask_worker.address)) if exclusive else ()
    return WorkerResources(state.nthreads, dict(state.total_resources), gpus)


def _task_workers(resources: Mapping[str, WorkerResources], resource: str | None) -> tuple[str, ...]:
    """Return the addresses of the workers that take tasks.

    Raises:
        ClusterError: One of them runs several at once, or two have the same GPU.
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
                    f"workers {owner[gpu]} and {address} would share GPU {gpu}; give each its own by "
                    "CUDA_VISIBLE_DEVICES, or none by CUDA_VISIBLE_DEVICES="
                )
            owner[gpu] = address
    return tuple(chosen)


def _queue_end(events: SimpleQueue[tuple[int, Any]], number: int, _: Future[Any]) -> None:
    events.put((number, _ENDED))


def _next_events(events: SimpleQueue[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the events that have happened, or happen within a poll interval."""
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

    try:
        result: Result = future.result()
    except KilledWorker as error:
        return LostTask(error.allowed_failures + 1)
    except ImportError as error:
        raise ClusterError(f"a worker lacks a package: {error}; give it the same installation") from error
    except CancelledError as error:
        raise ClusterError("the scheduler was lost, or another process has cancelled the work") from error
    else:
        return result
    finally:
        # While somebody holds a result that was lost with its worker, Dask does the task again.
        future.release()


def _run_task(packed: bytes, number: int, topic: str) -> Any:
    """Do a task, in a worker."""
    from distributed import get_worker

    worker = get_worker()
    work, task = pickle.loads(packed)
    key = worker.get_current_task()

    def tell(message: Any) -> None:
        if not _is_wanted(worker, key):
            raise KeyboardInterrupt
        worker.log_event(topic, [number, message])

    try:
        return work(task, tell)
    except KeyboardInterrupt:
        told: TaludError = ClusterError("a worker has stopped what it was not to do any more")
    except TaludError as error:
        told = type(error)(str(error))
    # Without its cause, which may not survive the wire.
    raise told


def _is_wanted(worker: Worker, key: object) -> bool:
    """Check whether the caller still waits for a task that this worker runs."""
    state = worker.state.tasks.get(key)
    serving = worker.status.name in ("running", "paused", "closing_gracefully")
    return serving and state is not None and state.state in ("executing", "long-running")
