"""The page of a study's trials: parallel coordinates and a table, in one file that asks for no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from talud.text import html_environment


@dataclass(frozen=True)
class Row:
    """A finished trial.

    Attributes:
        run_id: of its run.
        name: the configuration.
        values: by the names of `AXES`; others are left out.
    """

    run_id: str
    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Axis:
    """What stands on an axis.

    Attributes:
        key: of a row's values.
        label: for a reader.
        form: of a number in the table, as `str.format` takes it.
        chosen: a hyperparameter: few values, a factor apart, so on a logarithmic axis.
    """

    key: str
    label: str
    form: str
    chosen: bool = False


AXES = (
    Axis("filters", "Filters", "{:.0f}", chosen=True),
    Axis("learning_rate", "Learning rate", "{:g}", chosen=True),
    Axis("batch_size", "Batch size", "{:.0f}", chosen=True),
    Axis("best_epoch", "Best epoch", "{:.0f}"),
    Axis("seconds", "Seconds", "{:.0f}"),
    Axis("f1", "Validation F1", "{:.3f}"),
)


def render(study: str, rows: Sequence[Row], failed: Sequence[tuple[str, str]]) -> str:
    """The page as HTML; the same trials give the same bytes.

    Args:
        study: its name.
        rows: the finished trials, best first, at least one.
        failed: name and reason of each trial that failed.
    """
    axes = [axis for axis in AXES if all(_drawable(axis, row) for row in rows)]
    data = {
        "axes": [{"label": axis.label, "chosen": axis.chosen} for axis in axes],
        "trials": [
            {"name": row.name, "values": [row.values[axis.key] for axis in axes], "shown": _shown(axes, row)}
            for row in rows
        ],
    }
    return (
        html_environment("talud.registry")
        .get_template("trials.html")
        .render(study=study, axes=axes, rows=[(row, _shown(axes, row)) for row in rows], failed=failed, data=data)
    )


def _drawable(axis: Axis, row: Row) -> bool:
    value = row.values.get(axis.key)
    return value is not None and (value > 0 or not axis.chosen)


def _shown(axes: Sequence[Axis], row: Row) -> list[str]:
    return [axis.form.format(row.values[axis.key]) for axis in axes]
