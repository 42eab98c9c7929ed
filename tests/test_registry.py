"""Tests of studies, trials and models in a real MLflow store."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import onnx
import pytest
from mlflow.entities import RunStatus

from talud import registry
from talud.engine.runtime import Model
from talud.errors import OutputError, RegistryError, StudyError
from talud.project import current_commit, project_id
from talud.registry import ModelVersion, Store

TAGS = {"band_set": "7band", "search": "demo", "data_version": "ab" * 16, "commit": "cd" * 20 + "+changes"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a store that all tests of this module share."""
    folder = tmp_path_factory.mktemp("mi proyecto ñ")
    Store.open(folder, create=True)
    return folder


@pytest.fixture(scope="module")
def version(root: Path, tiny_model: Path) -> ModelVersion:
    """Return a registered model, version 1 and champion."""
    store = Store.open(root)
    with store.runs.study("3band · demo", TAGS) as parent, store.runs.trial(parent, "one", {}, TAGS) as trial:
        trial.log_epochs([(1, 0, {"f1": 0.9, "val_f1": 0.1})])
        trial.log_scores({"f1": 0.5, "precision": 0.5, "recall": 0.5, "iou": 0.3})
    made = store.models.register("landslide-unet-3band", onnx.load(tiny_model), trial.run_id, "a" * 64)
    store.models.set_alias(made, "champion")
    return made


def test_study_run_is_parent_of_trial_runs(root: Path) -> None:
    runs, client = Store.open(root).runs, Store.open(root).client
    with runs.study("7band · demo", TAGS, "Seed 7.") as parent:
        for f1, batch in ((0.4, 8), (0.6, 16)):
            choice = {"filters": 16, "learning_rate": 1e-3, "batch_size": batch}
            with runs.trial(parent, f"batch {batch}", choice, TAGS) as trial:
                trial.log_dataset("argelia", TAGS["data_version"], "stacks/training")
                for epoch in (1, 2):
                    trial.log_epochs([(epoch, 0, {"loss": 1 / epoch, "f1": 0.99, "val_f1": f1 / 3 * epoch})])
                trial.log_scores({"f1": f1, "precision": 0.7, "recall": 0.5, "iou": 0.3, "seconds": 2.5})
    study, run = client.get_run(parent), client.get_run(trial.run_id)

    assert (study.info.run_name, study.info.status, run.info.status) == ("7band · demo", "FINISHED", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert {key: float(value) for key, value in run.data.params.items()} == {
        "filters": 16,
        "learning_rate": 0.001,
        "batch_size": 16,
    }
    assert study.data.metrics["f1"] == 0.6
    assert run.data.metrics["f1"] == 0.6  # the score, not the last epoch's F1 on training patches
    curve = client.get_metric_history(trial.run_id, "validation/f1")
    assert [(point.step, round(point.value, 6)) for point in curve] == [(1, 0.2), (2, 0.4)]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("argelia", TAGS["data_version"])
    note = study.data.tags["mlflow.note.content"]
    assert note.endswith("Seed 7.")
    rows = re.findall(r"\[(batch \d+)\]\(\S+\) \| &emsp;([\d.]+) \|", note)
    assert rows == [("batch 16", "0.600"), ("batch 8", "0.400")]
    assert run.data.tags["mlflow.source.git.commit"] == "cd" * 20


LOG_DATA = """
import sys
from pathlib import Path
from talud.registry import Store, TrialRun

root, mine, other, *runs = sys.argv[1:]
client = Store.open(Path(root)).client
for number, run in enumerate(runs):
    (Path(root) / f"{mine}{number}").touch()
    while not (Path(root) / f"{other}{number}").exists():
        pass
    TrialRun(client, run).log_dataset("argelia", f"{number:036x}", "stacks/training")
"""


def log_the_same_data(root: Path) -> None:
    """Log the same data to pairs of runs from two processes at the same time."""
    store = Store.open(root, create=True)
    with store.runs.study("7band · pair", TAGS) as parent:
        runs = [_run_in(store, parent, f"{number}") for number in range(30)]
    pairs = ("one", "other", runs[::2]), ("other", "one", runs[1::2])
    command = [sys.executable, "-c", LOG_DATA, root]
    processes = [subprocess.Popen([*command, mine, other, *half]) for mine, other, half in pairs]
    try:
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found = [store.client.get_run(run).inputs.dataset_inputs[0].dataset.digest for run in runs]
    assert found == [f"{number // 2:036x}" for number in range(30)]


@pytest.mark.slow
def test_concurrent_trials_log_the_same_data(root: Path) -> None:
    log_the_same_data(root)


def _run_in(store: Store, parent: str, name: str) -> str:
    with store.runs.trial(parent, name, {}, TAGS) as trial:
        return trial.run_id


@pytest.mark.parametrize(
    ("error", "status"), [(StudyError("the loss is not a number"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_failed_trial_leaves_no_open_run(root: Path, error: BaseException, status: str) -> None:
    def broken() -> None:
        with (
            store.runs.study("broken", TAGS) as parent,
            store.runs.trial(parent, "trial", {}, TAGS) as trial,
        ):
            runs.extend([parent, trial.run_id])
            raise error

    store = Store.open(root)
    runs: list[str] = []
    with pytest.raises(type(error)):
        broken()
    found = [store.client.get_run(run) for run in runs]
    assert [run.info.status for run in found] == [status, status]
    assert all(run.data.tags["error"].startswith(type(error).__name__) for run in found)


def _left_open(root: Path, **tags: str) -> str:
    """Return the run of a study whose process was killed."""
    with Store.open(root, create=True).runs.study("left open", {**TAGS, **tags}) as run_id:
        pass
    Store.open(root).client.update_run(run_id, "RUNNING")
    return run_id


def test_project_id_does_not_depend_on_host_or_folder_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    (tmp_path / "container").mkdir()
    ours = _left_open(tmp_path / "container", study="1")
    monkeypatch.setattr("platform.node", lambda: "another")
    (tmp_path / "container").rename(tmp_path / "ours")  # this one goes on elsewhere, under another name of the machine
    (tmp_path / "container").mkdir()
    theirs = _left_open(tmp_path / "container", study="2")
    statuses = [Store.open(tmp_path).client.get_run(run).info.status for run in (ours, theirs)]
    assert statuses == ["RUNNING", "RUNNING"]
    with Store.open(tmp_path / "ours", create=True).runs.study("goes on", {**TAGS, "study": "1"}) as again:
        assert again == ours
    assert Store.open(tmp_path).client.get_run(theirs).info.status == "RUNNING"
    with Store.open(tmp_path / "ours", create=True).runs.study("another study", {**TAGS, "study": "3"}):
        assert Store.open(tmp_path).client.get_run(theirs).info.status == "RUNNING"


IDENTIFY = "import sys, pathlib; from talud.project import project_id; print(project_id(pathlib.Path(sys.argv[1])))"


@pytest.mark.slow
def test_project_id_is_created_once_and_repaired(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", IDENTIFY, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = {process.communicate()[0].strip() for process in started}
    assert said == {project_id(tmp_path)}
    (tmp_path / "checkpoints/project.id").write_bytes(b"\xff' or 1 = 1 --" * 10)
    assert re.fullmatch("[0-9a-f]{32}", project_id(tmp_path))
    assert project_id(tmp_path) == project_id(tmp_path) not in said
    (tmp_path / "other").mkdir()
    (tmp_path / "other/checkpoints").write_text("in the way")
    with pytest.raises(OutputError, match=r"project\.id: cannot be written"):
        project_id(tmp_path / "other")


def test_finished_run_has_no_error_of_a_cancelled_worker(root: Path) -> None:
    tags = {**TAGS, "study": "late", "trial": "late"}
    runs = Store.open(root).runs
    with runs.study("late", tags) as parent, runs.trial(parent, "late", {}, tags) as trial:
        runs._end(trial.run_id, RunStatus.KILLED, "KeyboardInterrupt")  # as the one that nobody waits for
    run = Store.open(root).client.get_run(trial.run_id)
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [0, 5])  # that the trial has behind it now: its checkpoint is gone, or went further
def test_run_of_a_registered_version_is_kept(root: Path, tiny_model: Path, epochs: int) -> None:
    tags = {**TAGS, "study": f"again {epochs}", "trial": "1"}

    def train(behind: int, f1: float) -> str:
        with store.runs.trial(parent, "one", {"filters": 2}, tags, behind) as trial:
            trial.log_epochs([(epoch, 0, {"loss": f1, "val_f1": f1}) for epoch in (1, 2)])
            trial.log_scores({"f1": f1, "precision": f1, "recall": f1, "iou": f1})
        return trial.run_id

    store = Store.open(root)
    client = store.client
    with store.runs.study("again", tags) as parent:
        lost = train(0, 0.3)
        first = train(0, 0.9)  # nothing came from the one before
        version = store.models.register("landslide-unet-again", onnx.load(tiny_model), first, f"{epochs}" * 64)
        assert train(2, 0.9) == first  # done already
        before = client.get_run(first)
        second = train(epochs, 0.6)
        assert train(2, 0.6) == second
    assert len({lost, first, second}) == 3
    assert [client.get_run(run).info.lifecycle_stage for run in (lost, first, second)] == [
        "deleted",
        "active",
        "active",
    ]
    after = client.get_run(first)
    assert (after.info.status, after.data.metrics) == ("FINISHED", before.data.metrics)
    assert "superseded" in after.data.tags
    assert store.runs.find(version.run_id).run_id == first
    study = client.get_run(parent)
    assert study.data.metrics["f1"] == 0.6
    assert first not in study.data.tags["mlflow.note.content"]
    assert store.runs.finished_trial(parent, "1", 2) == second


def test_reading_creates_no_store(tmp_path: Path) -> None:
    for read in (lambda: Store.open(tmp_path).client, lambda: registry.fetch("models:/any@champion", tmp_path)):
        with pytest.raises(RegistryError, match="talud train"):
            read()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(RegistryError, match="talud train"):
        Store.open(tmp_path)
    assert (tmp_path / "mlflow.db").stat().st_size == 0


def test_unreadable_store_is_reported(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(RegistryError, match=r"cannot be used: MLflow: .*not a database"):
        Store.open(tmp_path)
    shutil.copy(root / "mlflow.db", tmp_path / "older.db")
    shutil.move(tmp_path / "older.db", tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        store.execute("UPDATE alembic_version SET version_num = 'cc1f77228345'")
        store.commit()
    with pytest.raises(RegistryError, match="written by another version of MLflow"):
        Store.open(tmp_path / ".." / tmp_path.name)


def test_copied_store_is_detected(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for use in (lambda: registry.fetch("models:/any@champion", copy), lambda: Store.open(copy, create=True)):
        with pytest.raises(RegistryError, match="has its artifacts in") as caught:
            use()
        assert root.as_uri() in str(caught.value)


def test_environment_variable_selects_another_store(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    with Store.open(tmp_path, create=True).runs.study("elsewhere", TAGS) as parent:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Store.open(root).client.get_run(parent).info.run_name == "elsewhere"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def register_in(store: Store, model: Path, f1: float) -> ModelVersion:
    """Register a champion, with a run, a study and a file in the run."""
    with store.runs.study("3band · demo", TAGS) as parent, store.runs.trial(parent, "one", {}, TAGS) as trial:
        trial.log_scores({"f1": f1, "precision": f1, "recall": f1, "iou": f1})
    store.runs.log_file(trial.run_id, str(f1).encode(), "f1.txt")
    version = store.models.register("landslide-unet-3band", onnx.load(model), trial.run_id, "a" * 64)
    store.models.promote(version)
    return version


@pytest.mark.slow
def test_two_open_stores_keep_runs_and_models_apart(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    for folder in (elsewhere, tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    stores = [Store.open(tmp_path / name, create=True) for name in ("first", "second")]
    versions = [register_in(store, tiny_model, f1) for store, f1 in zip(stores, (0.25, 0.75), strict=True)]
    for store, version, f1 in zip(stores, versions, (0.25, 0.75), strict=True):
        assert store.root is not None
        fetched = store.models.fetch("models:/landslide-unet-3band@champion")
        assert (
            store.models.fetch(f"runs:/{version.run_id}/{version.name}").path.read_bytes() == fetched.path.read_bytes()
        )
        assert fetched.path.is_relative_to(store.root / "mlartifacts")
        assert fetched.run_id == version.run_id
        assert store.client.get_run(version.run_id).data.metrics["f1"] == f1
        assert Path(store.client.download_artifacts(version.run_id, "f1.txt")).read_text() == str(f1)
        assert store.client.get_model_version(version.name, "1").source.startswith("models:/m-")
        assert len(store.models.versions()) == 1
    assert stores[0].runs.find(versions[1].run_id) is None
    assert list(elsewhere.iterdir()) == []  # MLflow's default store would be made here
    assert not mlflow.is_tracking_uri_set()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_silent_server_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(RegistryError, match=f"127.0.0.1:{port} cannot be used: it does not") as caught:
        registry.fetch("models:/any@champion", None)
    assert time.monotonic() - started < 15
    assert "secret" not in str(caught.value)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


class Old(BaseHTTPRequestHandler):
    """Server that reports version 2 of MLflow."""

    def do_GET(self) -> None:
        body = b"2.22.1" if self.path == "/version" else b'{"experiment": {"experiment_id": "1"}}'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_server_of_another_major_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RegistryError, match=r"cannot be used: its server runs MLflow 2\.22\.1, this process \d"):
            Store.open(tmp_path, create=True)
        server.shutdown()


def test_model_is_fetched_by_any_uri(root: Path, version: ModelVersion, tiny_model: Path) -> None:
    model_id = re.escape(str(root)) + r"/mlartifacts/models/(m-\w+)/"
    by_alias = registry.fetch("models:/landslide-unet-3band@champion", root)
    found = re.match(model_id, str(by_alias.path))
    assert found
    assert (by_alias.name, by_alias.version, by_alias.run_id) == (version.name, "1", version.run_id)
    for uri in (
        "models:/landslide-unet-3band/1",
        "models:/landslide-unet-3band/latest",
        f"models:/{found[1]}",
        f"runs:/{version.run_id}/landslide-unet-3band",
        by_alias.path.parent.as_uri(),
    ):
        other = registry.fetch(uri, root)
        assert other.run_id == version.run_id
        assert other.path.read_bytes() == tiny_model.read_bytes()
    assert Model.load(by_alias.path).contract == Model.load(tiny_model).contract
    assert not list(by_alias.path.parent.glob("*.data"))  # the weights are inside


def test_registered_model_has_the_scores_of_its_trial(root: Path, version: ModelVersion) -> None:
    client = Store.open(root).client
    (output,) = client.get_run(version.run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert {metric.key: metric.value for metric in logged.metrics} == {
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "iou": 0.3,
    }
    assert len(client.get_metric_history(version.run_id, "f1")) == 1
    assert str(logged.status) == "READY"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nothing@champion", "no registered model 'nothing'; registered models: landslide-unet-3band"),
        ("models:/landslide-unet-3band@best", r"no alias 'best'; it has: champion \(version 1\)"),
        ("models:/landslide-unet-3band/9", "no version 9; it has: 1"),
        ("models:/landslide-unet-3band", "valid forms are: models:/NAME@ALIAS"),
        ("landslide-unet-3band@champion", "valid forms are: models:/NAME@ALIAS"),
        ("models:/m-" + "0" * 32, "not found"),
        ("runs:/nothing/model", "runs:/nothing/model: Run with id=nothing not found"),
    ],
)
def test_missing_model_is_reported_with_existing_ones(
    root: Path, version: ModelVersion, uri: str, message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        registry.fetch(uri, root)


def test_model_that_is_not_onnx_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn:\n    pickled_model: model.pkl\n")
    with pytest.raises(RegistryError, match="flavor sklearn, not onnx"):
        registry.fetch(tmp_path.as_uri(), root)
    (tmp_path / "MLmodel").write_text("flavors:\n  onnx:\n    data: ../outside.onnx\n")
    (tmp_path.parent / "outside.onnx").write_bytes(b"another file of this machine")
    with pytest.raises(RegistryError, match=r"outside\.onnx is missing"):
        registry.fetch(tmp_path.as_uri(), root)


def test_version_has_at_most_one_alias(root: Path, version: ModelVersion) -> None:
    store = Store.open(root)
    store.models.set_alias(version, "challenger")
    assert store.client.get_registered_model(version.name).aliases == {"challenger": 1}
    assert store.models.champion(version.name) is None
    store.models.set_alias(version, "champion")
    assert store.models.champion(version.name) == store.models.find_by_fingerprint(version.name, "a" * 64)


FETCH = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"tensorflow", "keras", "onnx", "matplotlib", "flask", "sklearn", "pyarrow", "dvc"}:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

def hook(event, arguments):
    assert event not in ("socket.connect", "socket.getaddrinfo"), f"calls out: {arguments}"

sys.meta_path.insert(0, Missing())
sys.addaudithook(hook)
from pathlib import Path
from talud import registry
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
assert registry.fetch("models:/landslide-unet-3band@champion", Path(sys.argv[1])).path.is_file()
"""


@pytest.mark.slow
def test_skinny_mlflow_fetches_without_output_or_network(root: Path, version: ModelVersion) -> None:
    without_ci = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    command = [sys.executable, "-c", FETCH, str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=without_ci, cwd=root)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_commit_marks_uncommitted_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert current_commit(tmp_path) == "unknown"
    git("init", "-q")
    for name in ("params.yaml", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "dvc.lock").write_text("written by dvc repro")
    (tmp_path / "notes.txt").write_text("not tracked")
    assert current_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "params.yaml").write_text("2")
    assert current_commit(tmp_path) == git("rev-parse", "HEAD") + "+changes"
