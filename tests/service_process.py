"""Service in a process of its own, with a project that it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import onnx
import psutil
import uvicorn

from talud.registry import ModelVersion, Store

EXECUTION = "/processes/map-landslides/execution"
TIMEOUT_SECONDS = 90

Found = TypeVar("Found")


def add_champion(root: Path, name: str, file: Path) -> ModelVersion:
    """Register a model as the champion of its name."""
    tags = {"band_set": name}
    store = Store.open(root, create=True)
    with store.runs.study(name, tags) as parent, store.runs.trial(parent, "one", {}, tags) as trial:
        trial.log_scores({"f1": 0.5})
    made = store.models.register(f"landslide-unet-{name}", onnx.load(file), trial.run_id, os.urandom(16).hex() * 2)
    store.models.set_alias(made, "champion")
    return made


def free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(poll: Callable[[], Found], what: str) -> Found:
    """Poll a function until its result is true; return the result."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        if found := poll():
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


@dataclass(frozen=True)
class ServiceProcess:
    """Running service.

    Attributes:
        process: process of the service.
        http: client of the service.
    """

    process: subprocess.Popen[str]
    http: httpx.Client

    def ask(self, raster: str, **inputs: Any) -> str:
        """Submit a job; return its id."""
        body = {"inputs": {"raster": {"href": raster}, **inputs}}
        answer = self.http.post(EXECUTION, json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobID"])

    def job(self, job: str) -> dict[str, Any]:
        """Return the state of a job."""
        found: dict[str, Any] = self.http.get(f"/jobs/{job}").json()
        return found

    def ended(self, job: str) -> dict[str, Any]:
        """Wait until a job has ended; return its state."""

        def look() -> dict[str, Any] | None:
            found = self.job(job)
            return None if found["status"] in ("accepted", "running") else found

        return wait_for(look, f"job {job} does not end")

    def workers(self) -> list[int]:
        """Return the ids of the processes that map."""
        return [child.pid for child in psutil.Process(self.process.pid).children() if "spawn_main" in _command(child)]

    def kill(self) -> None:
        """End the service as a power cut would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def run_server(app: Callable[..., object], **options: object) -> Iterator[int]:
    """Run an application in a thread for the block; yield its port."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "the server does not start")
        yield port
    finally:
        server.should_exit = True
        thread.join()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def run_service(
    project: Path,
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[object] = (sys.executable, "-m", "talud.cli.main"),
) -> Iterator[ServiceProcess]:
    """Run `talud serve` in a project for the block."""
    port = free_port()
    own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | (environment or {})
    process = subprocess.Popen(
        [*map(str, command), "serve", "--port", str(port)],
        cwd=project,
        env=own | {f"TALUD_SERVICE_{name.upper()}": value for name, value in (settings or {}).items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS) as http:
            wait_for(lambda: _answers(process, http), "the service does not answer")
            yield ServiceProcess(process, http)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT_SECONDS)


def _answers(process: subprocess.Popen[str], http: httpx.Client) -> bool:
    assert process.poll() is None, process.communicate()[0]
    try:
        return http.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False
