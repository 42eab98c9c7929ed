"""Training of one trial: a network with one set of hyperparameters."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from talud.errors import StudyError
from talud.networks import unet
from talud.networks.catalogue import NetworkSpec, build_network, pretrained_weights
from talud.params import Recipe, TrainingOptions
from talud.process import defer_sigint
from talud.project import Project
from talud.training import checkpoint
from talud.training.augmentation import Augmenter
from talud.training.batches import Dropping, TrainingBatches
from talud.training.checkpoint import Epoch, TrialState
from talud.training.dataset import Statistics, TrainingData
from talud.training.losses import Loss, PixelScores
from talud.training.optimizer import create_optimizer
from talud.training.search import Hyperparameters

VALIDATION_BATCH_SIZE = 32
NORMALISATION_BATCHES = 16  # largest number of batches for the statistics of averaged weights
# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc, in bytes; the second has its largest value.
MALLOC_OPTIONS = {-1: 2**30, -3: 2**25}
# Training continues for at least this many times as long as the last checkpoint took to write.
MIN_TRAINING_TO_WRITING_RATIO = 20

StateCallback = Callable[[TrialState], None]


@dataclass(frozen=True)
class TrialConfig:
    """Configuration of a trial: everything but the data.

    Attributes:
        hyperparameters: network, filters, learning rate, batch size and number of epochs.
        recipe: loss, augmentation, dropping, schedule and regularisation.
        options: depth and settings of networks, and how their training is computed.
        seed: seed of the weights, the order and the augmentation of the patches.
        bands: names of the bands, in the order in which the network reads them.
        root: folder to which the path of a file of weights is relative.
    """

    hyperparameters: Hyperparameters
    recipe: Recipe
    options: TrainingOptions
    seed: int
    bands: tuple[str, ...]
    root: Path = Path()

    @classmethod
    def of(cls, project: Project, hyperparameters: Hyperparameters, bands: tuple[str, ...]) -> TrialConfig:
        """Return the configuration of a trial in a project."""
        params = project.params
        seed = params.seed if hyperparameters.training_seed is None else hyperparameters.training_seed
        return cls(hyperparameters, params.chosen_recipe, params.training, seed, bands, project.root)

    @property
    def network(self) -> NetworkSpec:
        """Network of the trial, with its options and the checksum of its file of weights.

        Raises:
            ParamsError: The depth does not suit the network, or the file cannot be read.
        """
        name, filters = self.hyperparameters.network, self.hyperparameters.filters
        return NetworkSpec(name, self.options.network_options(name, filters, self.bands).pinned(self.root))

    def build(
        self, statistics: Statistics, *, rematerialise: bool = False, mixed_precision: unet.Precision = False
    ) -> keras.Model:
        """Return the untrained network, by default in float32 as for the export.

        Args:
            statistics: statistics of the bands over the training patches.
            rematerialise: as for `talud.networks.unet.build`.
            mixed_precision: as for `talud.networks.unet.build`.
        """
        return build_network(
            self.network,
            statistics.mean.astype(np.float32),
            statistics.deviation.astype(np.float32),
            self.seed,
            rematerialise=rematerialise,
            mixed_precision=mixed_precision,
            batch_normalisation=self.recipe.batch_normalisation,
            root=self.root,
        )

    def training_batches(self, data: TrainingData, first_epoch: int = 0) -> TrainingBatches:
        """Return the training batches from an epoch on, counted from 0."""
        mean, deviation = data.statistics.mean, data.statistics.deviation
        return TrainingBatches(
            data.training,
            self.hyperparameters.batch_size,
            augmenter=Augmenter.of(self.recipe.augmentation, data.bands, mean, deviation),
            seed=self.seed,
            first_epoch=first_epoch,
            dropping=Dropping.of(self.recipe.dropping, data.bands),
            balanced=self.options.balance == "area",
        )


def train(
    data: TrainingData,
    config: TrialConfig,
    file: Path,
    *,
    state: TrialState,
    max_epochs: int,
    on_epoch: StateCallback = lambda _: None,
    on_write: StateCallback = lambda _: None,
) -> TrialState:
    """Train a network up to an epoch from a saved state.

    On one machine, equal arguments give equal weights, no matter how often the training was interrupted.

    Args:
        data: patches and the statistics of their bands.
        config: configuration of the trial.
        file: path of the checkpoint, which is written after each epoch, or less often if writing takes long.
        state: state to resume from; `TrialState()` to begin.
        max_epochs: number of the last epoch, counted from 1.
        on_epoch: callback with the state after each epoch.
        on_write: callback with the state after each writing of the checkpoint.

    Returns:
        The state after the last epoch, which is also in the checkpoint.

    Raises:
        StudyError: The loss is not finite.
        OutputError: The checkpoint cannot be written.
    """
    hyperparameters, recipe = config.hyperparameters, config.recipe
    if state.is_finished(max_epochs, hyperparameters.patience):
        return state
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    model = compile_network(config, data.statistics, len(config.training_batches(data)))
    keeper = CheckpointCallback(model, state, file, hyperparameters, max_epochs, on_epoch, on_write)
    done = len(state.epochs)
    averaged: list[keras.callbacks.Callback] = []
    if recipe.averaging and recipe.batch_normalisation:
        averaged = [_AveragedWeights(config.build(data.statistics), config.training_batches(data))]
    elif recipe.averaging:
        averaged = [keras.callbacks.SwapEMAWeights()]
    # TensorFlow turns a Ctrl-C inside a step into a SystemError, so it is handled between two steps.
    with defer_sigint() as release:
        model.fit(
            config.training_batches(data, done),
            validation_data=(data.validation.stack, data.validation.mask[..., np.newaxis]),
            validation_batch_size=VALIDATION_BATCH_SIZE,
            initial_epoch=done,
            epochs=max_epochs,
            shuffle=False,
            verbose=0,
            callbacks=[*averaged, keeper, _after_each_step(release)],
        )
    return keeper.state


class _AveragedWeights(keras.callbacks.SwapEMAWeights):  # type: ignore[misc]
    """Callback that validates averaged weights with matching normalisation.

    During training, the statistics of batch normalisation follow the current weights, not their averages. The
    recomputed statistics remain after the weights are swapped back, since no training step reads them.
    """

    def __init__(self, network: keras.Model, batches: TrainingBatches) -> None:
        """Keep an equal network and the batches for its statistics."""
        super().__init__()
        self._network, self._batches = network, batches

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Swap in the averaged weights and recompute the statistics."""
        super().on_test_begin(logs)
        self._network.set_weights(self.model.get_weights())
        some = range(min(len(self._batches), NORMALISATION_BATCHES))
        unet.recompute_normalisation(self._network, (self._batches[number][0] for number in some))
        self.model.set_weights(self._network.get_weights())


def _after_each_step(do: Callable[[], None]) -> keras.callbacks.Callback:
    """Return a callback that calls `do` after each step."""
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_, **__: _retain_freed_memory(),
        on_train_batch_end=lambda *_, **__: do(),
        on_test_batch_end=lambda *_, **__: do(),
    )


def _retain_freed_memory() -> None:
    """Make glibc keep the memory that a training step frees.

    `fit` makes TensorFlow configure glibc to return all freed memory to the system, which then clears every page again.
    That takes a third of the training time. Other C libraries have no such setting and are left alone.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for setting, size in MALLOC_OPTIONS.items():
            mallopt(setting, size)


def compile_network(config: TrialConfig, statistics: Statistics, steps: int) -> keras.Model:
    """Return the untrained network of a trial, compiled for training.

    Its weights have the order of those of `TrialConfig.build`. Keras's dtype policy, which is global, is not
    changed.

    Args:
        config: configuration of the trial.
        statistics: statistics of the bands over the training patches.
        steps: number of batches in an epoch, for the schedule of the learning rate.

    Raises:
        StudyError: The options ask for something that has no effect on this device.
    """
    hyperparameters, recipe, options = config.hyperparameters, config.recipe, config.options
    if options.rematerialise and keras.backend.backend() == "jax" and keras.distribution.list_devices()[0] == "cpu:0":
        raise StudyError(
            "training.rematerialise saves no memory with JAX on a CPU, whose compiler merges duplicate computations; "
            "set it to false in params.yaml, or train with KERAS_BACKEND=tensorflow or on a GPU"
        )
    model = config.build(statistics, rematerialise=options.rematerialise, mixed_precision=options.mixed_precision)
    # XLA is used only on request or if needed: on two cores TensorFlow compiles for 14 s and then trains no faster.
    jit = "auto" if options.xla or keras.backend.backend() != "tensorflow" else False
    optimizer = create_optimizer(
        recipe,
        hyperparameters.learning_rate,
        hyperparameters.epochs,
        steps,
        pretrained_weights(config.network, model),
    )
    if options.mixed_precision == "float16":  # scaling keeps small gradients from underflowing
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer=optimizer, loss=Loss(recipe.loss), metrics=[PixelScores()], jit_compile=jit)
    # If the optimiser creates its variables in the first step, TensorFlow traces that step twice, which takes seconds.
    optimizer.build(model.trainable_variables)
    return model


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Callback that keeps a trial's state and checkpoint.

    The best epoch is that with the highest validation F1; of equal ones, that with the lowest validation loss.
    """

    def __init__(
        self,
        model: keras.Model,
        state: TrialState,
        file: Path,
        hyperparameters: Hyperparameters,
        max_epochs: int,
        on_epoch: StateCallback,
        on_write: StateCallback,
    ) -> None:
        super().__init__()
        self._file, self._hyperparameters, self._max_epochs = file, hyperparameters, max_epochs
        self._on_epoch, self._on_write = on_epoch, on_write
        self._writing_seconds, self._written, self._began = 0.0, time.monotonic(), time.monotonic()
        self._before = state.seconds
        weight_count = sum(math.prod(weight.shape) for weight in model.trainable_weights)
        self.state = replace(state, weight_count=weight_count)
        if state.weights is not None:
            model.set_weights(state.weights)
            for variable, values in zip(model.optimizer.variables, state.optimizer or (), strict=True):
                variable.assign(values)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record the epoch, and write the checkpoint if due."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["val_loss"])):
            raise StudyError(f"the loss of epoch {epoch + 1} is not a number; try a lower learning rate")
        epochs = (*self.state.epochs, Epoch(epoch + 1, time.time_ns() // 10**6, metrics))
        seconds = self._before + time.monotonic() - self._began
        self.state = replace(self.state, epochs=epochs, seconds=seconds)
        if not self.state.best_epoch or _rank(metrics) > _rank(epochs[self.state.best_epoch - 1].metrics):
            self.state = replace(self.state, best_epoch=epoch + 1, best=self._validated())
        self._on_epoch(self.state)
        finished = self.state.is_finished(self._max_epochs, self._hyperparameters.patience)
        self.model.stop_training = finished
        if finished or time.monotonic() - self._written >= MIN_TRAINING_TO_WRITING_RATIO * self._writing_seconds:
            self._write()

    def _validated(self) -> checkpoint.Weights:
        """Return the validated weights, or their moving averages."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        averages = {}
        if optimizer.use_ema:  # Keras has no public access to the averages
            pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
            averages = {id(weight): average for weight, average in pairs}
        return [np.asarray(averages.get(id(weight), weight)) for weight in self.model.weights]

    def _write(self) -> None:
        begun = time.monotonic()
        optimizer = [np.asarray(variable) for variable in self.model.optimizer.variables]
        self.state = replace(self.state, weights=self.model.get_weights(), optimizer=optimizer)
        checkpoint.write(self._file, self.state)
        self._written = time.monotonic()
        self._writing_seconds = self._written - begun
        self._on_write(self.state)


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["val_f1"], -metrics["val_loss"]
