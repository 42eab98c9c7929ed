"""Hyperparameters and epochs of the trials of a search."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from talud.errors import ParamsError
from talud.params import DroppingOptions, Params, Recipe, Search
from talud.params.networks import PLAIN_UNET, NetworkName, NetworkOptions

_Trial = TypeVar("_Trial")


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of a trial.

    Attributes:
        filters: number of filters of the first level.
        learning_rate: learning rate of the optimiser.
        batch_size: number of patches in a batch.
        epochs: largest number of epochs.
        patience: number of epochs without a higher validation F1 after which training stops; None: no early stopping.
        training_seed: seed of the weights, the order and the augmentation of the patches; None: the project's seed.
        network: name of the network.
    """

    filters: int
    learning_rate: float
    batch_size: int
    epochs: int
    patience: int | None
    training_seed: int | None = None
    network: NetworkName = PLAIN_UNET

    @property
    def name(self) -> str:
        """Short name, unique in a study; the plain U-Net is not named."""
        parts = [f"{self.filters} filters", f"lr {self.learning_rate:g}", f"batch {self.batch_size}"]
        if self.network != PLAIN_UNET:
            parts.insert(0, self.network)
        if self.training_seed is not None:
            parts.append(f"seed {self.training_seed}")
        return " · ".join(parts)


@dataclass(frozen=True)
class Rung:
    """Rung of a search.

    Attributes:
        trials: number of trials.
        epochs: epochs that each trial has at the end of the rung, counted from its first.
    """

    trials: int
    epochs: int


def find_search(params: Params, name: str) -> Search:
    """Return the search with the given name.

    Raises:
        ParamsError: There is no such search.
    """
    searches: Mapping[str, Search] = params.searches
    if name not in searches:
        raise ParamsError(f"no search '{name}' in params.yaml; it has: {', '.join(searches)}")
    return searches[name]


def hyperparameter_sets(search: Search, seed: int) -> tuple[Hyperparameters, ...]:
    """Return the combinations of a search, or a sample of them.

    The values of the last parameter vary fastest. If the search limits the number of trials, the sample has that size.

    Args:
        search: search of params.yaml.
        seed: seed of the sample.
    """
    grid = [
        Hyperparameters(filters, learning_rate, batch_size, search.epochs, search.patience, training_seed, network)
        for network, filters, learning_rate, batch_size, training_seed in itertools.product(
            search.network, search.filters, search.learning_rate, search.batch_size, search.seeds or (None,)
        )
    ]
    if search.trials is None or search.trials >= len(grid):
        return tuple(grid)
    drawn = np.random.default_rng(seed).choice(len(grid), search.trials, replace=False)
    return tuple(grid[number] for number in sorted(drawn))


def rungs(search: Search, trials: int) -> tuple[Rung, ...]:
    """Return the rungs of a search.

    A grid search has one rung. Successive halving (Jamieson and Talwalkar, 2016) trains all trials for a few epochs,
    then the best 1/factor of them factor times as long, and so on up to the search's epochs.

    Args:
        search: search of params.yaml.
        trials: number of trials.
    """
    if search.method == "grid":
        return (Rung(trials, search.epochs),)
    steps, epochs = [], search.first_epochs
    while epochs < search.epochs and trials > 1:
        steps.append(Rung(trials, epochs))
        trials, epochs = math.ceil(trials / search.factor), epochs * search.factor
    return (*steps, Rung(trials, search.epochs))


def total_epochs(steps: Sequence[Rung]) -> int:
    """Count the epochs of all rungs; trials resume from rung to rung."""
    before = (0, *(step.epochs for step in steps))
    return sum(step.trials * (step.epochs - done) for step, done in zip(steps, before, strict=False))


def survivors(trials: Sequence[_Trial], f1: Sequence[float], count: int) -> tuple[_Trial, ...]:
    """Return the trials with the highest F1, in order.

    Of trials with equal F1 the first are kept.
    """
    kept = sorted(sorted(range(len(trials)), key=lambda number: -f1[number])[:count])
    return tuple(trials[number] for number in kept)


def recorded_hyperparameters(
    params: Params, hyperparameters: Hyperparameters, bands: Sequence[str]
) -> dict[str, float | int | str]:
    """Return the hyperparameters that MLflow and the contract record.

    They are all settings that decide a trial's weights, except the data.
    """
    options, recipe = params.training, params.chosen_recipe
    chosen = {name: value for name, value in asdict(hyperparameters).items() if value is not None}
    network = _network_summary(options.network_options(hyperparameters.network, hyperparameters.filters, bands))
    shared = {**network, "recipe": params.recipe, **_recipe_options(recipe)}
    if options.balance != "none":
        shared["balance"] = options.balance
    if options.mixed_precision:
        shared["arithmetic"] = f"mixed {options.mixed_precision}"
    return {**chosen, **shared, **params.split_hyperparameters}


def _network_summary(options: NetworkOptions) -> dict[str, float | int | str]:
    """Return the recorded options of a network, apart from its filters.

    Their names have the prefix `network_`, except `depth`.
    """
    stated = options.model_dump(mode="json", exclude={"filters"}, exclude_none=True)
    return {
        name if name == "depth" else f"network_{name}": value if isinstance(value, int | str) else json.dumps(value)
        for name, value in stated.items()
    }


def _recipe_options(recipe: Recipe) -> dict[str, float | int | str]:
    """Return the recorded options of a recipe.

    Names of augmentation options have the prefix `augmentation_`.
    """
    options = recipe.model_dump(exclude={"augmentation", "dropping"})
    augmentation = {f"augmentation_{name}": value for name, value in recipe.augmentation.model_dump().items()}
    optimizer = "AdamW" if recipe.weight_decay else "Adam"
    return {"optimizer": optimizer, **options, **augmentation, **_dropping_summary(recipe.dropping)}


def _dropping_summary(options: DroppingOptions) -> dict[str, str]:
    """Return the recorded dropping options, if any."""
    shares = {str(group): share for group, share in options.groups.items()} | {"clouds": options.clouds}
    dropped = ", ".join(f"{name} {share:g}" for name, share in shares.items() if share)
    return {"dropping": dropped} if dropped else {}
