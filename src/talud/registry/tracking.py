"""Studies and trials as MLflow runs: a parent run for each study, a child run for each of its trials.

A run is known again by its tags, so that what was interrupted goes on in the run that it began.
"""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from talud.errors import RegistryError, TaludWarning
from talud.project import identifier
from talud.registry.leaderboard import SUPERSEDED, summarise
from talud.registry.store import connect, connected, experiment_id, impatient, speaking, user


@dataclass(frozen=True)
class Trial:
    """A trial's run, while it is open."""

    run_id: str

    def log_epochs(self, epochs: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log epochs' metrics: a point on each learning curve at each. Logging one again changes nothing.

        What Keras calls `val_f1` becomes `validation/f1` and `f1` becomes `training/f1`: the UI groups the curves so,
        and the bare names are left to the scores.

        Args:
            epochs: of each its number, counted from 1, when it ended, in milliseconds since 1970, and its metrics.
        """
        points = [
            Metric(_curve(name), float(value), time, number)
            for number, time, metrics in epochs
            for name, value in metrics.items()
        ]
        with speaking():
            for first in range(0, len(points), BATCH):
                connected().log_batch(self.run_id, points[first : first + BATCH])

    @property
    def logged_epochs(self) -> int:
        """The last epoch whose metrics the run has; 0 where it has none."""
        with speaking():
            curve = connected().get_metric_history(self.run_id, _curve("loss"))
        return max((point.step for point in curve), default=0)

    def log_scores(self, metrics: Mapping[str, float]) -> None:
        """Log what the trial came to, to 6 decimals, seconds to one: f1 and the like on the validation blocks.

        Where the run has the same already, nothing is logged.
        """
        rounded = {name: round(float(value), 1 if name == "seconds" else 6) for name, value in metrics.items()}
        with speaking():
            present = connected().get_run(self.run_id).data.metrics
        changed = {name: value for name, value in rounded.items() if present.get(name) != value}
        if changed:
            _log_metrics(self.run_id, changed, 0)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Log what the trial was trained on, as an MLflow input, unless the run has one.

        Args:
            name: of the data, as the UI shows it.
            digest: the data version (an MD5 in hex; MLflow keeps 36 characters).
            source: where it lies, relative to the project's root.
        """
        dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
        context = [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")]
        with speaking():
            inputs = connected().get_run(self.run_id).inputs
        if inputs and inputs.dataset_inputs:
            return
        try:
            self._log_input(DatasetInput(dataset, context))
        except RegistryError as error:
            if "INSERT INTO datasets" not in str(error):  # each database has its own words for what stands twice
                raise
            self._log_input(DatasetInput(dataset, context))  # another trial logged the same data in the same moment

    def _log_input(self, data: DatasetInput) -> None:
        with speaking():
            connected().log_inputs(self.run_id, [data])


@contextmanager
def study(root: Path, name: str, tags: Mapping[str, str], note: str = "") -> Iterator[str]:
    """The parent run of a study, open while the block runs; its id is what `trial` asks for.

    When the block ends, the run is summarised. A block that raises leaves the run FAILED, with the
    reason as its tag `error`; Ctrl-C leaves it KILLED. The run of an earlier process that has the same tags `study` and
    `project` is opened again, and runs of the same project and band set that a process left behind when it was killed
    end as KILLED.

    Args:
        root: the project's root, absolute. Its store is made if there is none.
        name: as `7band · demo`.
        tags: such as band_set, search, data_version, commit, and `study`, by which it is known again.
        note: Markdown, shown as the run's description.

    Raises:
        RegistryError: the store cannot be used.
        OutputError: the project has no id yet, and none can be kept.
    """
    connect(root, create=True)
    tags = {**tags, "project": identifier(root)}
    _end_left_behind(tags)
    if begun := _unfinished(tags):
        warnings.warn(
            f"the study of {tags['band_set']} (search {tags['search']}) that began on {begun} is unfinished, and "
            "data, params.yaml or the versions of talud have changed since; its trials start anew",
            TaludWarning,
            stacklevel=4,
        )
    with _run(name, tags, {}, parent=None, key="study") as run_id:
        _set_note(run_id, note)
        try:
            yield run_id
        except BaseException:
            with suppress(RegistryError), impatient():  # a server that is gone must not hide the error
                _end_children(run_id)
                summarise(run_id, note)
            raise
        summarise(run_id, note)


@contextmanager
def trial(
    parent_run_id: str,
    name: str,
    hyperparameters: Mapping[str, float | int | str],
    tags: Mapping[str, str],
    epochs: int = 0,
) -> Iterator[Trial]:
    """The run of a trial, open while the block runs; it ends as that of a study does, and is opened again likewise.

    Args:
        parent_run_id: what `study` gave.
        name: the configuration, as `16 filters · lr 1e-3 · batch 8`.
        hyperparameters: logged as MLflow parameters.
        tags: such as band_set, search, data_version, commit, and `trial`, by which it is known again in its study.
        epochs: that the trial can go on from. An earlier run that has logged more is deleted, for its rest is lost;
            where a registered version came from it, it stays as it is, and a new one takes its place in the study.

    Raises:
        RegistryError: the store cannot be used.
    """
    client = connected()
    with speaking():
        tags = {**tags, "project": client.get_run(parent_run_id).data.tags["project"]}
        for run_id in _earlier("trial", tags, parent_run_id):
            logged = Trial(run_id).logged_epochs
            if logged != epochs and client.search_model_versions(f"run_id = '{run_id}'"):
                client.set_tag(run_id, SUPERSEDED, "its trial was trained again; a registered version came from it")
            elif logged > epochs:
                client.delete_run(run_id)
    with _run(name, tags, hyperparameters, parent=parent_run_id, key="trial") as run_id:
        yield Trial(run_id)


@contextmanager
def derivation(
    command: str, name: str, parameters: Mapping[str, float | int | str], tags: Mapping[str, str]
) -> Iterator[Trial]:
    """The run in which a model is made of a registered one, open while the block runs; it belongs to no study.

    Args:
        command: that makes it, as `adapt`.
        name: of the run.
        parameters: logged as MLflow parameters.
        tags: such as band_set, data_version, commit.

    Raises:
        RegistryError: the store cannot be used.
    """
    with _run(name, tags, parameters, parent=None, command=command) as run_id:
        yield Trial(run_id)


def finished(parent_run_id: str, key: str, epochs: int) -> str | None:
    """The id of a trial's run, where it is FINISHED and has all epochs."""
    with speaking():
        for run_id in _known({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id, "trial": key}):
            run = connected().get_run(run_id)
            if run.info.status == "FINISHED" and "f1" in run.data.metrics and Trial(run_id).logged_epochs == epochs:
                return run_id
    return None


def note(run_id: str, markdown: str) -> None:
    """Set a run's description."""
    _set_note(run_id, markdown)


def locate(run_id: str) -> str | None:
    """The id of a run, or of the one that `restore` made in its place, whole; None where the store has neither."""
    client = connected()
    with speaking():
        try:
            if client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run_id
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        whole = f"tags.{RESTORED} = '{run_id}' and attributes.status = 'FINISHED'"
        found = client.search_runs([experiment_id()], whole, max_results=1)
        return str(found[0].info.run_id) if found else None


def restore(
    run_id: str,
    name: str,
    hyperparameters: Mapping[str, float | int | str],
    scores: Mapping[str, float],
    tags: Mapping[str, str],
    parent: str | None = None,
) -> str:
    """Make a run in place of one that the store has lost, as its tag `restored_from` says, or make it whole; its id."""
    with _run(name, {**tags, RESTORED: run_id}, hyperparameters, parent, "register", RESTORED) as made:
        Trial(made).log_scores(scores)
    return made


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
ERROR = "error"  # the tag that says why a run came to nothing
BATCH = 1000  # metrics that MLflow takes at once


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
    key: str | None = None,
) -> Iterator[str]:
    """A run that never stays open: FINISHED, FAILED or KILLED when the block has ended.

    Args:
        name: of the run.
        tags: of it.
        parameters: logged with it.
        parent: the run that it belongs to.
        command: that makes it.
        key: the tag by which it is known again in its parent, or project: an earlier one is opened again.
    """
    client = connected()
    family = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    with speaking():
        earlier = _earlier(key, tags, parent) if key else []
        if earlier:
            run_id = earlier[0]
            client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            _forget_error(run_id)
        else:
            run = client.create_run(experiment_id(), run_name=name, tags={**_origin(command, tags), **tags, **family})
            run_id = str(run.info.run_id)
    try:
        with speaking():
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
        yield run_id
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        with suppress(RegistryError), impatient():  # a server that is gone must not hide the error
            _end(run_id, RunStatus.KILLED if stopped else RunStatus.FAILED, f"{type(error).__name__}: {error}")
        raise
    with speaking():
        _forget_error(run_id)  # a worker that nobody waited for may have ended it meanwhile
        client.set_terminated(run_id)


def _forget_error(run_id: str) -> None:
    client = connected()
    if ERROR in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, ERROR)


def _end(run_id: str, status: int, reason: str) -> None:
    client = connected()
    with speaking():
        client.log_batch(run_id, tags=[RunTag(ERROR, " ".join(reason.split()).removesuffix(":")[:500])])
        client.set_terminated(run_id, RunStatus.to_string(status))


def _earlier(key: str, tags: Mapping[str, str], parent: str | None) -> list[str]:
    """The runs that have the same key, in a parent, or without one in the same project; none where there is no key."""
    if key not in tags:
        return []
    ours = {"project": tags["project"]} if "project" in tags else {}  # a restored run belongs to no project
    place = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else ours
    return _known({key: tags[key], **place})


def _known(tags: Mapping[str, str]) -> list[str]:
    """The ids of the runs that have tags and are not superseded, the oldest first."""
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    found = connected().search_runs([experiment_id()], condition, order_by=["attributes.start_time"])
    return [str(run.info.run_id) for run in found if SUPERSEDED not in run.data.tags]


def _end_left_behind(tags: Mapping[str, str]) -> None:
    """End the runs of a project's band set that are still open, but for those of the study that now goes on."""
    ours = {name: tags.get(name, "") for name in ("project", "band_set")}
    with speaking():
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in ours.items())
        open_ones = connected().search_runs([experiment_id()], f"{condition} and attributes.status = 'RUNNING'")
    for run in open_ones:
        if run.data.tags.get("study") != tags.get("study"):
            _end(str(run.info.run_id), RunStatus.KILLED, "its process ended without a word")


def _unfinished(tags: Mapping[str, str]) -> str | None:
    """Return the day on which an unfinished study began that the one of these tags replaces, if there is one."""
    if "study" not in tags or "search" not in tags or _earlier("study", tags, None):
        return None
    ours = {name: tags[name] for name in ("project", "band_set", "search")}
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in ours.items())
    with speaking():
        found = connected().search_runs([experiment_id()], condition, order_by=["attributes.start_time DESC"])
    studies = (run for run in found if mlflow_tags.MLFLOW_PARENT_RUN_ID not in run.data.tags)
    latest = next((run for run in studies if "study" in run.data.tags), None)
    if latest is None or latest.info.status == "FINISHED":
        return None
    return f"{datetime.fromtimestamp(latest.info.start_time / 1000, UTC):%Y-%m-%d}"


def _end_children(parent_run_id: str) -> None:
    """End the trials of a study that stops; those that workers are at find out themselves, or were killed."""
    with speaking():
        for run_id in _known({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id}):
            if connected().get_run(run_id).info.status == "RUNNING":
                _end(run_id, RunStatus.KILLED, "stopped with its study")


def _origin(command: str, tags: Mapping[str, str]) -> dict[str, str]:
    """What the UI's columns Source, Version and User show."""
    origin = {
        mlflow_tags.MLFLOW_SOURCE_NAME: f"talud {command} {tags.get('band_set', '')}".strip(),
        mlflow_tags.MLFLOW_SOURCE_TYPE: "LOCAL",
        mlflow_tags.MLFLOW_USER: user(),
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
