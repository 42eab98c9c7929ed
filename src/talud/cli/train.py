"""`talud train`: run one study and export its best model."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli.app import app


@app.command("train")
def train(
    band_set: Annotated[str, typer.Argument(help="A band set of params.yaml.", show_default=False)],
    search: Annotated[
        str | None, typer.Option(metavar="NAME", help="A search of params.yaml; default: the one that it chooses.")
    ] = None,
) -> None:
    """Train a U-Net for each combination of a search, and export the best one.

    Writes models/BAND_SET.onnx and models/BAND_SET.trials.json, and keeps every trial on record in MLflow.

    **Examples**

        talud train 7band

        talud train 3band --search study
    """
    from talud.cli.progress import shown
    from talud.project import Project
    from talud.training import study

    project = Project.find()
    with shown(f"train {band_set}", "epochs") as tell:

        def watch(progress: study.Progress) -> None:
            done = (progress.trial - 1) * progress.epochs + progress.epoch
            note = f"trial {progress.trial} of {progress.trials}, validation F1 {progress.best_f1:.3f}"
            tell(done, progress.trials * progress.epochs, note)

        result = study.run(project, band_set, search, watch)
    for entry in result.entries:
        print(f"{entry.choice.name}: {entry.outcome}")
    print(f"{project.model(band_set).relative_to(project.root)}: the model of {result.best.choice.name}")
