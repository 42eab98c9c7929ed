"""`talud register`: register trained models."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli.app import app


@app.command("register")
def register(
    band_set: Annotated[
        str | None, typer.Argument(help="A band set of params.yaml. Default: each one that has a trained model.")
    ] = None,
) -> None:
    """Register a band set's model in MLflow as landslide-unet-BAND_SET, and give it its alias.

    It becomes the champion if it beats the present one on the validation blocks and is not worse on any gate area,
    both scored again on the pixels as they are now; else the challenger. A model that is registered already is not
    registered twice, and a store that was wiped gets back what lies in models/. What talud quantize made of the model
    goes into the same version.

    **Examples**

        talud register

        talud register 7band
    """
    from talud.errors import StudyError
    from talud.evaluation import promotion
    from talud.project import Project

    project = Project.find()
    trained = [name for name in project.params.band_sets if project.model(name).is_file()]
    if band_set is None and not trained:
        raise StudyError("no band set of params.yaml has a trained model; run dvc repro, or talud train BAND_SET")
    for name in [band_set] if band_set else trained:
        done = promotion.register(project, name)
        print(f"{done.name} version {done.version} is {done.alias}: {done.reason}")
        if done.variants:
            print(f"{done.name} version {done.version} holds the model in {' and '.join(done.variants)} too")
