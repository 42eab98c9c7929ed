"""Studies and trials as MLflow runs: a parent run for each study, a child run for each of its trials."""

from __future__ import annotations

import getpass
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from talud.registry.store import connect, connected, experiment_id, speaking


@dataclass(frozen=True)
class Trial:
    """A trial's run, while it is open."""

    run_id: str

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch's metrics: one point on each learning curve, at step `epoch`, counted from 1.

        What Keras calls `val_f1` becomes `validation/f1` and `f1` becomes `training/f1`: the UI groups the curves so,
        and the bare names are left to the scores.
        """
        _log_metrics(self.run_id, {_curve(name): value for name, value in metrics.items()}, epoch)

    def log_scores(self, metrics: Mapping[str, float]) -> None:
        """Log what the trial came to, to 6 decimals: f1 and the like on the validation blocks, seconds, best epoch."""
        _log_metrics(self.run_id, {name: round(value, 6) for name, value in metrics.items()}, 0)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Log what the trial was trained on, as an MLflow input.

        Args:
            name: of the data, as the UI shows it.
            digest: the data version (an MD5 in hex; MLflow keeps 36 characters).
            source: where it lies, relative to the project's root.
        """
        dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
        context = [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")]
        with speaking():
            connected().log_inputs(self.run_id, [DatasetInput(dataset, context)])


@contextmanager
def study(root: Path, name: str, tags: Mapping[str, str], note: str = "") -> Iterator[str]:
    """The parent run of a study, open while the block runs; its id is what `trial` asks for.

    When the block ends, the run is summarised. A block that raises leaves the run FAILED, with the
    reason as its tag `error`; Ctrl-C leaves it KILLED.

    Args:
        root: the project's root, absolute. Its store is made if there is none.
        name: as `7band · demo`.
        tags: such as band_set, search, data_version, commit.
        note: Markdown, shown as the run's description.

    Raises:
        RegistryError: the store cannot be used.
    """
    connect(root, create=True)
    with _run(name, tags, {}, parent=None) as run_id:
        _set_note(run_id, note)
        try:
            yield run_id
        finally:
            summarise(run_id, note)


@contextmanager
def trial(
    parent_run_id: str, name: str, hyperparameters: Mapping[str, float | int | str], tags: Mapping[str, str]
) -> Iterator[Trial]:
    """The run of a trial, open while the block runs; it ends as that of a study does.

    Args:
        parent_run_id: what `study` gave.
        name: the configuration, as `16 filters · lr 1e-3 · batch 8`.
        hyperparameters: logged as MLflow parameters.
        tags: such as band_set, search, data_version, commit.

    Raises:
        RegistryError: the store cannot be used.
    """
    with _run(name, tags, hyperparameters, parent=parent_run_id) as run_id:
        yield Trial(run_id)


def note(run_id: str, markdown: str) -> None:
    """Set a run's description."""
    _set_note(run_id, markdown)


def locate(run_id: str) -> str | None:
    """The id of a run, or of the one that `restore` made in its place; None where the store has neither."""
    client = connected()
    with speaking():
        try:
            if client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run_id
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        found = client.search_runs([experiment_id()], f"tags.{RESTORED} = '{run_id}'", max_results=1)
        return str(found[0].info.run_id) if found else None


def restore(
    run_id: str,
    name: str,
    hyperparameters: Mapping[str, float | int | str],
    scores: Mapping[str, float],
    tags: Mapping[str, str],
    parent: str | None = None,
) -> str:
    """Make a run in place of one that the store has lost; its tag `restored_from` says so. The new run's id."""
    with _run(name, {**tags, RESTORED: run_id}, hyperparameters, parent, "register") as made:
        Trial(made).log_scores(scores)
    return made


def summarise(parent_run_id: str, note: str) -> None:
    """Give a study the scores of its best trial, so that lists show them, and a note with a leaderboard of all."""
    client = connected()
    with speaking():
        runs = client.search_runs(
            [experiment_id()],
            f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}' and attributes.status = 'FINISHED'",
            order_by=["metrics.f1 DESC"],
        )
    scored = [(run.info.run_name, run.data.metrics) for run in runs if set(SCORES) <= set(run.data.metrics)]
    if scored:
        _log_metrics(parent_run_id, {score: scored[0][1][score] for score in SCORES}, 0)
    _set_note(parent_run_id, f"{_leaderboard(scored)}\n\n{note}".strip())


def _leaderboard(trials: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Trials by F1 as a Markdown table."""
    if not trials:
        return "No trial has finished."
    rows = [
        "| " + " | ".join([name, *(f"{metrics[score]:.3f}" for score in SCORES)]) + " |" for name, metrics in trials
    ]
    heading = ["| trial | F1 | precision | recall | IoU |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(["**Trials, by F1 on the validation blocks**", "", *heading, *rows])


def commit(root: Path) -> str:
    """The git commit of the project, with `+changes` where tracked files differ from it; `unknown` outside git.

    What the pipeline itself writes (dvc.lock, evaluation) does not count as a change.
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!evaluation")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{head}+changes" if changes else head


RESTORED = "restored_from"
UNKNOWN = "unknown"
SCORES = ("f1", "precision", "recall", "iou")  # of a trial, on the validation blocks


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def _run(
    name: str,
    tags: Mapping[str, str],
    parameters: Mapping[str, float | int | str],
    parent: str | None,
    command: str = "train",
) -> Iterator[str]:
    """A run that never stays open: FINISHED, FAILED or KILLED when the block has ended."""
    client = connected()
    family = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    with speaking():
        run = client.create_run(experiment_id(), run_name=name, tags={**_origin(command, tags), **tags, **family})
        run_id = str(run.info.run_id)
    try:
        with speaking():
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
        yield run_id
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        with speaking():
            reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
            client.log_batch(run_id, tags=[RunTag("error", reason[:500])])
            client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED if stopped else RunStatus.FAILED))
        raise
    with speaking():
        client.set_terminated(run_id)


def _origin(command: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What the UI's columns Source, Version and User show."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "unknown"
    origin = {
        mlflow_tags.MLFLOW_SOURCE_NAME: f"talud {command} {tags.get('band_set', '')}".strip(),
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        mlflow_tags.MLFLOW_USER: user,
        "talud": version("talud"),
    }
    sha = tags.get("commit", UNKNOWN).removesuffix("+changes")
    if sha != UNKNOWN:
        origin[mlflow_tags.MLFLOW_GIT_COMMIT] = sha
    return origin


def _log_metrics(run_id: str, metrics: Mapping[str, float], step: int) -> None:
    now = int(time.time() * 1000)
    with speaking():
        connected().log_batch(run_id, [Metric(name, float(value), now, step) for name, value in metrics.items()])


def _curve(name: str) -> str:
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"


def _set_note(run_id: str, markdown: str) -> None:
    with speaking():
        connected().set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, markdown)
