"""Dice loss and pixel scores, against closed forms and scikit-learn."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from talud.training.unet import LOSSES, Loss, PixelScores, dice, dice_cross_entropy, focal_tversky, tversky

SHAPE = (3, 8, 8, 1)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.choice(np.array([0, 1, 255], np.uint8), SHAPE, p=[0.6, 0.3, 0.1])
    return truth, generator.random(SHAPE, np.float32)


def test_dice_is_one_coefficient_of_all_known_pixels_of_the_batch() -> None:
    truth, probability = drawn(1)
    known = truth != 255
    t, p = truth[known].astype(float), probability[known].astype(float)
    assert float(dice(truth, probability)) == pytest.approx(1 - 2 * (t * p).sum() / (t.sum() + p.sum()), abs=1e-6)
    assert float(Loss()(truth, probability)) == pytest.approx(float(dice(truth, probability)))


def test_the_other_losses_are_what_their_papers_say() -> None:
    truth, probability = drawn(1)
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
def test_what_is_said_of_unknown_pixels_costs_nothing(name: str) -> None:
    truth, probability = drawn(2)
    other = np.where(truth == 255, 1 - probability, probability)
    loss = Loss(name)
    assert float(loss(truth, other)) == float(loss(truth, probability))


def test_a_patch_without_a_landslide_still_teaches_background() -> None:
    """Per patch, such a patch would cost 1 whatever is said there; in one coefficient, false alarms cost."""
    truth, probability = drawn(3)
    truth[0] = 0
    calm = probability.copy()
    calm[0] *= 0.5
    assert float(dice(truth, calm)) < float(dice(truth, probability))


def test_scores_come_from_the_counts_of_an_epoch_not_from_means_of_batches() -> None:
    metric = PixelScores()
    batches = [drawn(seed) for seed in (4, 5)]
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


def test_loss_and_metric_can_be_saved_with_a_model() -> None:
    for thing, rebuild in ((Loss(), keras.losses.deserialize), (PixelScores(), keras.metrics.deserialize)):
        serialised = keras.saving.serialize_keras_object(thing)
        assert type(rebuild(serialised)) is type(thing)
