"""Commands that make models: train, fine-tune, adapt and quantise."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from talud.cli.app import app
from talud.cli.progress import show_progress
from talud.text import counted

if TYPE_CHECKING:
    from talud.contract import Contract


@app.command("train")
def train(
    band_set: Annotated[str, typer.Argument(help="A band set of params.yaml.", show_default=False)],
    search: Annotated[
        str | None, typer.Option(metavar="NAME", help="A search of params.yaml; default: the one that it chooses.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Run the trials in so many processes, which share the cores or have a GPU each."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run the trials on the workers of a Dask cluster, such as tcp://10.0.0.1:8786, one in a process; the "
            "project must lie where they all reach it under the same path, and MLFLOW_TRACKING_URI name a server.",
        ),
    ] = None,
) -> None:
    """Train a U-Net for each combination of a search, and export the best one.

    Writes models/BAND_SET.onnx and models/BAND_SET.trials.json, and keeps every trial on record in MLflow.

    **Examples**

        talud train 7band

        talud train 3band --search study

        talud train 3band --search study --scheduler tls://10.0.0.1:8786
    """
    from talud.cli import maps
    from talud.engine.model_file import read_contract
    from talud.project import Project
    from talud.training import study, trial_runner

    asked = maps.choose_workers(workers, scheduler)
    project = Project.find()
    with (
        trial_runner.open_workers(asked, project) if asked else nullcontext(trial_runner.run_here) as runner,
        show_progress(f"train {band_set}", "epochs") as report,
    ):

        def on_progress(progress: study.StudyProgress) -> None:
            note = f"trial {progress.trial} of {progress.trials}, best validation F1 {progress.best_f1:.3f}"
            report(progress.done, progress.total, note)

        result = study.run(project, band_set, search, on_progress, runner)
    for entry in result.results:
        print(f"{entry.hyperparameters.name}: {entry.summary}")
    path = project.model(band_set)
    print(f"{path.relative_to(project.root)}: the model of {result.best.hyperparameters.name}")
    if weak := read_contract(path).measured.lack_of_skill:
        print(f"warning: the model is {weak}")


@app.command("finetune")
def finetune(
    model: Annotated[
        str,
        typer.Argument(help="an .onnx file, or a registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION"),
    ],
    area: Annotated[
        str, typer.Argument(help="an area of params.yaml with an inventory, which the model does not know")
    ],
    patches: Annotated[int, typer.Option(min=1, help="how many labelled patches to train on; 10, say")],
    out: Annotated[
        Path | None, typer.Option(help="write the new model to this .onnx file, and register nothing")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="of the draw of the patches and of the training; default: the project's")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="of the training")] = 200,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1, help="of the training")] = 1e-4,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Train a model further on a few labelled patches of a new area.

    Where the area looks otherwise than the training areas, talud adapt first, and fine-tune what it makes: of real
    patches of another country that brought F1 from 0.56 to 0.66, with ten patches.

    The patches are squares of split.patch pixels, or those of a patch data set, that hold landslides, drawn all over
    the area with the seed. They are augmented as the recipe of params.yaml says. Where the training areas are at hand
    as they were, half of each batch is theirs, so that the model forgets less. The threshold becomes the best one on
    the drawn patches. Printed is the F1 on the area's other labelled patches, before and after. The new model is a new
    version of the registered one, and its challenger.

    **Examples**

        talud finetune landslide-unet-7band liboriana --patches 10

        talud finetune models/3band.onnx liboriana --patches 20 --out models/3band.liboriana.onnx

        for seed in 1 2 3; do talud finetune models/3band.onnx liboriana --patches 5 --seed $seed --out tuned.onnx
        --json; done
    """
    from talud import source_files
    from talud.evaluation import registration
    from talud.project import Project

    if registration.is_model_file(model) and out is None:
        raise typer.BadParameter("a file is fine-tuned to a file: give one", param_hint="--out")
    if out is not None and not registration.is_model_file(str(out)):
        raise typer.BadParameter("the name of a model's file ends in .onnx", param_hint="--out")
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
        place = str(out)
    else:
        place = registration.register_derived(project.root, source, made.graph, made.contract, alias="challenger").uri
    tuning = made.contract.derived.finetuned
    assert tuning is not None
    if as_json:
        said = {
            "made": place,
            "made_weights": made.contract.origin.weights,
            "made_threshold": made.contract.measured.threshold,
        }
        print(json.dumps({**said, **tuning.model_dump()}, indent=2))
        return
    trained_on = counted(tuning.patches, "patch", "patches")
    print(f"{trained_on} of {area}, {counted(tuning.landslide_pixels, 'landslide pixel')}")
    print(f"rehearsed: {', '.join(tuning.rehearsed) or f'nothing: {_why_no_rehearsal(source.contract)}'}")
    if tuning.f1_before is None or tuning.f1_after is None:
        print("no other patch of the area holds landslides, so nothing says how good it is")
    else:
        print(f"F1 on the area's other labelled patches: {tuning.f1_before:.3f} before, {tuning.f1_after:.3f} after")
    if made.lack_of_skill:
        print(f"warning: on these the fine-tuned model is {made.lack_of_skill}")
    print(f"threshold: {source.contract.measured.threshold:.2f} before, {made.contract.measured.threshold:.2f} after")
    print(f"{source.title}, fine-tuned to {tuning.area}: {place}")


def _why_no_rehearsal(contract: Contract) -> str:
    if contract.derived.adapted:
        return (
            f"it was adapted to {contract.derived.adapted.area}, and reads the areas that it learned from otherwise now"
        )
    return "the areas it learned from are not at hand as they were"


@app.command("adapt")
def adapt(
    model: Annotated[
        str,
        typer.Argument(help="an .onnx file, or a registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION"),
    ],
    raster: Annotated[str, typer.Argument(help="a stack of the new area; the larger, the better")],
    out: Annotated[
        Path | None, typer.Option(help="write the new model to this .onnx file, and register nothing")
    ] = None,
    area: Annotated[str | None, typer.Option(help="the area's name; default: the stack's own, or the raster's")] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=1,
            help="how much of the way the statistics go; default: 1, or 0.5 where that is too much",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Make a model see a new area as it saw the areas that it learned from; no label is needed.

    Another light, season or sensor changes what a network computes in every layer. Mean and variance of the optical and
    SAR bands and of all features, over squares of the raster, are made those of the training areas, which the file
    holds. The new model has the form and the cost of the old one, is a new version of the registered one, without an
    alias, and is meant for this area alone.

    The squares are mapped in all eight ways in which they can lie, with the model as it is, wholly and half adapted.
    Where the eight maps agree worse once adapted, it declines and exits with 1: much of the area may be landslide, or
    cloud. A raster with too few valid squares is declined too.

    **Examples**

        talud adapt landslide-unet-7band stacks/liboriana.tif

        talud adapt models/3band.onnx stacks/liboriana.tif --out models/3band.liboriana.onnx

        talud adapt landslide-unet-7band@champion stacks/liboriana.tif --area liboriana --strength 0.7 --json
    """
    from talud import source_files
    from talud.adaptation import alignment
    from talud.data.record import check_current
    from talud.evaluation import registration
    from talud.project import find_root

    if registration.is_model_file(model) and out is None:
        raise typer.BadParameter("a file is adapted to a file: give one", param_hint="--out")
    if out is not None and not registration.is_model_file(str(out)):
        raise typer.BadParameter("the name of a model's file ends in .onnx", param_hint="--out")
    check_current(raster)
    root = find_root(Path.cwd())
    source = registration.open_model(root, model)
    if out is not None:
        source_files.check_output_file(out, [source.path, raster])
    made = alignment.adapt(source, raster, area, strength)
    if out is not None:
        registration.write_model(out, made.graph, made.contract)
        place = str(out)
    else:
        place = registration.register_derived(root, source, made.graph, made.contract).uri
    adaptation = made.contract.derived.adapted
    assert adaptation is not None
    if as_json:
        print(
            json.dumps(
                {"made": place, "made_weights": made.contract.origin.weights, **adaptation.model_dump()}, indent=2
            )
        )
        return
    print(
        f"agreement with itself, turned and mirrored: {adaptation.agreement_before:.3f} before, "
        f"{adaptation.agreement_after:.3f} after; strength {adaptation.strength:g}"
    )
    print(f"{source.title}, adapted to {adaptation.area}: {place}")


@app.command("quantize")
def quantize(
    model: Annotated[Path, typer.Argument(help="The float32 file that talud train wrote.", show_default=False)],
    precision: Annotated[
        Literal["int8", "float16"],
        typer.Option(help="int8 is three times as fast on a CPU with VNNI; float16 is for GPUs."),
    ] = "int8",
) -> None:
    """Make the variant of a model in reduced precision, and measure what it loses.

    Writes models/BAND_SET.int8.onnx (or .float16.onnx) beside the model. It is calibrated on the patches that the
    model was trained on, and measured on the validation blocks; its contract holds the loss. `talud register` puts it
    into the same version as the model, and `talud predict --precision int8` maps with it.

    **Examples**

        talud quantize models/7band.onnx

        talud quantize models/7band.onnx --precision float16
    """
    from talud.project import Project
    from talud.quantization import variant

    made = variant.make_variant(Project.find(), model, precision)
    loss, f1 = made.contract.measured.loss, made.contract.measured.scores["f1"]
    print(f"{made.path}: F1 {f1:.4f} on the validation blocks, {f1 + loss['f1']:.4f} in float32")
    if weak := made.contract.measured.lack_of_skill:
        print(f"warning: the model is {weak}")
    mean, largest = loss["mean_difference"], loss["largest_difference"]
    print(f"probabilities differ by {mean:.2g} in the mean, by {largest:.2g} at most")
