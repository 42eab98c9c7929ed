"""`talud finetune`: train a model further on a few labelled patches of a new area."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import app
from talud.cli.progress import shown
from talud.text import counted

if TYPE_CHECKING:
    from talud.contract import Contract


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
    from talud import outputs
    from talud.evaluation import derived
    from talud.project import Project

    if derived.is_file(model) and out is None:
        raise typer.BadParameter("a file is fine-tuned to a file: give one", param_hint="--out")
    if out is not None and not derived.is_file(str(out)):
        raise typer.BadParameter("the name of a model's file ends in .onnx", param_hint="--out")
    project = Project.find()
    source = derived.original(project.root, model)
    if out is not None:
        known = [name for name in {area, *source.contract.origin.areas} if name in project.params.areas]
        stacks = [path for name in known for path in (project.stack(name), project.mask(name))]
        outputs.check_file(out, [source.path, *stacks])
    from talud.training import finetuning

    with shown("fine-tuning", "steps") as progress:
        made = finetuning.finetune(
            project,
            source,
            area,
            patches,
            seed=project.params.seed if seed is None else seed,
            steps=steps,
            learning_rate=learning_rate,
            progress=progress,
        )
    if out is not None:
        derived.write(out, made.graph, made.contract)
        place = str(out)
    else:
        place = derived.register(project.root, source, made.graph, made.contract, alias="challenger").uri
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
    print(f"rehearsed: {', '.join(tuning.rehearsed) or f'nothing: {_why_nothing(source.contract)}'}")
    if tuning.f1_before is None or tuning.f1_after is None:
        print("no other patch of the area holds landslides, so nothing says how good it is")
    else:
        print(f"F1 on the area's other labelled patches: {tuning.f1_before:.3f} before, {tuning.f1_after:.3f} after")
    if made.lack_of_skill:
        print(f"warning: on these the fine-tuned model is {made.lack_of_skill}")
    print(f"threshold: {source.contract.measured.threshold:.2f} before, {made.contract.measured.threshold:.2f} after")
    print(f"{source.title}, fine-tuned to {tuning.area}: {place}")


def _why_nothing(contract: Contract) -> str:
    if contract.derived.adapted:
        return (
            f"it was adapted to {contract.derived.adapted.area}, and reads the areas that it learned from otherwise now"
        )
    return "the areas it learned from are not at hand as they were"
