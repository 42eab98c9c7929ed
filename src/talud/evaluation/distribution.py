"""How validation F1 is distributed over the values of each hyperparameter that a search varied."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from talud.evaluation.results import Trial, Trials

CHOICES = {"filters": "Filters", "learning_rate": "Learning rate", "batch_size": "Batch size"}


@dataclass(frozen=True)
class Column:
    """The trials that share a value of a hyperparameter, the lowest F1 first."""

    value: float
    trials: tuple[Trial, ...]

    @property
    def median(self) -> float:
        """Of their validation F1."""
        return median(trial.scores["f1"] for trial in self.trials)


@dataclass(frozen=True)
class Strip:
    """A hyperparameter and its values, the smallest first."""

    label: str
    columns: tuple[Column, ...]


def strips(trials: Trials) -> list[Strip]:
    """A strip for each hyperparameter of which more than one value was tried."""
    made = []
    for choice, label in CHOICES.items():
        values = sorted({float(getattr(trial, choice)) for trial in trials.trials})
        rising = trials.ranked[::-1]
        columns = [Column(value, tuple(t for t in rising if getattr(t, choice) == value)) for value in values]
        if len(columns) > 1:
            made.append(Strip(label, tuple(columns)))
    return made
