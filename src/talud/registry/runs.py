"""Runs of studies and their trials in MLflow.

A run is identified by its tags, so that an interrupted study resumes in its own run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils import mlflow_tags

from talud.errors import RegistryError, TaludWarning
from talud.project import project_id
from talud.registry.connection import experiment_id, origin_tags, short_timeouts, translated_errors
from talud.registry.files import log_file
from talud.registry.leaderboard import SUPERSEDED_TAG, write_summary
from talud.registry.trial_run import TrialRun
from talud.text import utc_text

# Tag of a run that replaces a lost one: the id of the lost run.
RESTORED_TAG = "restored_from"
# Tag with the reason why a run failed.
ERROR_TAG = "error"


@dataclass(frozen=True)
class RunInfo:
    """Description of a run in the store.

    Attributes:
        run_id: id of the run; differs from the requested id if the run was restored in place of a lost one.
        name: name of the run.
        user: user who started it; empty if unknown.
        started: start time in UTC.
        parameters: logged parameters.
    """

    run_id: str
    name: str
    user: str
    started: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Runs:
    """Runs of a store.

    Attributes:
        client: client of the store.
        root: absolute root of the project; None outside a project, where no study can run.
    """

    client: MlflowClient
    root: Path | None

    @contextmanager
    def study(self, name: str, tags: Mapping[str, str], note: str = "") -> Iterator[str]:
        """Open a study's run for the block; yield its id.

        When the block ends, the run is summarised. If it raises, the run is FAILED, with the reason as its tag `error`;
        after Ctrl-C it is KILLED. A run of an earlier process with the same tags `study` and `project` is resumed, and
        runs of the same project and band set that a killed process left open become KILLED.

        Args:
            name: name of the run, such as `7band · demo`.
            tags: tags such as band_set, search, data_version and commit, and `study`, which identifies the run.
            note: Markdown, shown as the run's description.

        Raises:
            RegistryError: The store is not available, or there is no project.
            OutputError: The id of the project cannot be written.
        """
        if self.root is None:
            raise RegistryError("a study needs a project; change into the folder of one")
        tags = {**tags, "project": project_id(self.root)}
        self._end_abandoned(tags)
        if started := self._unfinished(tags):
            warnings.warn(
                f"the study of {tags['band_set']} (search {tags['search']}) that began on {started} is unfinished, and "
                "data, params.yaml or the versions of talud have changed since; its trials start again",
                TaludWarning,
                stacklevel=4,
            )
        with self._run(name, tags, {}, parent=None, key="study") as run_id:
            with translated_errors():
                self.client.set_tag(run_id, mlflow_tags.MLFLOW_RUN_NOTE, note)
            try:
                yield run_id
            except BaseException:
                with suppress(RegistryError), short_timeouts():  # an unavailable server must not hide the error
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
        """Open a trial's run for the block.

        It ends and resumes in the same way as the run of a study.

        Args:
            parent_run_id: id of the study's run.
            name: configuration, such as `16 filters · lr 1e-3 · batch 8`.
            hyperparameters: parameters to log.
            tags: tags such as band_set, search, data_version and commit, and `trial`, which identifies the run.
            epochs: epoch from which the trial resumes. An earlier run with more logged epochs is deleted, because its
                checkpoint was lost; if a registered version came from it, it is kept, and a new run replaces it in the
                study.

        Raises:
            RegistryError: The store is not available.
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
        """Open the run of a model's adaptation or fine-tuning.

        Args:
            command: command that makes the model, such as `adapt`.
            name: name of the run.
            parameters: parameters to log.
            tags: tags such as band_set, data_version and commit.

        Raises:
            RegistryError: The store is not available.
        """
        with self._run(name, tags, parameters, parent=None, command=command) as run_id:
            yield TrialRun(self.client, run_id)

    def finished_trial(self, parent_run_id: str, key: str, epochs: int) -> str | None:
        """Return the id of a trial's run if it is complete.

        It must be FINISHED and have the scores and all epochs.
        """
        with translated_errors():
            for run_id in self._tagged({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id, "trial": key}):
                run = self.client.get_run(run_id)
                complete = run.info.status == "FINISHED" and "f1" in run.data.metrics
                if complete and TrialRun(self.client, run_id).logged_epochs == epochs:
                    return run_id
        return None

    def find(self, run_id: str) -> RunInfo | None:
        """Return a run or its restored copy, if any."""
        found = self.locate(run_id) if re.fullmatch(r"[0-9a-f]{32}", run_id) else None
        if found is None:
            return None
        with translated_errors():
            entity = self.client.get_run(found)
        started = utc_text(datetime.fromtimestamp(entity.info.start_time / 1000, UTC))
        author = entity.data.tags.get(mlflow_tags.MLFLOW_USER, "")
        return RunInfo(found, entity.info.run_name or "", author, started, dict(entity.data.params))

    def locate(self, run_id: str) -> str | None:
        """Return the id of a run or its restored copy."""
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
        """Create a run in place of a lost one; return its id.

        The tag `restored_from` names the lost run. An incomplete restored run is completed.

        Args:
            run_id: id of the lost run.
            name: name of the run.
            hyperparameters: parameters to log.
            scores: scores to log.
            tags: tags to set.
            parent: id of the study's run, if there is one.
        """
        with self._run(name, {**tags, RESTORED_TAG: run_id}, hyperparameters, parent, "register", RESTORED_TAG) as made:
            TrialRun(self.client, made).log_scores(scores)
        return made

    def log_file(self, run_id: str, content: bytes, name: str) -> None:
        """Store a file with a run, or replace it.

        Args:
            run_id: id of a run, which may have ended.
            content: content of the file.
            name: path of the file below the run's artifacts, such as `examples/validation.png`.
        """
        log_file(self.client, run_id, content, name)

    def summarise(self, run_id: str, note: str) -> None:
        """Write scores, note and page to a study's run."""
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
        """Open a run for the block.

        Args:
            name: name of the run.
            tags: tags to set.
            parameters: parameters to log.
            parent: id of the parent run, if there is one.
            command: command that starts the run.
            key: tag that identifies an earlier run in the parent, or else in the project, which is resumed.
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
            with suppress(RegistryError), short_timeouts():  # an unavailable server must not hide the error
                status = RunStatus.KILLED if stopped else RunStatus.FAILED
                self._end(run_id, status, f"{type(error).__name__}: {error}")
            raise
        with translated_errors():
            self._delete_error(run_id)  # a cancelled worker may have set it meanwhile
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
        """Return the runs with the same key, oldest first.

        The list is empty if the tags lack the key.
        """
        if key not in tags:
            return []
        scope = {"project": tags["project"]} if "project" in tags else {}  # a restored run has no project
        family = {mlflow_tags.MLFLOW_PARENT_RUN_ID: parent} if parent else scope
        return self._tagged({key: tags[key], **family})

    def _tagged(self, tags: Mapping[str, str]) -> list[str]:
        """Return runs with given tags, without superseded ones."""
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        found = self.client.search_runs([experiment_id(self.client)], condition, order_by=["attributes.start_time"])
        return [str(run.info.run_id) for run in found if SUPERSEDED_TAG not in run.data.tags]

    def _end_abandoned(self, tags: Mapping[str, str]) -> None:
        """End a band set's open runs of other studies."""
        scope = {name: tags.get(name, "") for name in ("project", "band_set")}
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in scope.items())
        with translated_errors():
            found = self.client.search_runs(
                [experiment_id(self.client)], f"{condition} and attributes.status = 'RUNNING'"
            )
        for run in found:
            if run.data.tags.get("study") != tags.get("study"):
                self._end(str(run.info.run_id), RunStatus.KILLED, "its process ended without an error message")

    def _unfinished(self, tags: Mapping[str, str]) -> str | None:
        """Return the start date of an unfinished earlier study."""
        if "study" not in tags or "search" not in tags or self._earlier("study", tags, None):
            return None
        scope = {name: tags[name] for name in ("project", "band_set", "search")}
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in scope.items())
        order = ["attributes.start_time DESC"]
        with translated_errors():
            found = self.client.search_runs([experiment_id(self.client)], condition, order_by=order)
        studies = (run for run in found if mlflow_tags.MLFLOW_PARENT_RUN_ID not in run.data.tags)
        latest = next((run for run in studies if "study" in run.data.tags), None)
        if latest is None or latest.info.status == "FINISHED":
            return None
        return f"{datetime.fromtimestamp(latest.info.start_time / 1000, UTC):%Y-%m-%d}"

    def _end_children(self, parent_run_id: str) -> None:
        """End the open trial runs of a stopped study."""
        with translated_errors():
            for run_id in self._tagged({mlflow_tags.MLFLOW_PARENT_RUN_ID: parent_run_id}):
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self._end(run_id, RunStatus.KILLED, "stopped with its study")
