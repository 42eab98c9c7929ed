"""Tests of `talud ui` over HTTP, and of a tracking server of a team."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from talud import registry
from talud.cli.main import app
from talud.engine.runtime import Model
from talud.errors import RegistryError
from talud.registry import Store

TALUD = [sys.executable, "-m", "talud.cli.main"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serving(command: list[str], root: Path, port: int) -> Iterator[str]:
    """Start a server and yield its address; stop it at the end."""
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, process.stdout and process.stdout.read()
                time.sleep(0.2)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a study in its store."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(
        "seed: 1\nareas: {}\nband_sets: {}\nstack: {}\nsplit: {}\ntraining: {}\nsearch: demo\n"
        "searches: {demo: {filters: [4], learning_rate: [0.1], batch_size: [8], epochs: 1}}\n"
    )
    with Store.open(folder, create=True).runs.study("7band · demo", {"band_set": "7band"}):
        pass
    return folder


@pytest.mark.slow
def test_ui_shows_the_store_of_the_project(root: Path) -> None:
    port = free_port()
    with serving([*TALUD, "ui", "--port", str(port)], root, port) as address:
        page = urllib.request.urlopen(address, timeout=20).read().decode()
        assert "<title>MLflow</title>" in page
        experiment = Store.open(root).client.get_experiment_by_name(registry.EXPERIMENT)
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": [experiment.experiment_id]}).encode(),
            {"Content-Type": "application/json"},
        )
        runs = json.load(urllib.request.urlopen(request, timeout=20))["runs"]
        assert [run["info"]["run_name"] for run in runs] == ["7band · demo"]
        telemetry = json.load(urllib.request.urlopen(f"{address}/ajax-api/3.0/mlflow/ui-telemetry", timeout=20))
        assert telemetry["disable_ui_telemetry"] is True
    assert sorted(path.name for path in root.iterdir()) == ["checkpoints", "mlflow.db", "params.yaml"]


@pytest.mark.slow
def test_team_server_stores_trials_and_models(
    root: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    options = ["--backend-store-uri", f"sqlite:///{tmp_path}/team.db", "--artifacts-destination", f"{tmp_path}/files"]
    command = [sys.executable, "-m", "mlflow", "server", *options, "--port", str(port), "--workers", "1"]
    with serving(command, tmp_path, port) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        project = tmp_path / "project"
        project.mkdir()
        store = Store.open(project, create=True)
        with store.runs.study("3band · demo", {}) as parent, store.runs.trial(parent, "one", {}, {}) as trial:
            trial.log_scores({"f1": 0.5})
        version = store.models.register("landslide-unet-3band", onnx.load(tiny_model), trial.run_id, "a" * 64)
        assert store.models.find_by_fingerprint(version.name, "a" * 64) == version
        store.models.set_alias(version, "champion")
        store.models.set_alias(version, "challenger")
        fetched = registry.fetch("models:/landslide-unet-3band@challenger", project)
        assert (fetched.version, fetched.run_id) == ("1", trial.run_id)
        assert Model.load(fetched.path).contract == Model.load(tiny_model).contract
        with pytest.raises(RegistryError, match=r"no alias 'champion'; it has: challenger \(version 1\)"):
            registry.fetch("models:/landslide-unet-3band@champion", project)
        assert [path.name for path in project.iterdir()] == ["checkpoints"]  # project id, but no store
        monkeypatch.chdir(root)
        assert address in CliRunner().invoke(app, ["ui"]).output


def test_ui_reports_a_missing_store(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_bytes((root / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["ui"])
    assert isinstance(result.exception, RegistryError)
    assert "run talud train" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_ui_reports_a_port_in_use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = CliRunner().invoke(app, ["ui", "--port", str(listener.getsockname()[1])])
    assert isinstance(result.exception, RegistryError)
    assert "in use; choose another --port" in str(result.exception)
