"""`talud evaluate`: score a band set's model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from talud.cli.app import app
from talud.cli.progress import shown


@app.command("evaluate")
def evaluate(
    band_set: Annotated[str, typer.Argument(help="A band set of params.yaml whose model is trained and has mapped.")],
) -> None:
    """Score a band set's model: on the test blocks of the training areas, and on the maps of other labelled areas.

    Pixels whose truth is unknown, and pixels that were not mapped, are in none of the counts; the latter are shown
    apart. Writes evaluation/BAND_SET.json, a curve of the scores over the threshold (evaluation/BAND_SET.curves) and
    the map of true and false positives and negatives of each area (evaluation/BAND_SET/AREA.tif).

    **Examples**

        talud evaluate 7band
    """
    from rich.console import Console
    from rich.table import Table

    from talud.evaluation import scoring
    from talud.project import Project

    project = Project.find()
    with shown("evaluating", "windows") as progress:
        scores = scoring.evaluate(project, band_set, progress)
    table = Table("where", title=f"{band_set}, threshold {scores.threshold:.2f}", title_justify="left")
    for column in ("TP", "FP", "FN", "TN", "precision", "recall", "F1", "IoU", "not mapped"):
        table.add_column(column, justify="right")
    for where, row in scores.rows():
        counts = (f"{count:,}" for count in (row.tp, row.fp, row.fn, row.tn))
        ratios = (f"{ratio:.3f}" for ratio in (row.precision, row.recall, row.f1, row.iou))
        table.add_row(where, *counts, *ratios, f"{row.not_mapped_share:.1%}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
