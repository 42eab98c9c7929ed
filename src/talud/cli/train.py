"""`talud train`: run one study and export its best model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from talud.cli.app import app


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
    from talud.cli import mapping
    from talud.cli.progress import shown
    from talud.engine.model_file import contract_of
    from talud.project import Project
    from talud.training import cluster, study

    asked = mapping.workers(workers, scheduler)
    project = Project.find()
    with (
        cluster.workers(asked, project) if asked else nullcontext(study.here) as runner,
        shown(f"train {band_set}", "epochs") as tell,
    ):

        def watch(progress: study.Progress) -> None:
            note = f"trial {progress.trial} of {progress.trials}, best validation F1 {progress.best_f1:.3f}"
            tell(progress.done, progress.total, note)

        result = study.run(project, band_set, search, watch, runner)
    for entry in result.entries:
        print(f"{entry.choice.name}: {entry.outcome}")
    path = project.model(band_set)
    print(f"{path.relative_to(project.root)}: the model of {result.best.choice.name}")
    if weak := contract_of(path).measured.lack_of_skill:
        print(f"warning: the model is {weak}")
