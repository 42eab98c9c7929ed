"""Tests of training, resuming and reproducing a trial."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from talud import metrics
from talud.data.patches import Patches
from talud.errors import StudyError
from talud.networks.unet import NORMALISATION_SUFFIX
from talud.params import Augmentation, Recipe, TrainingOptions
from talud.training import checkpoint, trial
from talud.training.checkpoint import TrialState
from talud.training.dataset import Statistics, TrainingData
from talud.training.search import Hyperparameters
from talud.training.trial import CheckpointCallback, TrialConfig, train


def bright_squares(count: int, seed: int) -> Patches:
    """Return patches with a bright landslide, and invalid and unknown pixels."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((count, 16, 16), np.uint8)
    for one in mask:
        row, column = generator.integers(0, 10, 2)
        one[row : row + 6, column : column + 6] = 1
    stack = generator.normal(100, 20, (count, 16, 16, 2)).astype(np.float32)
    stack[..., 1] += 60 * mask
    stack[:, 2, 3, 0] = np.nan
    mask[:, 7, :2] = 255
    return Patches(stack, mask)


TRAINING, VALIDATION = bright_squares(40, 1), bright_squares(12, 2)
STATISTICS = Statistics.of(TRAINING.stack, ("a", "b"))
HYPERPARAMETERS = Hyperparameters(filters=4, learning_rate=1e-2, batch_size=8, epochs=15, patience=None)
SHORT = replace(HYPERPARAMETERS, epochs=3)

RECIPE = Recipe()
FULL_RECIPE = Recipe(
    augmentation=Augmentation(
        scale=0.2, shrink=0.2, gain=0.1, offset=0.1, gamma=0.1, haze=0.1, light=0.1, hue=0.05, paste=0.2
    ),
    loss="focal_tversky",
    schedule="one_cycle",
    encoder_rate=0.5,
    weight_decay=0.01,
    averaging=0.8,
    batch_normalisation=True,
)


def network(seed: int, *, batch_normalisation: bool = False) -> keras.Model:
    """Return the untrained network of a trial."""
    recipe = Recipe(batch_normalisation=batch_normalisation)
    return TrialConfig(HYPERPARAMETERS, recipe, TrainingOptions(depth=1), seed, ("a", "b")).build(STATISTICS)


def train_trial(
    folder: Path,
    hyperparameters: Hyperparameters = HYPERPARAMETERS,
    state: TrialState | None = None,
    max_epochs: int | None = None,
    seed: int = 3,
    recipe: Recipe = RECIPE,
    **options: Any,
) -> TrialState:
    return train(
        TrainingData(("a", "b"), TRAINING, VALIDATION, STATISTICS),
        TrialConfig(hyperparameters, recipe, TrainingOptions(depth=1, **options), seed, ("a", "b")),
        folder / "trial.npz",
        state=state or TrialState(),
        max_epochs=max_epochs or hyperparameters.epochs,
    )


def equal_weights(first: list[np.ndarray] | None, second: list[np.ndarray] | None) -> bool:
    assert first is not None
    assert second is not None
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def validation_scores(mapped: np.ndarray) -> dict[str, float]:
    """Return the four scores of a map of the validation patches."""
    scores = metrics.confusion(mapped, VALIDATION.mask).scores()
    return {name: scores[name] for name in ("precision", "recall", "f1", "iou")}


@pytest.fixture(scope="module")
def short_trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialState, Path]:
    """Return a trial of three epochs and its checkpoint."""
    folder = tmp_path_factory.mktemp("short_trial")
    return train_trial(folder, SHORT), folder / "trial.npz"


@pytest.mark.slow
def test_trial_is_reproducible_by_seed(short_trial: tuple[TrialState, Path], tmp_path: Path) -> None:
    first, again = short_trial[0], train_trial(tmp_path, SHORT)
    other = train_trial(tmp_path, SHORT, seed=4)
    assert equal_weights(first.best, again.best)
    assert not equal_weights(first.best, other.best)


@pytest.mark.slow
def test_trial_keeps_best_epoch_with_matching_scores(tmp_path: Path) -> None:
    result = train_trial(tmp_path)
    assert [epoch.number for epoch in result.epochs] == list(range(1, 16))
    assert result.scores["f1"] == max(epoch.metrics["val_f1"] for epoch in result.epochs) > 0.9
    assert result.scores["f1"] == result.epochs[result.best_epoch - 1].metrics["val_f1"]
    model = network(seed=9)
    model.set_weights(result.best)
    mapped = np.asarray(model(VALIDATION.stack))[..., 0] >= 0.5
    assert validation_scores(mapped) == pytest.approx(result.scores, abs=1e-6)


def test_best_epoch_has_highest_f1_then_lowest_loss(tmp_path: Path) -> None:
    model = network(seed=9)
    model.compile(optimizer="adam")
    callbacks = {"on_epoch": lambda state: None, "on_write": lambda state: None}
    callback = CheckpointCallback(
        model, TrialState(), tmp_path / "trial.npz", HYPERPARAMETERS, HYPERPARAMETERS.epochs, **callbacks
    )
    callback.set_model(model)
    for epoch, (f1, loss) in enumerate([(0.2, 0.9), (0.6, 0.5), (0.6, 0.4), (0.6, 0.4), (0.5, 0.1)]):
        model.get_layer("scaling").set_weights([np.full(2, epoch), np.ones(2)])
        logs = {"loss": 0.3, "val_loss": loss, "val_precision": 0, "val_recall": 0, "val_iou": 0, "val_f1": f1}
        callback.on_epoch_end(epoch, logs)
    assert callback.state.best_epoch == 3
    np.testing.assert_array_equal(callback.state.best[0], [2, 2])


@pytest.mark.slow
def test_trial_with_full_recipe_learns_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "pretrained_weights", lambda _, model: model.get_layer("bottom_first").trainable_weights)
    hyperparameters = replace(HYPERPARAMETERS, epochs=8)
    whole = train_trial(tmp_path / "whole", hyperparameters, recipe=FULL_RECIPE)
    half = train_trial(tmp_path, hyperparameters, max_epochs=3, recipe=FULL_RECIPE)
    stored = checkpoint.read(tmp_path / "trial.npz")
    result = train_trial(tmp_path, hyperparameters, state=stored, recipe=FULL_RECIPE)
    assert len(half.epochs) == 3
    assert equal_weights(result.best, whole.best)
    assert [epoch.metrics for epoch in result.epochs] == [epoch.metrics for epoch in whole.epochs]
    assert result.scores["f1"] > 0.6
    model = network(seed=9, batch_normalisation=True)
    model.set_weights(result.best)
    probability = np.asarray(model(VALIDATION.stack))[..., 0]
    # The scores are those of the averaged weights.
    assert result.scores == pytest.approx(validation_scores(probability >= 0.5), abs=1e-6)


@pytest.mark.slow
def test_bfloat16_trial_resumes_exactly(tmp_path: Path) -> None:
    whole = train_trial(tmp_path / "whole", SHORT, mixed_precision="bfloat16")
    train_trial(tmp_path, SHORT, max_epochs=1, mixed_precision="bfloat16")
    stored = checkpoint.read(tmp_path / "trial.npz")
    result = train_trial(tmp_path, SHORT, state=stored, mixed_precision="bfloat16")
    assert equal_weights(result.best, whole.best)
    assert [epoch.metrics for epoch in result.epochs] == [epoch.metrics for epoch in whole.epochs]
    assert whole.epochs[-1].metrics["loss"] < whole.epochs[0].metrics["loss"] - 0.02


@pytest.mark.slow
def test_averaged_weights_have_matching_normalisation(tmp_path: Path) -> None:
    """Use a high learning rate, so that raw and averaged weights differ."""
    recipe = Recipe(averaging=0.9, batch_normalisation=True, augmentation=Augmentation(symmetries=False))
    result = train_trial(tmp_path, replace(HYPERPARAMETERS, learning_rate=3e-2, epochs=2), recipe=recipe)
    model = network(seed=9, batch_normalisation=True)
    model.set_weights(result.best)
    normalisations = [layer for layer in model.layers if NORMALISATION_SUFFIX in layer.name]
    hidden = keras.Model(model.inputs[0], [layer.output for layer in normalisations])
    for values, normalisation in zip(hidden(TRAINING.stack), normalisations, strict=True):
        scale, offset, *_ = normalisation.get_weights()
        normalised = (np.asarray(values) - offset) / scale
        np.testing.assert_allclose(normalised.mean(axis=(0, 1, 2)), 0, atol=0.01)
        np.testing.assert_allclose(normalised.var(axis=(0, 1, 2)), 1, atol=0.02)


@pytest.mark.slow
def test_rematerialised_trial_gives_same_weights(short_trial: tuple[TrialState, Path], tmp_path: Path) -> None:
    plain, again = short_trial[0], train_trial(tmp_path, SHORT, rematerialise=True)
    assert again.scores == pytest.approx(plain.scores, abs=1e-4)
    for first, second in zip(plain.best, again.best, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.slow
def test_mixed_precision_trial_learns_float32_weights(tmp_path: Path) -> None:
    half = train_trial(tmp_path, max_epochs=7, mixed_precision="float16", rematerialise=True)
    result = train_trial(tmp_path, state=half, mixed_precision="float16", rematerialise=True)
    assert result.scores["f1"] > 0.9
    assert all(np.isfinite(epoch.metrics["loss"]) for epoch in result.epochs)
    model = network(seed=99)
    model.set_weights(result.best)
    assert {weight.dtype for weight in result.best} == {np.dtype(np.float32)}
    mapped = np.asarray(model(VALIDATION.stack))[..., 0] >= 0.5
    assert validation_scores(mapped) == pytest.approx(result.scores, abs=0.01)


@pytest.mark.slow
def test_xla_trial_gives_same_losses(short_trial: tuple[TrialState, Path], tmp_path: Path) -> None:
    plain, compiled = short_trial[0], train_trial(tmp_path, SHORT, xla="auto")
    losses = [[epoch.metrics["loss"] for epoch in state.epochs] for state in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.mark.slow
def test_trial_fails_on_non_finite_loss(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not a number"):
        train_trial(tmp_path, replace(HYPERPARAMETERS, learning_rate=1e38))


@pytest.mark.slow
def test_trial_interrupted_after_any_epoch_resumes_exactly(tmp_path: Path) -> None:
    hyperparameters = replace(HYPERPARAMETERS, epochs=6, patience=3)
    whole = train_trial(tmp_path / "whole", hyperparameters)
    state = TrialState()
    for until in (1, 2, 4, 6):
        parts = train_trial(tmp_path, hyperparameters, state, until)
        state = checkpoint.read(tmp_path / "trial.npz")
        assert state.epochs == parts.epochs
    for name in checkpoint.ARRAYS:
        assert equal_weights(getattr(state, name), getattr(whole, name)), name
    assert [epoch.metrics for epoch in state.epochs] == [epoch.metrics for epoch in whole.epochs]
    assert (state.best_epoch, state.weight_count) == (whole.best_epoch, whole.weight_count)


@pytest.mark.slow
def test_trial_stops_early_without_improvement(tmp_path: Path) -> None:
    result = train_trial(tmp_path, replace(HYPERPARAMETERS, learning_rate=1e-12, epochs=30, patience=3))
    assert len(result.epochs) == result.best_epoch + 3 < 30


@pytest.mark.slow
def test_damaged_checkpoint_reads_as_initial_state(short_trial: tuple[TrialState, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(short_trial[1], tmp_path))
    assert len(checkpoint.read(path).epochs) == 3
    whole = path.read_bytes()
    for keep in (0, 100, 5000):
        path.write_bytes(whole[:keep])
        assert checkpoint.read(path) == TrialState(), keep
    path.unlink()
    assert checkpoint.read(path) == TrialState()


def test_statistics_ignore_invalid_pixels() -> None:
    stack = np.array([[1, 10], [3, np.nan], [np.nan, 10]], np.float32).reshape(1, 3, 1, 2)
    statistics = Statistics.of(stack, ("a", "b"))
    np.testing.assert_allclose(statistics.mean, [2, 10])
    np.testing.assert_allclose(statistics.deviation, [1, 1])  # 1 for the constant band, since bands are divided by it
    np.testing.assert_allclose([statistics.minimum, statistics.maximum], [[1, 10], [3, 10]])
    stack[..., 1] = np.nan
    with pytest.raises(StudyError, match="'b' has no valid pixel"):
        Statistics.of(stack, ("a", "b"))
