"""What a study came to, on its parent run: the best trial's scores, a note with a leaderboard, a page of all trials."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from mlflow.entities import Metric, Run, RunTag
from mlflow.utils import mlflow_tags

from talud.registry import trials_page
from talud.registry.files import log_file
from talud.registry.store import connected, experiment_id, speaking

SCORES = ("f1", "precision", "recall", "iou")  # of a trial, on the validation blocks
SUPERSEDED = "superseded"  # the tag of a run in whose place its trial has another one
PAGE = "trials.html"
LISTED = 20  # trials in the note
FAILURES = 10  # named in the note
_REASON = 200  # characters of one; MLflow keeps 8000 of a note


@dataclass(frozen=True)
class Finished:
    """A trial that has scores.

    Attributes:
        run_id: of its run.
        name: the configuration, without the band set that all trials of a study share.
        values: its scores, `best_epoch`, `seconds` and `parameters`, and those hyperparameters that are numbers.
    """

    run_id: str
    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Failed:
    """A trial that came to nothing, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """The trials that the store holds of a study.

    Attributes:
        run_id: of the study.
        study: its name.
        experiment: the id of its experiment.
        finished: the highest validation F1 first; of equal ones the smallest network, then the first to start.
        failed: in the order of their start.
        unfinished: how many others were stopped, or run still.
    """

    run_id: str
    study: str
    experiment: str
    finished: tuple[Finished, ...]
    failed: tuple[Failed, ...]
    unfinished: int

    @classmethod
    def read(cls, parent_run_id: str) -> Self:
        """Read a study's trials from the store. One that failed or was stopped, and then finished, counts as finished.

        Raises:
            RegistryError: the store cannot be used, or has no such run.
        """
        with speaking():
            parent = connected().get_run(parent_run_id)
            runs = sorted(_children(parent_run_id), key=lambda run: int(run.info.start_time))
        finished = [_finished(run) for run in runs if run.info.status == "FINISHED" and run.data.metrics.keys() >= _ALL]
        done = {trial.name for trial in finished}
        others = {_name(run): run for run in runs if _name(run) not in done}  # of several attempts the last
        failed = [
            Failed(name, run.data.tags.get("error", "no reason is on record"))
            for name, run in others.items()
            if run.info.status == "FAILED"
        ]
        ranked = sorted(finished, key=lambda trial: (-trial.values["f1"], trial.values.get("parameters", 0)))
        synthetic = ", synthetic data" if parent.data.tags.get("data") == "synthetic" else ""
        name, experiment = f"{parent.info.run_name}{synthetic}", str(parent.info.experiment_id)
        return cls(parent_run_id, name, experiment, tuple(ranked), tuple(failed), len(others) - len(failed))

    @property
    def markdown(self) -> str:
        """The note of the study's run: the best trial, the first ones as a table, and what became of the others.

        The UI shows the first lines alone until a reader asks for more, so the best trial stands there.
        """
        parts = [self._headline, self._table] if self.finished else ["No trial has finished."]
        if self.failed:
            more = len(self.failed) - FAILURES
            reasons = [f"- {_plain(one.name)}: {_plain(one.reason)}" for one in self.failed[:FAILURES]]
            parts.append("\n".join([f"**Failed: {len(self.failed)}**", "", *reasons]))
            parts += [f"and {more} more, each with the reason as its tag `error`."] if more > 0 else []
        if self.unfinished:
            parts.append(f"Not finished: {self.unfinished}.")
        return "\n\n".join(parts)

    @property
    def _headline(self) -> str:
        count, best = len(self.finished), self.finished[0]
        of = f"Best of {count} finished trials" if count > 1 else "The one finished trial"
        page = f"[{PAGE}]({self._address(self.run_id)}/artifacts/{PAGE})"
        return f"**{of}: {self._link(best)}, validation F1 {best.values['f1']:.3f}.** All of them: {page}."

    @property
    def _table(self) -> str:
        titles = ("trial", "F1", "precision", "recall", "IoU", "epoch kept", "seconds")
        heading = ["| | " + _cells(titles), "| ---: | --- |" + " ---: |" * (len(titles) - 1)]
        rows = [
            f"| {place} | "
            + _cells((self._link(trial), *(f"{trial.values[score]:.3f}" for score in SCORES), *_facts(trial)))
            for place, trial in enumerate(self.finished[:LISTED], start=1)
        ]
        rest = [trial.values["f1"] for trial in self.finished[LISTED:]]
        more = ["", f"and {len(rest)} more with an F1 of {rest[-1]:.3f} to {rest[0]:.3f}."] if rest else []
        return "\n".join([*heading, *rows, *more])

    def _link(self, trial: Finished) -> str:
        return f"[{_plain(trial.name)}]({self._address(trial.run_id)})"

    def _address(self, run_id: str) -> str:
        """Of a run's page in the UI, whichever server shows it."""
        return f"#/experiments/{self.experiment}/runs/{run_id}"

    def page(self) -> str:
        """All trials on parallel coordinates and in a table, as HTML that needs no other file."""
        rows = [trials_page.Row(trial.run_id, trial.name, trial.values) for trial in self.finished]
        return trials_page.render(self.study, rows, [(one.name, one.reason) for one in self.failed])


def summarise(parent_run_id: str, note: str) -> None:
    """Give a study the scores of its best trial, so that lists show them; a note with a leaderboard; and a page.

    Args:
        parent_run_id: the study's run.
        note: Markdown that follows the leaderboard.

    Raises:
        RegistryError: the store cannot be used, or has no room for the page.
    """
    board = Leaderboard.read(parent_run_id)
    now = int(time.time() * 1000)
    best = [Metric(score, board.finished[0].values[score], now, 0) for score in SCORES] if board.finished else []
    markdown = f"{board.markdown}\n\n{note}".strip()
    with speaking():
        connected().log_batch(parent_run_id, best, tags=[RunTag(mlflow_tags.MLFLOW_RUN_NOTE, markdown)])
    if board.finished:
        log_file(parent_run_id, board.page().encode(), PAGE)


_ALL = frozenset(SCORES)


def _children(parent_run_id: str) -> Iterator[Run]:
    """The runs of a study's trials, without those that are superseded."""
    token = None
    while True:
        which = f"tags.`{mlflow_tags.MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}'"
        page = connected().search_runs([experiment_id()], which, page_token=token)
        yield from (run for run in page if SUPERSEDED not in run.data.tags)
        token = page.token
        if not token:
            return


def _name(run: Run) -> str:
    return str(run.info.run_name).removeprefix(f"{run.data.tags.get('band_set')} · ")


def _finished(run: Run) -> Finished:
    values = {name: value for name, value in run.data.metrics.items() if "/" not in name}  # without learning curves
    for name, text in run.data.params.items():
        try:
            values.setdefault(name, float(text))
        except ValueError:
            continue  # a word, such as the optimizer's
    return Finished(str(run.info.run_id), _name(run), values)


def _facts(trial: Finished) -> list[str]:
    """The epoch that was kept, of how many, and how long the trial took; a dash for what is not known."""
    epoch, epochs, seconds = (trial.values.get(name) for name in ("best_epoch", "epochs", "seconds"))
    kept = "–" if epoch is None else f"{epoch:.0f}" if epochs is None else f"{epoch:.0f} of {epochs:.0f}"
    return [kept, "–" if seconds is None else f"{seconds:.0f}"]


def _cells(words: Sequence[str]) -> str:
    """The cells of a table's row; the UI sets them without any space between, so they bring their own."""
    return " | ".join(f"&emsp;{word}" for word in words) + " |"


def _plain(text: str) -> str:
    """Words that are no Markdown, on one line and not too long."""
    line = " ".join(text.split())
    short = line if len(line) <= _REASON else f"{line[: _REASON - 1]}…"
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in short)
