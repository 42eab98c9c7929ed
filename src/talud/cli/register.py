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

    It becomes the champion if it passes the promotion gate of params.yaml and its F1 is higher than that of the present
    one on the validation blocks and all gate areas together, both scored again on the pixels as they are now; else the
    challenger. Being worse than the champion is no error; a model that breaks a rule of the gate which looks at it
    alone (parity, contract, size, speed) is one: exit code 1. A model that is no better than calling everything, or
    nothing, a landslide, on its validation blocks or on a gate area, becomes no champion, not even the first, unless
    promotion.require_skill is false in params.yaml; a challenger that is compared on fewer than six blocks does not
    win. A model that is registered already is not registered
    twice, and a store that was wiped gets back what lies in models/. What talud quantize made of the model goes into
    the same version.

    **Examples**

        talud register

        talud register 7band
    """
    from talud.errors import PromotionError, StudyError
    from talud.evaluation import promotion
    from talud.project import Project

    project = Project.find()
    trained = [name for name in project.params.band_sets if project.model(name).is_file()]
    if band_set is None and not trained:
        raise StudyError("no band set of params.yaml has a trained model; run dvc repro, or talud train BAND_SET")
    unfit = []
    for name in [band_set] if band_set else trained:
        done = promotion.register(project, name)
        print(f"{done.name} version {done.version} is {done.alias}: {done.reason}")
        for weak in done.warnings:
            print(f"warning: {done.name} version {done.version} is {weak}")
        if done.variants:
            print(f"{done.name} version {done.version} holds the model in {' and '.join(done.variants)} too")
        for file in done.passed_over:
            print(f"{file} is no variant of that model and was left out; talud quantize makes it again")
        if done.unfit:
            unfit.append(f"{done.name} version {done.version} ({done.unfit})")
    if unfit:
        raise PromotionError(f"registered, but does not pass the promotion gate, so no champion: {', '.join(unfit)}")
