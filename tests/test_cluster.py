"""Tests of tasks on workers, lost workers and refused workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cluster_tasks
from dask_cluster import run_dask_cluster
from talud import cluster as talud_cluster
from talud.cluster import Cluster, LostTask, open_cluster, run_tasks
from talud.cluster_connection import check_release
from talud.errors import ClusterError, StudyError


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Yield two worker processes with an environment variable each."""
    with open_cluster(2, tmp_path_factory.mktemp("dask"), {"TALUD_TEST": "given"}) as workers:
        yield workers


@pytest.mark.slow
def test_workers_have_their_environment_and_run_one_task_each(two_workers: Cluster) -> None:
    done = list(run_tasks(cluster_tasks.read_variable, ["TALUD_TEST"] * 4, two_workers))
    assert [task for task, _ in done] == ["TALUD_TEST"] * 4
    assert {value for _, (_, value) in done} == {"given"}
    assert len({pid for _, (pid, _) in done}) == two_workers.count_slots() == 2
    assert "TALUD_TEST" not in os.environ
    assert list(run_tasks(cluster_tasks.read_variable, [], two_workers)) == []


def test_task_returns_once_if_a_worker_is_killed(two_workers: Cluster, tmp_path: Path) -> None:
    tasks = [tmp_path / str(number) for number in range(6)]
    killed: dict[Path, int] = {}
    messages: list[tuple[Path, str]] = []

    def on_message(task: Path, message: Any) -> None:
        messages.append((task, message[0]))
        if not killed and message[0] == "started" and len(messages) > 3:  # the worker has finished a task before
            killed[task] = message[1]
            os.kill(message[1], signal.SIGKILL)
        else:
            cluster_tasks.release_file(task).touch()

    done = list(run_tasks(cluster_tasks.wait_for_release, tasks, two_workers, on_message))
    assert sorted(task for task, _ in done) == tasks
    assert all(dict(done)[task] != pid for task, pid in killed.items())
    assert len(killed) == 1
    starts = {task: len(task.read_text().splitlines()) for task in tasks}
    assert starts == {task: 1 + (task in killed) for task in tasks}
    assert set(messages) == {(task, what) for task in tasks for what in ("started", "ends")}


@pytest.mark.slow
def test_task_that_kills_its_workers_is_lost_without_the_others(two_workers: Cluster, tmp_path: Path) -> None:
    tasks = [tmp_path / name for name in ("deadly", "one", "two", "three", "four")]
    done = dict(run_tasks(cluster_tasks.die, tasks, two_workers))
    assert done.pop(tasks[0]) == LostTask(3)
    assert set(done) == set(tasks[1:])
    assert all(isinstance(pid, int) for pid in done.values())
    assert [len(task.read_text().splitlines()) for task in tasks] == [3, 1, 1, 1, 1]


@pytest.mark.slow
def test_error_of_a_task_is_raised_and_cancels_the_others(two_workers: Cluster, tmp_path: Path) -> None:
    tasks = [tmp_path / name for name in ("failing", "stopped", "never")]
    with pytest.raises(StudyError, match=r"^failed on purpose$"):
        list(run_tasks(cluster_tasks.fail, tasks, two_workers))
    wait_until(tasks[1].exists)
    assert not tasks[2].exists()
    assert len(list(run_tasks(cluster_tasks.read_variable, ["HOME"], two_workers))) == 1  # the workers still run


@pytest.mark.parametrize(
    ("uuids", "chosen", "visible"),
    [
        ((), None, ()),
        ((), "", ()),
        ((), "0,1", ("here 0", "here 1")),
        (("GPU-a", "GPU-b"), None, ("GPU-a", "GPU-b")),
        (("GPU-a", "GPU-b"), "1", ("GPU-b",)),
        (("GPU-a", "GPU-b"), "GPU-b, 0", ("GPU-b", "GPU-a")),
        (("GPU-a", "GPU-b"), "7", ()),
        (("GPU-a", "GPU-b"), "1,-1,0", ("GPU-b",)),
        (("GPU-a", "GPU-b"), "", ()),
    ],
)
def test_visible_gpus_follow_cuda_visible_devices(
    uuids: tuple[str, ...], chosen: str | None, visible: tuple[str]
) -> None:
    assert talud_cluster._visible(uuids, chosen, "here") == visible


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "workers", "message"),
    [
        (("--nthreads", "2"), [{}], "would run 2 trials in one process, but each needs its own; start it with"),
        (
            ("--nthreads", "1", "--resources", "GPU=1"),
            [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "0"}],
            r"would share GPU .*; set CUDA_VISIBLE_DEVICES to a different GPU for each",
        ),
    ],
)
def test_shared_workers_and_gpus_are_refused(
    tmp_path: Path, options: tuple[str, ...], workers: list[dict[str, str]], message: str
) -> None:
    with run_dask_cluster(tmp_path / "cluster", *workers, options=options) as (address, _):
        with pytest.raises(ClusterError, match=message) as caught, open_cluster(address, tmp_path, {}) as found:
            wait_for_slots(found, len(workers))
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_trial_takes_a_gpu_of_a_cluster(tmp_path: Path) -> None:
    own = [{"CUDA_VISIBLE_DEVICES": name} for name in "01"]
    options = ("--nthreads", "4", "--resources", "GPU=1")
    with (
        run_dask_cluster(tmp_path / "cluster", *own, options=options) as (address, _),
        open_cluster(address, tmp_path, {}) as found,
    ):
        wait_for_slots(found, 2)
        assert found.resource == "GPU"
        done = list(run_tasks(cluster_tasks.read_variable, ["CUDA_VISIBLE_DEVICES"] * 4, found))
    assert len({pid for _, (pid, _) in done}) == 2
    assert {visible for _, (_, visible) in done} == {"0", "1"}


@pytest.mark.slow
def test_lost_scheduler_is_reported(tmp_path: Path) -> None:
    with run_dask_cluster(tmp_path / "cluster", {}) as (address, pids), open_cluster(address, tmp_path, {}) as found:

        def on_message(_task: Path, message: object) -> None:
            os.kill(pids[0], signal.SIGKILL)

        with pytest.raises(ClusterError, match="the scheduler was lost") as caught:
            list(
                run_tasks(
                    cluster_tasks.record_start, [tmp_path / "1", tmp_path / "2", tmp_path / "3"], found, on_message
                )
            )
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_disconnected_worker_is_ignored_by_the_release_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "3s"
    )  # limits the scheduler's attempts to reach the worker
    with (
        run_dask_cluster(tmp_path / "cluster", {}, {}) as (address, pids),
        open_cluster(address, tmp_path, {}) as found,
    ):
        wait_for_slots(found, 2)
        pid_by_worker = found.client.run(os.getpid)
        (gone,) = [worker for worker, pid in pid_by_worker.items() if pid == pids[1]]
        os.kill(pids[1], signal.SIGKILL)
        wait_until(lambda: len(found.client.nthreads()) == 1)
        check_release(found.client, [gone])
        assert [pid for _, (pid, _) in run_tasks(cluster_tasks.read_variable, ["HOME"], found)] == [pids[2]]


def wait_for_slots(found: Cluster, number: int) -> None:
    wait_until(lambda: found.count_slots() == number)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail after a time limit."""
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
