"""Tests of losses and pixel scores against formulas and scikit-learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from talud.training.losses import LOSSES, Loss, PixelScores, dice, dice_cross_entropy, focal_tversky, tversky

SHAPE = (3, 8, 8, 1)


def random_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.choice(np.array([0, 1, 255], np.uint8), SHAPE, p=[0.6, 0.3, 0.1])
    return truth, generator.random(SHAPE, np.float32)


def test_dice_uses_all_known_pixels_of_the_batch() -> None:
    truth, probability = random_batch(1)
    known = truth != 255
    t, p = truth[known].astype(float), probability[known].astype(float)
    assert float(dice(truth, probability)) == pytest.approx(1 - 2 * (t * p).sum() / (t.sum() + p.sum()), abs=1e-6)
    assert float(Loss()(truth, probability)) == pytest.approx(float(dice(truth, probability)))


def test_other_losses_match_their_published_formulas() -> None:
    truth, probability = random_batch(1)
    known = truth != 255
    t, p = truth[known].astype(float), probability[known].astype(float)
    entropy = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert float(dice_cross_entropy(truth, probability)) == pytest.approx(
        float(dice(truth, probability)) + entropy, abs=1e-5
    )
    hits, alarms, misses = (t * p).sum(), ((1 - t) * p).sum(), (t * (1 - p)).sum()
    index = hits / (hits + 0.3 * alarms + 0.7 * misses)
    assert float(tversky(truth, probability)) == pytest.approx(1 - index, abs=1e-6)
    assert float(focal_tversky(truth, probability)) == pytest.approx((1 - index) ** 0.75, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_ignore_unknown_pixels(name: str) -> None:
    truth, probability = random_batch(2)
    other = np.where(truth == 255, 1 - probability, probability)
    loss = Loss(name)
    assert float(loss(truth, other)) == float(loss(truth, probability))


def test_dice_penalises_false_alarms_in_empty_patches() -> None:
    """Lower the loss by lower probabilities in a patch without landslides."""
    truth, probability = random_batch(3)
    truth[0] = 0
    calm = probability.copy()
    calm[0] *= 0.5
    assert float(dice(truth, calm)) < float(dice(truth, probability))


def test_pixel_scores_use_counts_summed_over_batches() -> None:
    metric = PixelScores()
    batches = [random_batch(seed) for seed in (4, 5)]
    batches[1][0][:] = np.where(batches[1][0] == 1, 0, batches[1][0])  # a batch without a landslide
    for truth, probability in batches:
        metric.update_state(ops.convert_to_tensor(truth), ops.convert_to_tensor(probability))
    truth = np.concatenate([truth.ravel() for truth, _ in batches])
    mapped = np.concatenate([probability.ravel() for _, probability in batches]) >= 0.5
    known = truth != 255
    expected = {
        name: score(truth[known], mapped[known])
        for name, score in {
            "precision": precision_score, "recall": recall_score, "f1": f1_score, "iou": jaccard_score,
        }.items()
    }  # fmt: skip
    assert {name: float(value) for name, value in metric.result().items()} == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert {float(value) for value in metric.result().values()} == {0.0}


def test_loss_and_metric_are_serialisable() -> None:
    for thing, rebuild in ((Loss(), keras.losses.deserialize), (PixelScores(), keras.metrics.deserialize)):
        serialised = keras.saving.serialize_keras_object(thing)
        assert type(rebuild(serialised)) is type(thing)
