"""A study's runs, made again from the files that DVC keeps where the MLflow store has lost them."""

from __future__ import annotations

from talud.contract import Contract
from talud.evaluation.results import Trial, Trials
from talud.project import Project
from talud.registry import Store


def run_of(store: Store, project: Project, contract: Contract) -> str:
    """The run of the trial that a model came from.

    Where the store does not have it, wiped for example, the whole study is restored: each trial with its
    hyperparameters and scores, from the table of trials. Learning curves are not kept there.

    Raises:
        StudyError: the table of trials is damaged.
        RegistryError: the store cannot be used.
    """
    if found := store.runs.locate(contract.origin.run_id):
        return found
    tags = {
        "band_set": contract.origin.name,
        "data_version": contract.origin.data_version,
        "commit": contract.origin.commit,
    }
    if not project.trials(contract.origin.name).is_file():
        return store.runs.restore(
            contract.origin.run_id,
            contract.origin.name,
            contract.origin.hyperparameters,
            contract.measured.scores,
            tags,
        )
    table = Trials.read(project.trials(contract.origin.name))
    tags["search"] = table.search
    parent = store.runs.locate(table.parent_run_id) or store.runs.restore(
        table.parent_run_id, f"{table.band_set} · {table.search}", {}, {}, tags
    )
    for trial in sorted(table.trials, key=lambda trial: trial.run_id == table.best):  # the best last: it is looked for
        if store.runs.locate(trial.run_id) is None:
            _restore(store, trial, contract, tags, parent)
    store.runs.summarise(parent, f"Restored from models/{table.band_set}.trials.json, which keeps no learning curves.")
    return store.runs.locate(contract.origin.run_id) or store.runs.restore(
        contract.origin.run_id,
        contract.origin.name,
        contract.origin.hyperparameters,
        contract.measured.scores,
        tags,
        parent,
    )


def _restore(store: Store, trial: Trial, contract: Contract, tags: dict[str, str], parent: str) -> None:
    choice = {  # the other hyperparameters are those of the whole study
        **contract.origin.hyperparameters,
        "filters": trial.filters,
        "learning_rate": trial.learning_rate,
        "batch_size": trial.batch_size,
        "epochs": trial.epochs,
    }
    facts = {"best_epoch": float(trial.best_epoch), "seconds": trial.seconds, "parameters": float(trial.parameters)}
    name = f"{contract.origin.name} · {trial.name}"
    store.runs.restore(trial.run_id, name, choice, {**trial.scores, **facts}, tags, parent)
