"""Dask cluster on this machine, started by its own commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_dask_cluster(
    folder: Path, *workers: dict[str, str], prefix: tuple[str, ...] = (), options: tuple[str, ...] = ("--nthreads", "1")
) -> Iterator[tuple[str, list[int]]]:
    """Start a scheduler and workers; yield its address and all process ids.

    Each worker gets environment variables of its own.
    """
    folder.mkdir()
    file = folder / "scheduler.json"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
    ]  # fmt: skip
    try:
        while not (file.exists() and file.stat().st_size):
            assert started[0].poll() is None
            time.sleep(0.02)
        address = json.loads(file.read_text())["address"]
        for more in workers:
            command = [
                *(*prefix, sys.executable, "-m", "distributed.cli.dask_worker", address, *options),
                *("--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--local-directory", str(folder)),
            ]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | more
            started.append(
                subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        if workers:
            _wait_for(address, len(workers))
        yield address, [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait_for(address: str, workers: int) -> None:
    """Wait until all workers have joined, longer than talud itself waits."""
    from distributed import Client

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages in other versions
        with Client(address, timeout=120, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=120)
