"""`talud postprocess`: what ways of post-processing come to with a band set's model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import app
from talud.cli.progress import shown

if TYPE_CHECKING:
    from rich.table import Table

    from talud.evaluation.postprocessing_study import MethodScores, PostprocessingTable


@app.command("postprocess")
def postprocess(
    band_set: Annotated[str, typer.Argument(help="A band set of params.yaml whose model is trained.")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Measure what post-processing adds to the threshold: hysteresis, segments, slope, a minimum mapping unit.

    The parameters of each method, and those that gain together, are chosen on the validation blocks alone: by the F1
    of pixels, and within 0.005 of the highest by that of objects. The scores are of the test blocks and of each other
    labelled area. By pixels: with a 95 % bootstrap interval of the difference in F1 from the threshold alone (blocks
    of split.block pixels, promotion.resamples times). By objects: landslides of whose mapped pixels at least half are
    found, by size class, and false alarms, which share no pixel with a landslide. What `postprocessing` in params.yaml
    says is measured beside them. Writes evaluation/BAND_SET.postprocessing.json.

    **Examples**

        talud postprocess 7band

        talud postprocess 3band --json
    """
    from rich.console import Console

    from talud.evaluation import postprocessing_study
    from talud.project import Project

    project = Project.find()
    with shown("measuring", "windows") as progress:
        found = postprocessing_study.measure(project, band_set, progress)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_choices(found))
    for place, rows in found.places.items():
        console.print(_pixels(place, rows))
        console.print(_objects(place, rows))
    for method in found.left_out:
        print(f"note: {method} was left out, for it needs a band that the stacks have not")
    print(f"file: {project.postprocessing(band_set)}")


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table("method", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _choices(found: PostprocessingTable) -> Table:
    table = _table(
        f"{found.band_set}, threshold {found.threshold:.2f}: chosen on validation blocks",
        "F1 there",
        "F1 of objects",
        "parameters",
    )
    for method, choice in found.chosen.items():
        options = ", ".join(f"{name} {value}" for name, value in choice.options.changes.items())
        table.add_row(method, f"{choice.validation_f1:.3f}", f"{choice.validation_object_f1:.3f}", options)
    return table


def _pixels(place: str, rows: tuple[MethodScores, ...]) -> Table:
    table = _table(f"{place}: pixels", "precision", "recall", "F1", "IoU", "F1 less that of the threshold")
    for row in rows:
        ratios = (row.scores.precision, row.scores.recall, row.scores.f1, row.scores.iou)
        table.add_row(row.method, *(f"{ratio:.3f}" for ratio in ratios), str(row.difference or ""))
    return table


def _objects(place: str, rows: tuple[MethodScores, ...]) -> Table:
    first = rows[0].objects
    lost = sum(each.not_mapped for each in first.classes)
    title = f"{place}: landslides detected ({first.cut} cut by the edge of a window, {lost} not mapped)"
    table = _table(title, "all", *(each.title for each in first.classes), "false alarms", "per km²", "F1")
    for row in rows:
        classes = (f"{each.detected} of {each.landslides}" if each.landslides else "" for each in row.objects.classes)
        whole = f"{row.objects.detected} of {row.objects.landslides}"
        alarms = f"{row.objects.false_alarms} of {row.objects.mapped}"
        table.add_row(row.method, whole, *classes, alarms, f"{row.false_alarms_per_km2:.2f}", f"{row.object_f1:.3f}")
    return table
