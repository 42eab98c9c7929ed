"""Runs in MLflow: a run for each study, and below it one for each of its trials.

A run is found again by its tags, so that an interrupted study resumes in the run that it began.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from talud.errors import RegistryError, TaludWarning
from talud.project import project_id
from talud.registry.connection import experiment_id, metrics, origin_tags, short_timeouts, translated_errors
from talud.registry.files import log_file
from talud.registry.leaderboard import SUPERSEDED_TAG, write_summary
from talud.text import utc_text

RESTORED_TAG = "restored_from"  # the tag of a run that was made in place of a lost one
ERROR_TAG = "error"  # the tag with the reason why a run failed
METRICS_PER_REQUEST = 1000  # the limit of MLflow


@dataclass(frozen=True)
class RunInfo:
    """A run, as the store has it.

    Attributes:
        run_id: the run's id; another than was asked for if it was restored in place of a lost one.
        started: the start, in UTC.
    """

    run_id: str
    name: str
    user: str
    started: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class TrialRun:
    """The run of a trial, while it is open."""

    client: MlflowClient
    run_id: str

    def log_epochs(self, epochs: Sequence[tuple[int, int, Mapping[str, float]]]) -> None:
        """Log the metrics of epochs, as points on learning curves.

        Logging an epoch again changes nothing. Keras's `val_f1` becomes `validation/f1`, and `f1` becomes
        `training/f1`: the UI groups the curves so, and the bare names are left to the scores.

        Args:
            epochs: number, counted from 1, time of the end in milliseconds since 1970, and metrics of each epoch.
        """
        points = [
            Metric(_curve(name), float(value), time, number)
            for number, time, metrics in epochs
            for name, value in metrics.items()
        ]
        with translated_errors():
            for first in range(0, len(points), METRICS_PER_REQUEST):
                self.client.log_batch(self.run_id, points[first : first + METRICS_PER_REQUEST])

    @property
    def logged_epochs(self) -> int:
        """The last epoch whose metrics the run has; 0 if it has none."""
        with translated_errors():
            curve = self.client.get_metric_history(self.run_id, _curve("loss"))
        return max((point.step for point in curve), default=0)

    def log_scores(self, scores: Mapping[str, float]) -> None:
        """Log the scores of the trial on the validation blocks.

        They are rounded to 6 decimals, seconds to one. Scores that the run has already are not logged again.
        """
        rounded = {name: round(float(value), 1 if name == "seconds" else 6) for name, value in scores.items()}
        with translated_errors():
            present = self.client.get_run(self.run_id).data.metrics
            changed = {name: value for name, value in rounded.items() if present.get(name) != value}
            if changed:
                self.client.log_batch(self.run_id, metrics(changed))

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Log the training data as an MLflow input, unless the run has one.

        Args:
            name: the name of the data in the UI.
            digest: the data version (an MD5 in hex; MLflow keeps 36 characters).
            source: the path of the data, relative to the project's root.
        """
        dataset = Dataset(name, digest, source_type="local", source=json.dumps({"uri": source}))
        context = [InputTag(mlflow_tags.MLFLOW_DATASET_CONTEXT, "training")]
        with translated_errors():
            inputs = self.client.get_run(self.run_id).inputs
        if inputs and inputs.dataset_inputs:
            return
        try:
            self._log_input(DatasetInput(dataset, context))
        except RegistryError as error:
            if "INSERT INTO datasets" not in str(error):  # each database has its own words for a duplicate
                raise
            self._log_input(DatasetInput(dataset, context))  # another trial logged the same data in the same moment

    def _log_input(self, data: DatasetInput) -> None:
        with translated_errors():
            self.client.log_inputs(self.run_id, [data])


@dataclass(frozen=True)
class Runs:
    """The runs of a store.

    Attributes:
        client: a client of the store.
        root: the project's root, absolute; None outside a project, where no study can be run.
    """

    client: MlflowClient
    root: Path | None

    @contextmanager
    def study(self, name: str, tags: Mapping[str, str], note: str = "") -> Iterator[str]:
        """Open the run of a study while the block runs; yield its id, which `trial` takes.

        When the block ends, the run is summarised. A block that raises leaves the run FAILED, with the reason as its
        tag `error`; Ctrl-C leaves it KILLED. The run of an earlier process that has the same tags `study` and
        `project` is opened again, and runs of the same project and band set that a killed process left open end as
        KILLED.

        Args:
            name: the name of the run, such as `7band · demo`.
            tags: tags such as band_set, search, data_version, commit, and `study`, by which the run is found again.
            note: Markdown, shown as the run's description.

        Raises:
            RegistryError: the store cannot be used, or this is no project.
            OutputError: the project has no id yet, and none can be kept.
        """
        if self.root is None:
            raise RegistryError("a study belongs to a project; change into one")
        tags = {**tags, "project": project_id(self.root)}
        self._end_abandoned(tags)
        if begun := self._unfinished(tags):
            warnings.warn(
                f"the study of {tags['band_set']} (search {tags['search']}) that began on {begun} is unfinished, and "
                "data, params.yaml or the versions of talud have changed since; its trials start anew",
                TaludWarning,
                stacklevel=4,
            )
        with self._run(name, tags, {}, parent=None, key="study") as run_id:
            with translated_errors():
                self.client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, note)
            try:
                yield run_id
            except BaseException:
                with suppress(RegistryError), short_timeouts():  # a server that is gone must not hide the error
                    self._end_children(run_id)
                    self.summarise(run_id, note)
                raise
            self.summarise(run_id, note)

    @contextmanager
    def trial(
        self,
        parent_run_id: str,
        name: str,
        hyperparameters: Mapping[str, float | int | str],
        tags: Mapping[str, str],
        epochs: int = 0,
    ) -> Iterator[TrialRun]:
        """Open the run of a trial while the block runs.

        It ends as that of a study does, and is opened again likewise.

        Args:
            parent_run_id: the id of the study's run.
            name: the configuration, such as `16 filters · lr 1e-3 · batch 8`.
            hyperparameters: parameters to log.
            tags: tags such as band_set, search, data_version, commit, and `trial`, by which it is found again.
            epochs: the epoch from which the trial resumes. An earlier run that has logged more is deleted, as the rest
                is lost; if a registered version came from it, it stays, and a new run takes its place in the study.

        Raises:
            RegistryError: the store cannot be used.
        """
        with translated_errors():
            tags = {**tags, "project": self.client.get_run(parent_run_id).data.tags["project"]}
            for run_id in self._earlier("trial", tags, parent_run_id):
                logged = TrialRun(self.client, run_id).logged_epochs
                if logged != epochs and self.client.search_model_versions(f"run_id = '{run_id}'"):
                    reason = "its trial was trained again; a registered version came from it"
                    self.client.set_tag(run_id, SUPERSEDED_TAG, reason)
                elif logged > epochs:
                    self.client.delete_run(run_id)
        with self._run(name, tags, hyperparameters, parent=parent_run_id, key="trial") as run_id:
            yield TrialRun(self.client, run_id)

    @contextmanager
    def derivation(
        self, command: str, name: str, parameters: Mapping[str, float | int | str], tags: Mapping[str, str]
    ) -> Iterator[TrialRun]:
        """Open a run in which a model is made of a registered one.

        Args:
            command: the command that makes it, such as `adapt`.
            name: the name of the run.
            parameters: parameters to log.
            tags: tags such as band_set, data_version, commit.

        Raises:
            RegistryError: the store cannot be used.
        """
        with self._run(name, tags, parameters, parent=None, command=command) as run_id:
            yield TrialRun(self.client, run_id)

    def finished_trial(self, parent_run_id: str, key: str, epochs: int) -> str | None:
        """Return the id of a trial's run if it is FINISHED and has all epochs."""
        with translated_errors():
            for run_id in self._tagged({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id, "trial": key}):
                run = self.client.get_run(run_id)
                complete = run.info.status == "FINISHED" and "f1" in run.data.metrics
                if complete and TrialRun(self.client, run_id).logged_epochs == epochs:
                    return run_id
        return None

    def find(self, run_id: str) -> RunInfo | None:
        """Return a run, or the one that was restored in its place; None if missing."""
        found = self.locate(run_id) if re.fullmatch(r"[0-9a-f]{32}", run_id) else None
        if found is None:
            return None
        with translated_errors():
            entity = self.client.get_run(found)
        started = utc_text(datetime.fromtimestamp(entity.info.start_time / 1000, UTC))
        author = entity.data.tags.get(mlflow_tags.MLFLOW_USER, "")
        return RunInfo(found, entity.info.run_name or "", author, started, dict(entity.data.params))

    def locate(self, run_id: str) -> str | None:
        """Return the id of a run, or of the finished one restored in its place."""
        with translated_errors():
            try:
                if self.client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return run_id
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
            condition = f"tags.{RESTORED_TAG} = '{run_id}' and attributes.status = 'FINISHED'"
            found = self.client.search_runs([experiment_id(self.client)], condition, max_results=1)
            return str(found[0].info.run_id) if found else None

    def restore(
        self,
        run_id: str,
        name: str,
        hyperparameters: Mapping[str, float | int | str],
        scores: Mapping[str, float],
        tags: Mapping[str, str],
        parent: str | None = None,
    ) -> str:
        """Make a run in place of one that the store has lost; return its id.

        Its tag `restored_from` names the lost run. A restored run that is incomplete is completed.
        """
        with self._run(name, {**tags, RESTORED_TAG: run_id}, hyperparameters, parent, "register", RESTORED_TAG) as made:
            TrialRun(self.client, made).log_scores(scores)
        return made

    def log_file(self, run_id: str, content: bytes, name: str) -> None:
        """Store a file with a run, in place of one of the same name.

        Args:
            run_id: the id of a run, which may have ended.
            content: the content of the file.
            name: the path of the file below the run's artifacts, such as `examples/validation.png`.
        """
        log_file(self.client, run_id, content, name)

    def summarise(self, run_id: str, note: str) -> None:
        """Give the run of a study the scores of its best trial, a note, and a page."""
        write_summary(self.client, run_id, note)

    @contextmanager
    def _run(
        self,
        name: str,
        tags: Mapping[str, str],
        parameters: Mapping[str, float | int | str],
        parent: str | None,
        command: str = "train",
        key: str | None = None,
    ) -> Iterator[str]:
        """Open a run that is FINISHED, FAILED or KILLED when the block has ended.

        `key` is the tag by which an earlier run is found in its parent, or project, and opened again.
        """
        family = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else {}
        with translated_errors():
            earlier = self._earlier(key, tags, parent) if key else []
            if earlier:
                run_id = earlier[0]
                self.client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
                self._delete_error(run_id)
            else:
                all_tags = {**origin_tags(command, tags), **tags, **family}
                run_id = str(
                    self.client.create_run(experiment_id(self.client), run_name=name, tags=all_tags).info.run_id
                )
        try:
            with translated_errors():
                self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
            yield run_id
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
            with suppress(RegistryError), short_timeouts():  # a server that is gone must not hide the error
                status = RunStatus.KILLED if stopped else RunStatus.FAILED
                self._end(run_id, status, f"{type(error).__name__}: {error}")
            raise
        with translated_errors():
            self._delete_error(run_id)  # a worker that nobody waited for may have ended it meanwhile
            self.client.set_terminated(run_id)

    def _delete_error(self, run_id: str) -> None:
        if ERROR_TAG in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, ERROR_TAG)

    def _end(self, run_id: str, status: int, reason: str) -> None:
        with translated_errors():
            tag = RunTag(ERROR_TAG, " ".join(reason.split()).removesuffix(":")[:500])
            self.client.log_batch(run_id, tags=[tag])
            self.client.set_terminated(run_id, RunStatus.to_string(status))

    def _earlier(self, key: str, tags: Mapping[str, str], parent: str | None) -> list[str]:
        """Return the runs that have the same key, in a parent or else in the project.

        There are none if the tags do not hold the key.
        """
        if key not in tags:
            return []
        ours = {"project": tags["project"]} if "project" in tags else {}  # a restored run belongs to no project
        family = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else ours
        return self._tagged({key: tags[key], **family})

    def _tagged(self, tags: Mapping[str, str]) -> list[str]:
        """Return the runs with given tags that are not superseded, oldest first."""
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self.client.search_runs([experiment_id(self.client)], condition, order_by=["attributes.start_time"])
        return [str(run.info.run_id) for run in found if SUPERSEDED_TAG not in run.data.tags]

    def _end_abandoned(self, tags: Mapping[str, str]) -> None:
        """End the open runs of a project's band set, except those of this study."""
        ours = {name: tags.get(name, "") for name in ("project", "band_set")}
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in ours.items())
        with translated_errors():
            found = self.client.search_runs(
                [experiment_id(self.client)], f"{condition} and attributes.status = 'RUNNING'"
            )
        for run in found:
            if run.data.tags.get("study") != tags.get("study"):
                self._end(str(run.info.run_id), RunStatus.KILLED, "its process ended without a word")

    def _unfinished(self, tags: Mapping[str, str]) -> str | None:
        """Return the day on which an unfinished study began that this one replaces."""
        if "study" not in tags or "search" not in tags or self._earlier("study", tags, None):
            return None
        ours = {name: tags[name] for name in ("project", "band_set", "search")}
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in ours.items())
        order = ["attributes.start_time DESC"]
        with translated_errors():
            found = self.client.search_runs([experiment_id(self.client)], condition, order_by=order)
        studies = (run for run in found if mlflow_tags.MLFLOW_PARENT_RUN_ID not in run.data.tags)
        latest = next((run for run in studies if "study" in run.data.tags), None)
        if latest is None or latest.info.status == "FINISHED":
            return None
        return f"{datetime.fromtimestamp(latest.info.start_time / 1000, UTC):%Y-%m-%d}"

    def _end_children(self, parent_run_id: str) -> None:
        """End the trials of a study that stops; workers notice it, or were killed."""
        with translated_errors():
            for run_id in self._tagged({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id}):
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self._end(run_id, RunStatus.KILLED, "stopped with its study")


def _curve(name: str) -> str:
    return f"validation/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"
