"""Leaderboard of a study: ranked trials, a note and a page in MLflow's UI."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.utils import mlflow_tags

from talud.params.networks import PLAIN_UNET
from talud.registry.connection import SCORES, metrics, translated_errors
from talud.registry.files import log_file
from talud.text import html_environment

# Tag of a run whose trial was trained again.
SUPERSEDED_TAG = "superseded"
PAGE_FILE = "trials.html"
TRIALS_IN_NOTE = 20
FAILURES_IN_NOTE = 10
# Length of a failure's reason in a note, of which MLflow keeps 8000 characters.
_REASON_CHARACTERS = 200

# View of the experiment that `talud ui` opens.
VIEW = "trials"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_COLUMNS = (
    "metrics.`f1`",
    *(f"params.`{choice}`" for choice in ("network", "filters", "learning_rate", "batch_size")),
    *(f"metrics.`{score}`" for score in ("best_epoch", "seconds", "precision", "recall", "iou")),
)
_VIEW_STATE = {
    "searchFilter": "tags.`mlflow.parentRunId` != ''",
    "orderByKey": "metrics.`f1`",
    "orderByAsc": False,
    "selectedColumns": [*_COLUMNS, "attributes.`Models`"],
    "columnOrder": ["0", "attributes.`Run Name`", *_COLUMNS, "attributes.`Models`"],
    "columnWidths": {"attributes.`Run Name`": 380} | dict.fromkeys(_COLUMNS, 105) | {"params.`network`": 145},
}
# Settings of the UI, and the note of the experiment.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    VIEW_TAG: json.dumps(_VIEW_STATE),
    mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: "f1",
    mlflow_tags.MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER: "True",
    mlflow_tags.MLFLOW_RUN_NOTE: "Networks that map landslides: a run for each study, with a child run for each trial.",
}


@dataclass(frozen=True)
class FinishedTrial:
    """Trial with scores.

    Attributes:
        run_id: id of its run.
        name: configuration, without the band set that all trials of a study share.
        values: scores, `best_epoch`, `seconds` and `parameters`, and the numeric hyperparameters.
        network: name of the network.
    """

    run_id: str
    name: str
    values: Mapping[str, float]
    network: str = PLAIN_UNET


@dataclass(frozen=True)
class FailedTrial:
    """Trial that failed, with the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """Trials of a study in the store.

    Attributes:
        run_id: id of the study's run.
        study: name of the study.
        experiment: id of its experiment.
        finished: finished trials by descending validation F1; of equal ones the smallest network, then the earliest.
        failed: failed trials in the order of their start.
        unfinished: number of trials that were stopped or are still running.
    """

    run_id: str
    study: str
    experiment: str
    finished: tuple[FinishedTrial, ...]
    failed: tuple[FailedTrial, ...]
    unfinished: int

    @classmethod
    def read(cls, client: MlflowClient, run_id: str) -> Self:
        """Read a study's trials from the store.

        A trial that failed or was stopped, and finished in a later attempt, counts as finished.

        Raises:
            RegistryError: The store is not available, or does not have the run.
        """
        with translated_errors():
            parent = client.get_run(run_id)
            experiment = str(parent.info.experiment_id)
            runs = sorted(_children(client, experiment, run_id), key=lambda run: int(run.info.start_time))
        finished = [_finished(run) for run in runs if run.info.status == "FINISHED" and run.data.metrics.keys() >= _ALL]
        done = {trial.name for trial in finished}
        others = {_name(run): run for run in runs if _name(run) not in done}  # the last of several attempts
        failed = [
            FailedTrial(name, run.data.tags.get("error", "no reason recorded"))
            for name, run in others.items()
            if run.info.status == "FAILED"
        ]
        ranked = sorted(finished, key=lambda trial: (-trial.values["f1"], trial.values.get("parameters", 0)))
        if len({trial.network for trial in ranked}) > 1:  # the names of trials of the plain U-Net do not state it
            ranked = [
                replace(trial, name=f"{PLAIN_UNET} · {trial.name}") if trial.network == PLAIN_UNET else trial
                for trial in ranked
            ]
        synthetic = ", synthetic data" if parent.data.tags.get("data") == "synthetic" else ""
        name = f"{parent.info.run_name}{synthetic}"
        return cls(run_id, name, experiment, tuple(ranked), tuple(failed), len(others) - len(failed))

    @property
    def markdown(self) -> str:
        """Note of the study's run: best trial, table and failures.

        The best trial is first, because the UI collapses all but the first lines.
        """
        parts = [self._headline, self._table] if self.finished else ["No trial has finished."]
        if self.failed:
            more = len(self.failed) - FAILURES_IN_NOTE
            reasons = [f"- {_plain(one.name)}: {_plain(one.reason)}" for one in self.failed[:FAILURES_IN_NOTE]]
            parts.append("\n".join([f"**Failed: {len(self.failed)}**", "", *reasons]))
            parts += [f"and {more} more; the tag `error` of each run states the reason."] if more > 0 else []
        if self.unfinished:
            parts.append(f"Not finished: {self.unfinished}.")
        return "\n\n".join(parts)

    @property
    def _headline(self) -> str:
        count, best = len(self.finished), self.finished[0]
        of = f"Best of {count} finished trials" if count > 1 else "The one finished trial"
        page = f"[{PAGE_FILE}]({self._address(self.run_id)}/artifacts/{PAGE_FILE})"
        return f"**{of}: {self._link(best)}, validation F1 {best.values['f1']:.3f}.** All of them: {page}."

    @property
    def _table(self) -> str:
        titles = ("trial", "F1", "precision", "recall", "IoU", "epoch kept", "seconds")
        heading = ["| | " + _cells(titles), "| ---: | --- |" + " ---: |" * (len(titles) - 1)]
        rows = [
            f"| {place} | "
            + _cells((self._link(trial), *(f"{trial.values[score]:.3f}" for score in SCORES), *_facts(trial)))
            for place, trial in enumerate(self.finished[:TRIALS_IN_NOTE], start=1)
        ]
        rest = [trial.values["f1"] for trial in self.finished[TRIALS_IN_NOTE:]]
        more = ["", f"and {len(rest)} more with an F1 of {rest[-1]:.3f} to {rest[0]:.3f}."] if rest else []
        return "\n".join([*heading, *rows, *more])

    def _link(self, trial: FinishedTrial) -> str:
        return f"[{_plain(trial.name)}]({self._address(trial.run_id)})"

    def _address(self, run_id: str) -> str:
        """Return the relative address of a run in the UI."""
        return f"#/experiments/{self.experiment}/runs/{run_id}"

    def html(self) -> str:
        """Return all trials as an HTML page."""
        return trials_page(self.study, self.finished, self.failed)


def write_summary(client: MlflowClient, run_id: str, note: str) -> None:
    """Write scores, note and page to a study's run.

    Args:
        client: client of the store.
        run_id: id of the study's run.
        note: Markdown that follows the leaderboard.

    Raises:
        RegistryError: The store is not available, or is full.
    """
    board = Leaderboard.read(client, run_id)
    best = {score: board.finished[0].values[score] for score in SCORES} if board.finished else {}
    tags = [RunTag(mlflow_tags.MLFLOW_RUN_NOTE, f"{board.markdown}\n\n{note}".strip())]
    with translated_errors():
        client.log_batch(run_id, metrics(best), tags=tags)
    if board.finished:
        log_file(client, run_id, board.html().encode(), PAGE_FILE)


@dataclass(frozen=True)
class Axis:
    """Axis of the parallel coordinates.

    Attributes:
        key: name of its values in a trial.
        label: human-readable label.
        number_format: format of a number in the table, as for `str.format`.
        chosen: true for a hyperparameter, which is drawn on a logarithmic axis.
    """

    key: str
    label: str
    number_format: str
    chosen: bool = False


AXES = (
    Axis("filters", "Filters", "{:.0f}", chosen=True),
    Axis("learning_rate", "Learning rate", "{:g}", chosen=True),
    Axis("batch_size", "Batch size", "{:.0f}", chosen=True),
    Axis("best_epoch", "Best epoch", "{:.0f}"),
    Axis("seconds", "Seconds", "{:.0f}"),
    Axis("f1", "Validation F1", "{:.3f}"),
)


def trials_page(study: str, finished: Sequence[FinishedTrial], failed: Sequence[FailedTrial]) -> str:
    """Render the trials of a study as an HTML page.

    Equal trials give equal bytes.

    Args:
        study: name of the study.
        finished: finished trials, best first, at least one.
        failed: failed trials.
    """
    axes = [axis for axis in AXES if all(_drawable(axis, trial) for trial in finished)]
    drawn: list[dict[str, object]] = [{"label": axis.label, "chosen": axis.chosen, "names": None} for axis in axes]
    values = [[trial.values[axis.key] for axis in axes] for trial in finished]
    shown = [[axis.number_format.format(trial.values[axis.key]) for axis in axes] for trial in finished]
    networks = list(dict.fromkeys(trial.network for trial in finished))[::-1]  # that of the best trial on top
    if set(networks) - {PLAIN_UNET}:
        drawn.insert(0, {"label": "Network", "chosen": True, "names": networks})
        for trial, numbers, texts in zip(finished, values, shown, strict=True):
            numbers.insert(0, networks.index(trial.network))
            texts.insert(0, trial.network)
    data = {
        "axes": drawn,
        "trials": [
            {"name": trial.name, "values": numbers, "shown": texts}
            for trial, numbers, texts in zip(finished, values, shown, strict=True)
        ],
    }
    return (
        html_environment("talud.registry")
        .get_template("trials.html")
        .render(
            study=study,
            axes=drawn,
            rows=list(zip(finished, shown, strict=True)),
            failed=[(trial.name, trial.reason) for trial in failed],
            data=data,
        )
    )


def _drawable(axis: Axis, trial: FinishedTrial) -> bool:
    value = trial.values.get(axis.key)
    return value is not None and (value > 0 or not axis.chosen)


_ALL = frozenset(SCORES)


def _children(client: MlflowClient, experiment: str, parent_run_id: str) -> Iterator[Run]:
    """Yield a study's trial runs that are not superseded."""
    token = None
    while True:
        condition = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}'"
        page = client.search_runs([experiment], condition, page_token=token)
        yield from (run for run in page if SUPERSEDED_TAG not in run.data.tags)
        token = page.token
        if not token:
            return


def _name(run: Run) -> str:
    return str(run.info.run_name).removeprefix(f"{run.data.tags.get('band_set')} · ")


def _finished(run: Run) -> FinishedTrial:
    values = {name: value for name, value in run.data.metrics.items() if "/" not in name}  # without learning curves
    for name, text in run.data.params.items():
        try:
            values.setdefault(name, float(text))
        except ValueError:
            continue  # text, such as the name of the optimizer
    return FinishedTrial(str(run.info.run_id), _name(run), values, run.data.params.get("network", PLAIN_UNET))


def _facts(trial: FinishedTrial) -> list[str]:
    """Return kept epoch and duration, as text."""
    epoch, epochs, seconds = (trial.values.get(name) for name in ("best_epoch", "epochs", "seconds"))
    kept = "–" if epoch is None else f"{epoch:.0f}" if epochs is None else f"{epoch:.0f} of {epochs:.0f}"
    return [kept, "–" if seconds is None else f"{seconds:.0f}"]


def _cells(texts: Sequence[str]) -> str:
    """Return the cells of a Markdown table row."""
    return " | ".join(f"&emsp;{text}" for text in texts) + " |"


def _plain(text: str) -> str:
    """Return shortened text on one line, with Markdown characters escaped."""
    line = " ".join(text.split())
    short = line if len(line) <= _REASON_CHARACTERS else f"{line[: _REASON_CHARACTERS - 1]}…"
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in short)
