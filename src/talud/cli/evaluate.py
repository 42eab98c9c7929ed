"""`talud evaluate` and `talud floor`: score models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from talud.cli import models, sources
from talud.cli.app import app
from talud.cli.progress import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from talud.evaluation.assessment import Assessment

_TITLES = {"f1": "F1", "precision": "precision", "recall": "recall", "iou": "IoU", "mcc": "MCC"}


@app.command("evaluate")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{models.One}; without SOURCE, a band set of params.yaml")
    ],
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="a labelled area of params.yaml, or a folder with images/ and masks/"),
    ] = None,
    bands: Annotated[
        Any,
        typer.Option(
            metavar="NAME=NUMBER,…",
            parser=sources.numbers,
            help="channels of the folder's images: red=4,green=3,blue=2; default: the names that TIFF images state, "
            "else red, green and blue where there are three",
        ),
    ] = None,
    as_json: models.AsJson = False,
) -> None:
    """Score a model on any labelled area or folder of patches; or a band set's model on all there is.

    With SOURCE: precision, recall, F1, IoU and Matthews' correlation coefficient (MCC) of the landslide class, each
    with a 95 % bootstrap interval over patches (of a folder) or blocks of split.block pixels (of an area), at the
    model's own threshold. Of an area that the model was trained on, its test blocks alone count; of one that it was
    fine-tuned on, all but the patches that it has seen. A folder needs no project: its images and masks are PNG, TIFF
    or HDF5 as Landslide4Sense has it, and each patch is read alone.

    Without SOURCE, as the pipeline does: the model of a band set, on the test blocks of the training areas and on the
    maps of the other labelled areas. Writes evaluation/BAND_SET.json (precision, recall and F1, for dvc metrics show),
    evaluation/BAND_SET.scores.json (all counts and scores), curves of the scores over the threshold
    (evaluation/BAND_SET.curves) and maps of true and false positives and negatives (evaluation/BAND_SET/AREA.tif).

    Pixels whose truth is unknown, and pixels that were not mapped, are in none of the counts; the latter are shown
    apart. The expected calibration error says how far probabilities are from what they came to.

    **Examples**

        talud evaluate landslide-unet-3band synthetic_liboriana

        talud evaluate models/3band.onnx patches/valley --bands red=3,green=2,blue=1 --json

        talud evaluate 7band
    """
    if source is None:
        if bands is not None or as_json:
            raise typer.BadParameter("--bands and --json go with a SOURCE", param_hint="SOURCE")
        _evaluate_band_set(model)
        return
    found = _assess(model, source, bands)
    if as_json:
        print(json.dumps(found.record(), indent=2, ensure_ascii=False))
    else:
        _show([found])


@app.command("floor")
def floor(
    band_set: Annotated[str, typer.Argument(help="a band set of params.yaml")],
    as_json: models.AsJson = False,
) -> None:
    """Train a random forest that looks at single pixels, and score it: what a U-Net has to beat.

    It learns from up to 20,000 landslide and 20,000 other pixels of the training blocks, its threshold is chosen on
    the validation blocks, and it is scored as talud evaluate scores a model: on the test blocks of each training area,
    and on every other labelled area. Nothing is written.

    **Examples**

        talud floor 3band

        talud floor 7band --json
    """
    from talud.evaluation.floor import assess_floor
    from talud.project import Project

    project = Project.find()
    with shown(f"floor {band_set}", "areas") as progress:
        found = assess_floor(project, band_set, progress)
    if as_json:
        print(json.dumps([one.record() for one in found], indent=2, ensure_ascii=False))
    else:
        _show(found)


def _assess(reference: str, source: str, bands: dict[str, int] | None) -> Assessment:
    """Score a model on an area of the project, or else on a folder."""
    from talud import load_model
    from talud.errors import SourceError
    from talud.evaluation import area_scores, folder_scores
    from talud.project import Project, root_around

    project = Project.find() if root_around(Path.cwd()) else None
    if project and source in project.params.areas:
        if bands is not None:
            raise typer.BadParameter("the bands of an area are those of its stack", param_hint="--bands")
        model = load_model(models.uri(reference))
        with shown(f"evaluating {source}", "windows") as progress:
            return area_scores.assess_area(model, project, source, progress)
    if not Path(source).is_dir():
        no_area = f"no area of params.yaml ({', '.join(project.params.areas)}), and " if project else ""
        raise SourceError(f"{source}: is {no_area}no folder; name one that holds images/ and masks/")
    model = load_model(models.uri(reference))
    with shown(f"evaluating {source}", "patches") as progress:
        return folder_scores.assess_folder(model, Path(source), bands, progress)


def _show(found: Sequence[Assessment]) -> None:
    """Two lines of scores for each of a model's assessments; below, what they are of."""
    from rich.console import Console
    from rich.table import Table

    subject = found[0].subject
    table = Table("", title=f"{subject.title}, threshold {subject.threshold:.2f}", title_justify="left")
    for column in _TITLES.values():
        table.add_column(column, justify="right")
    for one in found:
        scores = [one.scores[name] for name in _TITLES]
        table.add_row(one.source, *(f"{score.estimate:.3f}" for score in scores))
        table.add_row("95 % interval", *(f"{score.low:.3f} to {score.high:.3f}" for score in scores), end_section=True)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for one in found:
        counts = one.tally.confusion
        print(
            f"{one.source}: {one.pixels} ({one.units:,} {one.unit}); TP {counts.tp:,}, FP {counts.fp:,}, "
            f"FN {counts.fn:,}, TN {counts.tn:,}; not mapped: {one.tally.not_mapped_share:.1%}"
        )
        for note in one.notes:
            print(f"note: {note}")


def _evaluate_band_set(band_set: str) -> None:
    """The pipeline's stage."""
    from rich.console import Console
    from rich.table import Table

    from talud.evaluation import scoring
    from talud.metrics import lack_of_skill
    from talud.project import Project

    project = Project.find()
    with shown("evaluating", "windows") as progress:
        scores = scoring.evaluate(project, band_set, progress)
    table = Table("where", title=f"{band_set}, threshold {scores.threshold:.2f}", title_justify="left")
    for column in ("TP", "FP", "FN", "TN", "precision", "recall", "F1", "IoU", "MCC", "not mapped"):
        table.add_column(column, justify="right")
    for where, row in scores.rows():
        counts = (f"{count:,}" for count in (row.tp, row.fp, row.fn, row.tn))
        ratios = (f"{ratio:.3f}" for ratio in (row.precision, row.recall, row.f1, row.iou, row.mcc))
        table.add_row(where, *counts, *ratios, f"{row.not_mapped_share:.1%}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for where, row in scores.rows():
        if weak := lack_of_skill(row.tally.confusion):
            print(f"warning: {where}: {weak}")
    for part, found in scores.reliability.items():
        where = "all test blocks" if part == "test" else part
        print(f"expected calibration error, {where}: {found.expected_calibration_error:.4f}")
