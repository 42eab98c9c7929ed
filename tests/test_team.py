"""Tests of a team's servers on loopback: PostgreSQL, MLflow with a login, Dask."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from postgresql import script
from service_process import add_champion, run_service, wait_for
from stack_files import noise, write_stack
from talud.engine.runtime import Model, RegistryVersion
from talud.errors import ClusterError, RegistryError
from talud.evaluation import promotion
from talud.products.prediction import predict
from talud.project import Project
from talud.registry import Store
from talud.registry.models import FINGERPRINT_TAG
from talud.training import trial_runner
from talud.versions import training_versions
from test_registry import log_the_same_data
from training.test_study import make_project

SEARCH = {"filters": [2], "learning_rate": [0.01, 0.003], "batch_size": [8], "epochs": 3}
CHANGES = {"search": "two", "searches": {"two": SEARCH}}


@pytest.fixture(scope="module")
def team() -> Iterator[Any]:
    """Start the servers of `make team`."""
    module = script()
    if module.postgresql() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with module.team() as found:
        yield found
    assert all(process.poll() is not None for process in found.started.values())


@pytest.fixture
def environment(team: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the environment of a user of the team."""
    import dask

    for name, value in team.environment.items():
        monkeypatch.setenv(name, value)
    with dask.config.set(dask.config.collect_env(team.environment)):
        yield team


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def worker_of(team: Any, name: str) -> int:
    """Return the process that runs a worker's trials, a child of its nanny."""
    (worker,) = [
        child
        for child in children(team.started[name].pid)
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return worker


def runs_of(client: MlflowClient, project: Project) -> tuple[Any, list[Any]]:
    """Return the run of a project's study, and those of its trials."""
    parent = client.get_run(json.loads(project.trials("both").read_text())["parent_run_id"])
    condition = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return parent, client.search_runs([parent.info.experiment_id], condition)


@pytest.mark.slow
def test_study_on_a_cluster_survives_a_killed_worker(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, project = environment, make_project(tmp_path / "together", **CHANGES)
    command = [sys.executable, "-m", "talud.cli.main", "train", "both", "--scheduler", team.scheduler]
    with subprocess.Popen(
        command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        checkpoints = project.root / "checkpoints"
        while running.poll() is None and not list(checkpoints.glob("*.npz")):
            time.sleep(0.02)
        os.kill(worker_of(team, "worker-1"), signal.SIGKILL)
        said, complained = running.communicate(timeout=300)
    assert running.returncode == 0, complained
    assert said.splitlines()[-1].startswith("models/both.onnx")

    client = MlflowClient(team.environment["MLFLOW_TRACKING_URI"])
    parent, trials = runs_of(client, project)
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in trials] == ["FINISHED"] * 2
    assert len({run.info.run_name for run in trials}) == 2
    for run in trials:
        assert [one.step for one in client.get_metric_history(run.info.run_id, "validation/f1")] == [1, 2, 3]
    everything = client.search_runs([parent.info.experiment_id])
    assert len(everything) == 3
    assert "Restarting worker" in (team.logs / "worker-1").read_text()

    together = promotion.register(project, "both")
    there = client.get_model_version(together.name, together.version).tags
    for name in team.environment:
        monkeypatch.delenv(name)
    alone = make_project(tmp_path / "alone", **CHANGES)
    threads = str(max((os.cpu_count() or 1) // 2, 1))  # as each worker has: with others, sums differ in their last bits
    same = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    subprocess.run(command[:-2], cwd=alone.root, env=os.environ | same, check=True, capture_output=True)
    by_one = promotion.register(alone, "both")
    assert (together.name, together.version, together.alias) == (by_one.name, by_one.version, by_one.alias)
    here = MlflowClient(f"sqlite:///{alone.root}/mlflow.db").get_model_version(by_one.name, by_one.version).tags
    assert there[FINGERPRINT_TAG] == here[FINGERPRINT_TAG]


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_concurrent_trials_log_the_same_data_to_postgresql(tmp_path: Path) -> None:
    log_the_same_data(tmp_path)


@pytest.mark.slow
def test_refused_login_is_reported_before_training(
    environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "project", **CHANGES)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    command = [sys.executable, "-m", "talud.cli.main", "train", "both"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "rejects the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert not list(project.root.glob("checkpoints/*.npz"))
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(RegistryError, match="rejects the login; set MLFLOW_TRACKING_USERNAME"):
        Store.open(project.root, create=True)


@pytest.mark.slow
def test_read_only_user_is_reported(environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(tmp_path, create=True)
    address = environment.environment["MLFLOW_TRACKING_URI"]
    pair = f"talud:{environment.environment['MLFLOW_TRACKING_PASSWORD']}"
    headers = {
        "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
        "Content-Type": "application/json",
    }
    user = json.dumps({"username": "reader", "password": "only-for-reading"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{address}/api/2.0/mlflow/users/create", user, headers)).close()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "only-for-reading")
    with (
        pytest.raises(RegistryError, match="does not allow this for the user in MLFLOW_TRACKING_USERNAME"),
        Store.open(tmp_path, create=True).runs.study("both · three", {"band_set": "both", "study": "1"}),
    ):
        pytest.fail("the study began")


@pytest.mark.slow
def test_workers_with_an_invalid_login_are_reported(environment: Any, tmp_path: Path) -> None:
    """Train on workers whose tracking server rejects their login."""
    project = make_project(tmp_path / "project", **CHANGES)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = trial_runner.WorkerContext(
            project.root, f"http://127.0.0.1:{silent.getsockname()[1]}", training_versions()
        )
    before = os.environ["MLFLOW_TRACKING_URI"]
    trouble = trial_runner._worker_problem(place)
    os.environ["MLFLOW_TRACKING_URI"] = before
    assert isinstance(trouble, RegistryError)
    assert "does not answer" in str(trouble)


def test_cluster_without_a_tracking_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = make_project(tmp_path / "project")
    with (
        pytest.raises(ClusterError, match="MLFLOW_TRACKING_URI names none"),
        trial_runner.open_workers("tcp://127.0.0.1:1", project),
    ):
        pytest.fail("workers were had")


def test_login_is_not_sent_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@mlflow.example.org:8443/team")
    assert trial_runner._tracking_server() == "https://mlflow.example.org:8443/team"


@pytest.mark.slow
def test_killed_service_on_postgresql_resumes_its_jobs(environment: Any, tiny_model: Path, tmp_path: Path) -> None:
    team = environment
    for name in ("rasters", "results", "nowhere"):
        (tmp_path / name).mkdir()
    write_stack(tmp_path / "rasters/large.tif", np.kron(noise(50, 50), np.ones((50, 50), np.float32)))
    version = add_champion(tmp_path / "nowhere", "served", tiny_model)
    settings = {
        "data": str(tmp_path / "rasters"), "results": str(tmp_path / "results"), "workers": team.scheduler,
        "database": f"{team.database}/service",
    }  # fmt: skip
    with run_service(tmp_path / "nowhere", settings, team.environment) as service:
        job = service.ask("large.tif", model=version.name)
        wait_for(lambda: list((tmp_path / "results/jobs").glob("*/.map.partial/tiles/*.npz")), "no tile is finished")
        service.kill()
    with run_service(tmp_path / "nowhere", settings, team.environment) as service:
        assert service.ended(job)["status"] == "successful", service.job(job)
        found = service.http.get(f"/jobs/{job}/files/probability.tif").content
    origin = RegistryVersion(version.name, version.version)
    predict(Model.load(tiny_model, origin), tmp_path / "rasters/large.tif", tmp_path / "by_hand")
    assert found == (tmp_path / "by_hand/probability.tif").read_bytes()
