"""`talud reference`: what the recipe is worth beside the one that it is compared with."""

from __future__ import annotations

from typing import Annotated

import typer

from talud.cli.app import app
from talud.cli.progress import shown


@app.command("reference")
def reference(
    band_set: Annotated[str, typer.Argument(help="A band set of params.yaml.", show_default=False)],
) -> None:
    """Train the best configuration once more, with the recipe that params.yaml names as `reference`, and score both.

    Writes references/BAND_SET.onnx, its table of trials, and references/BAND_SET.json: F1, precision and recall of
    both models with 95 % intervals, on the test blocks of the training areas and on the other labelled areas. The model
    is for comparison alone: it is not registered. Where there is no reference, the chosen recipe stands alone.

    **Examples**

        talud reference 3band
    """
    from talud import load_model
    from talud.evaluation import recipes
    from talud.evaluation.results import Trials
    from talud.params import Search
    from talud.project import Project
    from talud.training import study

    project = Project.find()
    best = Trials.read(project.trials(band_set)).best_trial
    models = {project.params.recipe: load_model(project.model(band_set))}
    other = recipes.reference(
        project,
        Search(
            filters=(best.filters,),
            learning_rate=(best.learning_rate,),
            batch_size=(best.batch_size,),
            epochs=best.epochs,
            patience=best.patience,
            seeds=() if best.training_seed is None else (best.training_seed,),
        ),
    )
    if other:
        with shown(f"train {band_set}, {other.params.recipe}", "epochs") as tell:
            study.run(other, band_set, watch=lambda step: tell(step.done, step.total, f"F1 {step.best_f1:.3f}"))
        models[other.params.recipe] = load_model(other.model(band_set))
    with shown(f"comparing {band_set}", "maps") as progress:
        found = recipes.compared(project, band_set, models, progress)
    for row in found.scored:
        low, high = row.intervals["f1"]
        print(f"{row.recipe}: {row.area}, {row.pixels}: F1 {row.f1:.3f} ({low:.3f} to {high:.3f})")
        if row.lack_of_skill:
            print(f"warning: {row.recipe} on {row.area} is {row.lack_of_skill}")
