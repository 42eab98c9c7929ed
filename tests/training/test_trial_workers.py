"""Tests of studies on several worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from command_line import Run
from talud.errors import ParamsError
from talud.registry import Store
from talud.training import trial_runner
from talud.training.checkpoint import TrialState
from talud.training.trial_runner import TrialTask
from talud.versions import training_versions
from training.test_study import make_project

SEARCH = {"filters": [2], "learning_rate": [0.01, 0.003], "batch_size": [8], "epochs": 40}
CHANGES = {"search": "two", "searches": {"two": SEARCH}}
COMMAND = [sys.executable, "-m", "talud.cli.main", "train", "both", "--workers", "2"]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def processes_of(group: int) -> list[int]:
    """Return the running processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader")  # from MLflow
def test_ctrl_c_ends_runs_and_processes_and_study_resumes(
    tmp_path: Path, talud: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resume in one process: starting workers takes longer than both trials."""
    project = make_project(tmp_path / "project", **CHANGES)
    with subprocess.Popen(
        COMMAND, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        while running.poll() is None and len(list((project.root / "checkpoints").glob("*.npz"))) < 2:
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGINT)
        output, messages = running.communicate(timeout=300)
    assert (running.returncode, output) == (130, ""), messages
    assert all(line.startswith("train both: ") for line in messages.splitlines())
    limit = time.monotonic() + 120
    while left := processes_of(running.pid):
        assert time.monotonic() < limit, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        time.sleep(0.05)
    store = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    (experiment,) = store.search_experiments()
    before = store.search_runs([experiment.experiment_id])
    assert len(before) == 3
    (parent,) = (run for run in before if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in before} <= {
        "KILLED",
        "FINISHED",
    }  # one may have been done before the other began

    monkeypatch.chdir(project.root)
    code, _, messages = talud("train", "both")
    assert code == 0, messages
    table = json.loads(project.trials("both").read_text())
    after = store.search_runs([experiment.experiment_id])
    assert {run.info.status for run in after} == {"FINISHED"}
    assert len(after) == 3
    assert {trial["run_id"] for trial in table["trials"]} < {run.info.run_id for run in after}
    for trial in table["trials"]:
        curve = store.get_metric_history(trial["run_id"], "validation/f1")
        assert [point.step for point in curve] == list(range(1, 41))


def test_zero_workers_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ParamsError, match="the number of workers is 0"),
        trial_runner.open_workers(0, make_project(tmp_path)),
    ):
        pytest.fail("workers were started")


def test_more_workers_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    with (
        pytest.raises(ParamsError, match="is 3, but each trial needs a GPU of its own and CUDA gives this process 2"),
        trial_runner.open_workers(3, make_project(tmp_path)),
    ):
        pytest.fail("workers were started")


def test_worker_check_reports_other_code_or_missing_project(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    code = training_versions()
    other = trial_runner._worker_problem(trial_runner.WorkerContext(project.root, None, "0 (data 1)"))
    absent = trial_runner._worker_problem(trial_runner.WorkerContext(tmp_path / "elsewhere", None, code))
    assert str(other) == (
        f"has the training code of talud {code}, but this process has that of 0 (data 1); install the same version"
    )
    assert str(absent).startswith(f"does not see {tmp_path / 'elsewhere'}")


def test_record_failure_logs_the_reason(tmp_path: Path) -> None:
    from talud.training.search import find_search, hyperparameter_sets

    project = make_project(tmp_path / "project", **CHANGES)
    hyperparameters, _ = hyperparameter_sets(find_search(project.params, "two"), 7)
    with Store.open(project.root, create=True).runs.study("both · two", {"band_set": "both", "study": "1"}) as parent:
        task = TrialTask(project, "both", hyperparameters, "a" * 32, 40, parent, {"band_set": "both"})
        result = trial_runner.record_failure(task, "it crashed 3 workers")
    run = MlflowClient(f"sqlite:///{project.root}/mlflow.db").get_run(result.run_id)
    assert (result.failure, result.state) == ("it crashed 3 workers", TrialState())
    assert run.info.status == "FAILED"
    assert "it crashed 3 workers" in run.data.tags["error"]
