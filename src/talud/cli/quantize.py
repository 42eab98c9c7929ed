"""`talud quantize`: make the variant of a model in reduced precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from talud.cli.app import app


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

    made = variant.make(Project.find(), model, precision)
    loss, f1 = made.contract.measured.loss, made.contract.measured.scores["f1"]
    print(f"{made.path}: F1 {f1:.4f} on the validation blocks, {f1 + loss['f1']:.4f} in float32")
    if weak := made.contract.measured.lack_of_skill:
        print(f"warning: the model is {weak}")
    mean, largest = loss["mean_difference"], loss["largest_difference"]
    print(f"probabilities differ by {mean:.2g} in the mean, by {largest:.2g} at most")
