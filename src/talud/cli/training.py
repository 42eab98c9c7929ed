"""Commands that make models: train, fine-tune, adapt and quantise."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from talud.cli.app import TRAINING, app
from talud.cli.models import MODEL_HELP, JsonOption
from talud.cli.progress import show_progress
from talud.text import counted

if TYPE_CHECKING:
    from talud.contract import Contract


@app.command("train", rich_help_panel=TRAINING)
def train(
    band_set: Annotated[str, typer.Argument(metavar="BAND_SET", help="Band set of params.yaml.", show_default=False)],
    search: Annotated[
        str | None, typer.Option(metavar="NAME", help="Search of params.yaml. Default: the value of `search` there.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of processes that run trials in parallel; they share the cores, or use one GPU each."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of a Dask scheduler whose workers run the trials, such as tcp://10.0.0.1:8786. All workers "
            "must reach the project under the same path, and MLFLOW_TRACKING_URI must name a server.",
        ),
    ] = None,
) -> None:
    """Train networks in a hyperparameter search; export the best as ONNX.

    Trains a network for each combination of the search, records every trial in MLflow, and writes
    models/BAND_SET.onnx (the trial with the highest validation F1) and models/BAND_SET.trials.json. After an
    interruption, the same command resumes.

    **Examples**

        talud train 7band

        talud train 3band --search study

        talud train 3band --search study --scheduler tls://10.0.0.1:8786
    """
    from talud.cli import maps
    from talud.engine.model_file import read_contract
    from talud.project import Project
    from talud.training import study, trial_runner

    requested = maps.choose_workers(workers, scheduler)
    project = Project.find()
    with (
        trial_runner.open_workers(requested, project) if requested else nullcontext(trial_runner.run_here) as runner,
        show_progress(f"train {band_set}", "epochs") as report,
    ):

        def on_progress(progress: study.StudyProgress) -> None:
            note = f"trial {progress.trial} of {progress.trials}, best validation F1 {progress.best_f1:.3f}"
            report(progress.done, progress.total, note)

        result = study.run(project, band_set, search, on_progress, runner)
    for entry in result.results:
        print(f"{entry.hyperparameters.name}: {entry.summary}")
    path = project.model(band_set)
    print(f"{path.relative_to(project.root)}: exported from trial {result.best.hyperparameters.name}")
    if problem := read_contract(path).measured.lack_of_skill:
        print(f"warning: the model is {problem}")


@app.command("finetune", rich_help_panel=TRAINING)
def finetune(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=MODEL_HELP),
    ],
    area: Annotated[
        str,
        typer.Argument(metavar="AREA", help="Labelled area of params.yaml that is not a training area of the model."),
    ],
    patches: Annotated[int, typer.Option(min=1, help="Number of labelled patches to train on, such as 10.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the new model to this .onnx file instead of registering it.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the choice of patches and of the training. Default: the project's seed."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 200,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1, help="Learning rate.")] = 1e-4,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model with a few labelled patches.

    If image statistics of the area differ from those of the training areas (light, season, sensor), run talud adapt
    first and fine-tune the adapted model: for patches of another country, this increased F1 from 0.56 to 0.66 with ten
    patches.

    The patches contain landslides and are drawn from the whole area with the seed: squares of split.patch pixels, or
    patches of a patch data set. They are augmented as in the recipe of params.yaml. If the unchanged training areas are
    available, half of each batch comes from them, to reduce forgetting. The threshold is chosen on the drawn patches.
    Prints the F1 on the other labelled patches of the area, before and after. The new model is registered as a new
    version, with the alias challenger.

    **Examples**

        talud finetune landslide-unet-7band liboriana --patches 10

        talud finetune models/3band.onnx liboriana --patches 20 --out models/3band.liboriana.onnx

        for seed in 1 2 3; do talud finetune models/3band.onnx liboriana --patches 5 --seed $seed --out tuned.onnx
        --json; done
    """
    from talud import source_files
    from talud.evaluation import registration
    from talud.project import Project

    _check_output(model, out)
    project = Project.find()
    source = registration.open_model(project.root, model)
    if out is not None:
        known = [name for name in {area, *source.contract.origin.areas} if name in project.params.areas]
        stacks = [path for name in known for path in (project.stack(name), project.mask(name))]
        source_files.check_output_file(out, [source.path, *stacks])
    from talud.training import finetuning

    with show_progress("fine-tuning", "steps") as progress:
        made = finetuning.finetune(
            project,
            source,
            area,
            finetuning.FineTuningOptions(patches, project.params.seed if seed is None else seed, steps, learning_rate),
            progress,
        )
    if out is not None:
        registration.write_model(out, made.graph, made.contract)
        location = str(out)
    else:
        location = registration.register_derived(
            project.root, source, made.graph, made.contract, alias="challenger"
        ).uri
    tuning = made.contract.derived.finetuned
    assert tuning is not None
    if as_json:
        summary = {
            "made": location,
            "made_weights": made.contract.origin.weights,
            "made_threshold": made.contract.measured.threshold,
        }
        print(json.dumps({**summary, **tuning.model_dump()}, indent=2))
        return
    trained_on = counted(tuning.patches, "patch", "patches")
    print(f"{trained_on} of {area}, {counted(tuning.landslide_pixels, 'landslide pixel')}")
    rehearsed = ", ".join(tuning.rehearsed) or f"none, because {_why_no_rehearsal(source.contract)}"
    print(f"training areas in each batch: {rehearsed}")
    if tuning.f1_before is None or tuning.f1_after is None:
        print("F1 not measured: no other patch of the area contains landslides")
    else:
        print(f"F1 on the area's other labelled patches: {tuning.f1_before:.3f} before, {tuning.f1_after:.3f} after")
    if made.lack_of_skill:
        print(f"warning: on these patches the fine-tuned model is {made.lack_of_skill}")
    print(f"threshold: {source.contract.measured.threshold:.2f} before, {made.contract.measured.threshold:.2f} after")
    print(f"{source.title}, fine-tuned to {tuning.area}: {location}")


def _check_output(model: str, out: Path | None) -> None:
    """Check the output file of a model that is made from another one."""
    from talud.evaluation import registration

    if registration.is_model_file(model) and out is None:
        raise typer.BadParameter("missing; a model from a file needs an output file", param_hint="--out")
    if out is not None and not registration.is_model_file(str(out)):
        raise typer.BadParameter("must end in .onnx", param_hint="--out")


def _why_no_rehearsal(contract: Contract) -> str:
    if contract.derived.adapted:
        return f"the model was adapted to {contract.derived.adapted.area} and no longer fits its training areas"
    return "the training areas are missing or have changed"


@app.command("adapt", rich_help_panel=TRAINING)
def adapt(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"{MODEL_HELP} With an area of params.yaml: a band set."),
    ],
    raster: Annotated[
        str,
        typer.Argument(
            metavar="RASTER",
            help="Stack of the new area; a larger one gives better statistics. With a band set: an area of "
            "params.yaml.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the new model to this .onnx file instead of registering it.")
    ] = None,
    area: Annotated[
        str | None, typer.Option(help="Name of the area. Default: the name in the stack, or the file name.")
    ] = None,
    align: Annotated[
        Literal["bands", "layers"] | None,
        typer.Option(
            help="What is aligned: the mean and deviation of the bands only, or also the features of each layer. "
            "Default: what fits better."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0.05, max=1, help="Share of the difference in statistics that is corrected.", show_default="1"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Adapt a model to a new area or sensor without labels.

    Different light, season or sensor shift the statistics of the bands and in every layer of the network. Aligns mean
    and variance of the optical and SAR bands, over sample windows of the raster, to those of the training areas, which
    the model file holds; or those of the bands and of all features. The adapted model has the same size and speed, is
    registered as a new version without an alias, and should only be used for this area.

    The windows are mapped in all eight rotations and reflections with the original and both aligned models. Maps with
    far more landslide than the training areas are not plausible. The plausible model whose eight maps agree best is
    chosen. If that is the original, or none is plausible, the command fails with exit code 1 and states what to do. It
    also fails if the raster has too few valid windows.

    With a band set and an area of params.yaml, as in the pipeline: adapts the model of the band set to the area if the
    area has `adapt: true`, maps the area with it, and writes predictions/BAND_SET/AREA.adapted (the files of a map,
    model.onnx and adaptation.json). If the model is not adapted, adaptation.json states the reason, and the exit code
    is 0.

    **Examples**

        talud adapt landslide-unet-7band stacks/liboriana.tif

        talud adapt models/3band.onnx stacks/liboriana.tif --out models/3band.liboriana.onnx

        talud adapt landslide-unet-7band@champion stacks/liboriana.tif --area liboriana --align bands --json

        talud adapt 7band liboriana
    """
    from talud import source_files
    from talud.adaptation import decision
    from talud.adaptation.alignment import adapt as adapt_model
    from talud.data.stack_record import check_raster_current
    from talud.evaluation import registration
    from talud.project import find_root

    root = find_root(Path.cwd())
    if root is not None and _is_project_area(root, model, raster):
        if (out, area, align, strength, as_json) != (None, None, None, None, False):
            raise typer.BadParameter("a band set and an area of params.yaml take no options")
        _adapt_area(model, raster)
        return
    _check_output(model, out)
    check_raster_current(raster)
    source = registration.open_model(root, model)
    if out is not None:
        source_files.check_output_file(out, [source.path, raster])
    made = adapt_model(source, raster, area, strength, align)
    if out is not None:
        registration.write_model(out, made.graph, made.contract)
        location = str(out)
    else:
        location = registration.register_derived(root, source, made.graph, made.contract).uri
    adaptation = made.contract.derived.adapted
    assert adaptation is not None
    if as_json:
        summary = {"made": location, "made_weights": made.contract.origin.weights}
        print(json.dumps({**summary, **adaptation.model_dump()}, indent=2))
        return
    for line in decision.report_lines(made.signs, source.contract.training_share):
        print(line)
    print(f"{source.title}, adapted to {adaptation.area} ({adaptation.label}): {location}")


def _is_project_area(root: Path, band_set: str, area: str) -> bool:
    """Check if two arguments are a band set and an area of a project."""
    from talud.project import Project

    if any(sign in band_set + area for sign in ("/", ".onnx", "@")):
        return False
    params = Project.find(root).params
    return band_set in params.band_sets and area in params.areas


def _adapt_area(band_set: str, area: str) -> None:
    """Adapt the model of a band set to an area, as the pipeline does."""
    from talud.adaptation.area_map import adapt_area
    from talud.project import Project

    with show_progress("mapping", "tiles") as progress:
        found = adapt_area(Project.find(), band_set, area, progress)
    for line in found.lines:
        print(line)


@app.command("quantize", rich_help_panel=TRAINING)
def quantize(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Model in float32, as written by talud train.", show_default=False)
    ],
    precision: Annotated[
        Literal["int8", "float16"],
        typer.Option(help="int8: three times as fast on CPUs with VNNI; float16: for GPUs."),
    ] = "int8",
) -> None:
    """Quantise a model to int8 or float16 for faster maps.

    Writes models/BAND_SET.int8.onnx (or .float16.onnx) next to the model. The variant is calibrated on the training
    patches and scored on the validation blocks; the loss of F1 is printed and stored in its contract. `talud register`
    adds the variant to the version of the model, and `talud predict --precision int8` uses it.

    **Examples**

        talud quantize models/7band.onnx

        talud quantize models/7band.onnx --precision float16
    """
    from talud.project import Project
    from talud.quantization import variant

    made = variant.make_variant(Project.find(), model, precision)
    loss, f1 = made.contract.measured.loss, made.contract.measured.scores["f1"]
    print(f"{made.path}: F1 {f1:.4f} on the validation blocks, {f1 + loss['f1']:.4f} in float32")
    if problem := made.contract.measured.lack_of_skill:
        print(f"warning: the model is {problem}")
    mean, largest = loss["mean_difference"], loss["largest_difference"]
    print(f"difference of probabilities: mean {mean:.2g}, largest {largest:.2g}")
