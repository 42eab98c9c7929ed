"""Tests of a study whose MLflow server stops while trials run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from talud.errors import RegistryError
from talud.training import study
from training.test_study import make_project

SEARCH = {"filters": [2], "learning_rate": [0.01, 0.001], "batch_size": [8], "epochs": 4}


class MlflowServer:
    """MLflow server on loopback, with a persistent SQLite store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/store.db"]
        command += ["--artifacts-destination", str(self._folder / "files")]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, start_new_session=True, **silent)
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.mark.slow
def test_epochs_trained_during_outage_are_logged_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for unused in (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "MLFLOW_ENABLE_AI_GATEWAY",
    ):  # features that start further processes
        monkeypatch.setenv(unused, "false")
    project = make_project(tmp_path / "project", searches={"small": SEARCH})

    def stop_server(progress: study.StudyProgress) -> None:
        if progress.epoch == 2:
            server.kill()

    seen: list[tuple[int, int]] = []

    def stop_server_for_two_epochs(progress: study.StudyProgress) -> None:
        seen.append((progress.trial, progress.epoch))
        if seen[-1] == (2, 1):
            server.kill()
        if seen[-1] == (2, 3):
            server.start()

    try:
        server.start()
        with pytest.raises(RegistryError, match=r"^MLflow: the server does not answer; finished training is kept"):
            study.run(project, "both", on_progress=stop_server)
        server.start()
        result = study.run(project, "both", on_progress=stop_server_for_two_epochs)
        assert seen == [(2, 1), (2, 2), (2, 3), (2, 4)]  # the first trial was finished and only had to be logged
        client = MlflowClient(server.address)
        for trial in result.results:
            run = client.get_run(trial.run_id)
            assert run.info.status == "FINISHED"
            assert run.data.metrics["f1"] == pytest.approx(trial.state.scores["f1"], abs=1e-6)
            for name in ("training/loss", "validation/f1"):
                assert [point.step for point in client.get_metric_history(trial.run_id, name)] == [1, 2, 3, 4]
        assert len(client.search_runs([run.info.experiment_id])) == 3
    finally:
        server.kill()
