"""A trial learns, keeps its best epoch, and can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from talud import metrics
from talud.data.patches import Patches
from talud.errors import StudyError
from talud.training.dataset import Statistics
from talud.training.trial import BestEpoch, Hyperparameters, Trained, build, train


def bright_squares(count: int, seed: int) -> Patches:
    """Patches with a bright square each, which is the landslide, some invalid pixels and some of unknown truth."""
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
CHOICE = Hyperparameters(filters=4, learning_rate=1e-2, batch_size=8, epochs=15)


def trained(choice: Hyperparameters = CHOICE, seed: int = 3) -> tuple[Trained, list[dict[str, float]]]:
    epochs: list[dict[str, float]] = []

    def keep(epoch: int, metrics: Mapping[str, float]) -> None:
        assert epoch == len(epochs) + 1
        epochs.append(dict(metrics))

    result = train(TRAINING, VALIDATION, choice, STATISTICS, depth=1, augment=True, seed=seed, on_epoch=keep)
    return result, epochs


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    short = replace(CHOICE, epochs=2)
    (first, _), (again, _), (other, _) = trained(short), trained(short), trained(short, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first.weights, other.weights, strict=True))


def test_the_best_epoch_is_kept_and_its_scores_are_those_of_its_weights() -> None:
    result, epochs = trained()
    assert result.scores["f1"] == max(epoch["val_f1"] for epoch in epochs) > 0.9
    assert result.scores["f1"] == epochs[result.best_epoch - 1]["val_f1"]
    model = build(CHOICE, STATISTICS, depth=1, seed=99)
    model.set_weights(result.weights)
    mapped = np.asarray(model(VALIDATION.stack))[..., 0] >= 0.5
    assert metrics.confusion(mapped, VALIDATION.mask).scores() == pytest.approx(result.scores, abs=1e-6)


def test_the_best_epoch_is_that_of_the_highest_f1_then_of_the_lowest_loss() -> None:
    model = build(CHOICE, STATISTICS, depth=1, seed=1)
    best = BestEpoch(lambda epoch, metrics: None)
    best.set_model(model)
    for epoch, (f1, loss) in enumerate([(0.2, 0.9), (0.6, 0.5), (0.6, 0.4), (0.6, 0.4), (0.5, 0.1)]):
        model.get_layer("scaling").set_weights([np.full(2, epoch), np.ones(2)])
        logs = {"loss": 0.3, "val_loss": loss, "val_precision": 0, "val_recall": 0, "val_iou": 0, "val_f1": f1}
        best.on_epoch_end(epoch, logs)
    assert best.epoch == 3
    np.testing.assert_array_equal(best.weights[0], [2, 2])


def test_a_loss_that_is_not_finite_ends_the_trial() -> None:
    with pytest.raises(StudyError, match="not a number"):
        trained(Hyperparameters(filters=4, learning_rate=1e38, batch_size=8, epochs=3))


def test_statistics_are_those_of_the_valid_pixels() -> None:
    stack = np.array([[1, 10], [3, np.nan], [np.nan, 10]], np.float32).reshape(1, 3, 1, 2)
    statistics = Statistics.of(stack, ("a", "b"))
    np.testing.assert_allclose(statistics.mean, [2, 10])
    np.testing.assert_allclose(statistics.deviation, [1, 1])  # of a constant band: 1, so that it can be divided by
    np.testing.assert_allclose([statistics.minimum, statistics.maximum], [[1, 10], [3, 10]])
    stack[..., 1] = np.nan
    with pytest.raises(StudyError, match="'b' has no valid pixel"):
        Statistics.of(stack, ("a", "b"))
