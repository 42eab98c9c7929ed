"""`talud adapt`: a model for a new area, without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from talud.cli.app import app


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
    from talud import outputs
    from talud.adaptation import adapting
    from talud.data.record import check_current
    from talud.evaluation import derived
    from talud.project import root_around

    if derived.is_file(model) and out is None:
        raise typer.BadParameter("a file is adapted to a file: give one", param_hint="--out")
    if out is not None and not derived.is_file(str(out)):
        raise typer.BadParameter("the name of a model's file ends in .onnx", param_hint="--out")
    check_current(raster)
    root = root_around(Path.cwd())
    source = derived.original(root, model)
    if out is not None:
        outputs.check_file(out, [source.path, raster])
    made = adapting.adapt(source, raster, area, strength)
    if out is not None:
        derived.write(out, made.graph, made.contract)
        place = str(out)
    else:
        place = derived.register(root, source, made.graph, made.contract).uri
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
