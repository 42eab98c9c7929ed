"""Commands that score models and write the report."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from talud.cli import models, sources
from talud.cli.app import TRAINING, app
from talud.cli.progress import show_progress
from talud.errors import TaludWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from talud.evaluation.postprocessing_study import MethodScores, PostprocessingTable
    from talud.evaluation.scores import SiteScores
    from talud.project import Project

BandSet = Annotated[str, typer.Argument(metavar="BAND_SET", help="Band set of params.yaml.", show_default=False)]

_TITLES = {"f1": "F1", "precision": "precision", "recall": "recall", "iou": "IoU", "mcc": "MCC"}


@app.command("evaluate", rich_help_panel=TRAINING)
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"{models.MODEL_HELP} Without SOURCE: a band set of params.yaml.")
    ],
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="Labelled area of params.yaml, or a folder with images/ and masks/."),
    ] = None,
    bands: Annotated[
        Any,
        typer.Option(
            metavar="NAME=NUMBER,…",
            parser=sources.parse_band_numbers,
            help="Channel numbers of the folder's images, such as red=4,green=3,blue=2. Default: the band names in "
            "TIFF images, or red, green and blue if there are three channels.",
        ),
    ] = None,
    as_json: models.JsonOption = False,
) -> None:
    """Score a model on labelled data: precision, recall, F1, IoU and MCC.

    With SOURCE: prints the scores of the landslide class at the model's threshold, each with a 95 % bootstrap interval
    over patches (of a folder) or over blocks of split.block pixels (of an area). MCC is Matthews' correlation
    coefficient. In an area that the model was trained on, only the test blocks are scored; in an area that it was
    fine-tuned on, the patches of the fine-tuning are excluded. A folder needs no project: its images and masks are PNG,
    TIFF or HDF5 (as in Landslide4Sense), and each patch is mapped separately.

    Without SOURCE, as in the pipeline: scores the model of a band set on the test blocks of the training areas and on
    the maps of the other labelled areas. Writes evaluation/BAND_SET.json (precision, recall and F1, for dvc metrics
    show), evaluation/BAND_SET.scores.json (all counts and scores), curves of the scores by threshold
    (evaluation/BAND_SET.curves) and maps of true and false positives and negatives (evaluation/BAND_SET/AREA.tif).

    Pixels with unknown truth and unmapped pixels are excluded from all counts; the share of unmapped pixels is printed
    separately. The expected calibration error is the mean difference between predicted probability and observed share
    of landslide pixels.

    **Examples**

        talud evaluate landslide-unet-3band synthetic_liboriana

        talud evaluate models/3band.onnx patches/valley --bands red=3,green=2,blue=1 --json

        talud evaluate 7band
    """
    if source is None:
        if bands is not None or as_json:
            raise typer.BadParameter("--bands and --json need a SOURCE", param_hint="SOURCE")
        _evaluate_band_set(model)
        return
    found = _score_model(model, source, bands)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        _print_scores([found])


def _score_model(reference: str, source: str, bands: dict[str, int] | None) -> SiteScores:
    """Score a model on an area or a folder."""
    from talud import load_model
    from talud.errors import SourceError
    from talud.evaluation import scores
    from talud.project import Project, find_root

    project = Project.find() if find_root(Path.cwd()) else None
    if project and source in project.params.areas:
        if bands is not None:
            raise typer.BadParameter(
                "does not apply to an area, whose bands are those of its stack", param_hint="--bands"
            )
        model = load_model(models.model_uri(reference))
        with show_progress(f"evaluating {source}", "windows") as progress:
            return scores.assess_area(model, project, source, progress)
    if not Path(source).is_dir():
        no_area = f"neither an area of params.yaml ({', '.join(project.params.areas)}) nor " if project else "not "
        raise SourceError(f"{source}: is {no_area}a folder; give a folder with images/ and masks/")
    model = load_model(models.model_uri(reference))
    with show_progress(f"evaluating {source}", "patches") as progress:
        return scores.assess_folder(model, Path(source), bands, progress)


def _print_scores(found: Sequence[SiteScores]) -> None:
    """Print a model's scores, intervals and counts on each site."""
    from rich.console import Console
    from rich.table import Table

    subject = found[0].model
    title = ", ".join(filter(None, (subject.title, subject.network, f"threshold {subject.threshold:.2f}")))
    table = Table("", title=title, title_justify="left")
    for column in _TITLES.values():
        table.add_column(column, justify="right")
    for one in found:
        scores = [one.scores[name] for name in _TITLES]
        table.add_row(one.source, *(f"{score.estimate:.3f}" for score in scores))
        table.add_row("95 % interval", *(f"{score.low:.3f} to {score.high:.3f}" for score in scores), end_section=True)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for one in found:
        counts = one.assessment.confusion
        print(
            f"{one.source}: {one.pixels} ({one.assessment.windows:,} {one.unit}); TP {counts.tp:,}, FP {counts.fp:,}, "
            f"FN {counts.fn:,}, TN {counts.tn:,}; not mapped: {one.assessment.not_mapped_share:.1%}"
        )
        for note in one.notes:
            print(f"note: {note}")


def _evaluate_band_set(band_set: str) -> None:
    """Score a band set's model on all labelled areas."""
    from rich.console import Console
    from rich.table import Table

    from talud.evaluation.scores import evaluate
    from talud.metrics import lack_of_skill
    from talud.project import Project

    project = Project.find()
    with show_progress("evaluating", "windows") as progress:
        scores = evaluate(project, band_set, progress)
    title = f"{band_set}, {scores.network}, threshold {scores.threshold:.2f}"
    table = Table("where", title=title, title_justify="left")
    for column in ("TP", "FP", "FN", "TN", "precision", "recall", "F1", "IoU", "MCC", "not mapped"):
        table.add_column(column, justify="right")
    for where, row in scores.rows():
        counts = (f"{count:,}" for count in (row.tp, row.fp, row.fn, row.tn))
        ratios = (f"{ratio:.3f}" for ratio in (row.precision, row.recall, row.f1, row.iou, row.mcc))
        table.add_row(where, *counts, *ratios, f"{row.not_mapped_share:.1%}")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for where, row in scores.rows():
        if problem := lack_of_skill(row.assessment.confusion):
            print(f"warning: {where}: {problem}")
    for part, found in scores.reliability.items():
        where = "all test blocks" if part == "test" else part
        print(f"expected calibration error, {where}: {found.expected_calibration_error:.4f}")


@app.command("postprocess", rich_help_panel=TRAINING)
def postprocess(
    band_set: Annotated[
        str, typer.Argument(metavar="BAND_SET", help="Band set of params.yaml whose model is trained.")
    ],
    as_json: models.JsonOption = False,
) -> None:
    """Compare post-processing: hysteresis, segments, slope, minimum mapping unit.

    The parameters of each method and of their best combination are chosen on the validation blocks: by pixel F1, and
    among those within 0.005 of the highest by object F1. They are scored on the test blocks and on every other labelled
    area, together with the settings of `postprocessing` in params.yaml.

    Pixel scores include a 95 % bootstrap interval of the difference in F1 from thresholding alone (blocks of
    split.block pixels, promotion.resamples resamples). Object scores count a landslide as detected if at least half of
    its mapped pixels are found, by size class; a false alarm is an object that overlaps no landslide. Writes
    evaluation/BAND_SET.postprocessing.json.

    **Examples**

        talud postprocess 7band

        talud postprocess 3band --json
    """
    from rich.console import Console

    from talud.evaluation import postprocessing_study
    from talud.project import Project

    project = Project.find()
    with show_progress("measuring", "windows") as progress:
        found = postprocessing_study.compare_methods(project, band_set, progress)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_choice_table(found))
    for place, rows in found.places.items():
        console.print(_pixel_table(place, rows))
        console.print(_object_table(place, rows))
    for method in found.left_out:
        print(f"note: {method} was skipped: the stacks lack a band that it needs")
    print(f"file: {project.postprocessing(band_set)}")


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table("method", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _choice_table(found: PostprocessingTable) -> Table:
    table = _table(
        f"{found.band_set}, threshold {found.threshold:.2f}: parameters chosen on the validation blocks",
        "validation F1",
        "object F1",
        "parameters",
    )
    for method, choice in found.chosen.items():
        options = ", ".join(f"{name} {value}" for name, value in choice.options.changes.items())
        table.add_row(method, f"{choice.validation_f1:.3f}", f"{choice.validation_object_f1:.3f}", options)
    return table


def _pixel_table(place: str, rows: tuple[MethodScores, ...]) -> Table:
    table = _table(f"{place}: pixels", "precision", "recall", "F1", "IoU", "F1 gain over the threshold")
    for row in rows:
        ratios = (row.scores.precision, row.scores.recall, row.scores.f1, row.scores.iou)
        table.add_row(row.method, *(f"{ratio:.3f}" for ratio in ratios), str(row.difference or ""))
    return table


def _object_table(place: str, rows: tuple[MethodScores, ...]) -> Table:
    first = rows[0].objects
    lost = sum(each.not_mapped for each in first.classes)
    title = f"{place}: landslides detected ({first.cut} cut by a window edge, {lost} not mapped)"
    table = _table(title, "all", *(each.title for each in first.classes), "false alarms", "per km²", "F1")
    for row in rows:
        classes = (f"{each.detected} of {each.landslides}" if each.landslides else "" for each in row.objects.classes)
        whole = f"{row.objects.detected} of {row.objects.landslides}"
        alarms = f"{row.objects.false_alarms} of {row.objects.mapped}"
        table.add_row(row.method, whole, *classes, alarms, f"{row.false_alarms_per_km2:.2f}", f"{row.object_f1:.3f}")
    return table


@app.command("baseline", rich_help_panel=TRAINING)
def baseline(
    band_set: BandSet,
    method: Annotated[
        Literal["recipe", "random-forest"],
        typer.Option(help="Baseline to train: the same network with another recipe, or a random forest of pixels."),
    ] = "recipe",
    as_json: models.JsonOption = False,
) -> None:
    """Train and score a baseline: another training recipe, or a random forest.

    With `--method recipe`, as in the pipeline: trains the best configuration of the band set once more, with the recipe
    that `reference` in params.yaml names, and scores both models on the test blocks of the training areas and on the
    other labelled areas, with 95 % intervals. Writes baselines/BAND_SET.onnx, baselines/BAND_SET.trials.json and
    baselines/BAND_SET.json. The baseline is not registered. If `reference` is null, only the model of the chosen recipe
    is scored.

    With `--method random-forest`: trains a random forest on single pixels of the training blocks (at most 20,000
    landslide and 20,000 background pixels), chooses its threshold on the validation blocks, and scores it on the test
    blocks of each training area and on every other labelled area. Writes no files.

    **Examples**

        talud baseline 3band

        talud baseline 7band --method random-forest --json
    """
    from talud.project import Project

    if method == "random-forest":
        _score_forest(Project.find(), band_set, as_json)
    else:
        _score_recipes(Project.find(), band_set, as_json)


@app.command("reference", hidden=True)
def reference(band_set: BandSet) -> None:
    """Run `talud baseline` under its deprecated name.

    Writes the scores to references/BAND_SET.json, where the stage `reference` of existing projects expects them.

    **Examples**

        talud reference 3band
    """
    from talud.evaluation.baselines import move_to_deprecated_path
    from talud.project import Project

    _warn_of_old_name("reference", "baseline BAND_SET; in dvc.yaml, replace the stage reference with baseline")
    project = Project.find()
    _score_recipes(project, band_set, as_json=False)
    move_to_deprecated_path(project, band_set)


@app.command("floor", hidden=True)
def floor(band_set: BandSet, as_json: models.JsonOption = False) -> None:
    """Run `talud baseline --method random-forest` under its deprecated name.

    **Examples**

        talud floor 3band
    """
    from talud.project import Project

    _warn_of_old_name("floor", "baseline BAND_SET --method random-forest")
    _score_forest(Project.find(), band_set, as_json)


def _warn_of_old_name(name: str, replacement: str) -> None:
    """Warn that a command was renamed."""
    warnings.warn(
        f"talud {name} is deprecated and will be removed in release 0.3; use talud {replacement}",
        TaludWarning,
        stacklevel=2,
    )


def _score_forest(project: Project, band_set: str, as_json: bool) -> None:
    """Train a random forest and print its scores."""
    from talud.evaluation.baselines import assess_forest

    with show_progress(f"random forest {band_set}", "areas") as progress:
        found = assess_forest(project, band_set, progress)
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=2, ensure_ascii=False))
    else:
        _print_scores(found)


def _score_recipes(project: Project, band_set: str, as_json: bool) -> None:
    """Train the baseline recipe and print the scores of both models."""
    from talud import load_model
    from talud.evaluation import baselines
    from talud.evaluation.results import Trials
    from talud.params import Search
    from talud.training import study

    best = Trials.read(project.trials(band_set)).best_trial
    trained = {project.params.recipe: load_model(project.model(band_set))}
    other = baselines.baseline_project(
        project,
        Search(
            network=(best.network,),
            filters=(best.filters,),
            learning_rate=(best.learning_rate,),
            batch_size=(best.batch_size,),
            epochs=best.epochs,
            patience=best.patience,
            seeds=() if best.training_seed is None else (best.training_seed,),
        ),
    )
    if other:
        with show_progress(f"train {band_set}, {other.params.recipe}", "epochs") as report:
            study.run(other, band_set, on_progress=lambda step: report(step.done, step.total, f"F1 {step.best_f1:.3f}"))
        trained[other.params.recipe] = load_model(other.model(band_set))
    with show_progress(f"comparing {band_set}", "maps") as progress:
        found = baselines.compare_recipes(project, band_set, trained, progress)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    for row in found.scored:
        low, high = row.intervals["f1"]
        print(f"{row.recipe}: {row.area}, {row.pixels}: F1 {row.f1:.3f} ({low:.3f} to {high:.3f})")
        if row.lack_of_skill:
            print(f"warning: {row.recipe} on {row.area} is {row.lack_of_skill}")


@app.command("report", rich_help_panel=TRAINING)
def report() -> None:
    """Write an HTML report with scores and maps of all band sets.

    Writes reports/index.html, with the tables of the published study for comparison. The page is self-contained: images
    are embedded and nothing is loaded from the network.

    **Examples**

        talud report
    """
    from talud.evaluation.report import write_report
    from talud.project import Project

    project = Project.find()
    print(f"report: {write_report(project)}")
