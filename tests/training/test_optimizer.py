"""Tests of the optimiser of a trial."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from talud.networks.catalogue import build_network, pretrained_weights, read_network
from talud.params import Recipe
from talud.training.optimizer import create_optimizer, schedule

RATE, EPOCHS, STEPS = 0.02, 10, 40


def rates(name: str, steps: list[int]) -> list[float]:
    rate = schedule(Recipe(schedule=name), RATE, EPOCHS, STEPS)
    assert callable(rate)
    return [float(rate(step)) for step in steps]


def test_one_cycle_rises_from_a_25th_and_falls_to_0() -> None:
    found = rates("one_cycle", [0, 30, 60, 230, 399, 400, 500])
    half = (RATE / 25 + RATE) / 2
    last = RATE * (1 + math.cos(math.pi * 339 / 340)) / 2
    np.testing.assert_allclose(found, [RATE / 25, half, RATE, RATE / 2, last, 0, 0], rtol=1e-4, atol=1e-9)


def test_cosine_warms_up_for_half_an_epoch() -> None:
    np.testing.assert_allclose(
        rates("cosine", [0, 20, 210, 400]), [RATE / 100, RATE, RATE * 0.505, RATE / 100], rtol=1e-5
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("scaled", [False, True])
def test_pretrained_weights_have_relative_rate_and_decay(weight_decay: float, scaled: bool) -> None:
    """The first step of Adam is the learning rate times the sign of the gradient (Kingma and Ba, 2015)."""
    pretrained, new = (keras.Variable([2.0, -3.0], name=name) for name in ("kernel", "kernel"))
    recipe = Recipe(encoder_rate=0.1, weight_decay=weight_decay, averaging=0.9)
    inner = optimizer = create_optimizer(recipe, RATE, EPOCHS, STEPS, [pretrained])
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    optimizer.build([pretrained, new])
    gradient = keras.ops.array([0.5, -0.25])
    optimizer.apply([gradient, gradient] if not scaled else [4 * gradient, 4 * gradient])
    for variable, rate in ((pretrained, RATE / 10), (new, RATE)):
        expected = np.array([2.0, -3.0]) * (1 - rate * weight_decay) - rate * np.array([1, -1])
        np.testing.assert_allclose(np.asarray(variable), expected, rtol=1e-5)
    stepped = np.asarray(pretrained)
    inner.finalize_variable_values([pretrained, new])  # replaces the weights by their averages, equal after one step
    np.testing.assert_allclose(np.asarray(pretrained), stepped, rtol=1e-6)


def test_encoder_rate_1_or_no_pretrained_weights_is_plain_adam() -> None:
    variable = keras.Variable([1.0])
    assert type(create_optimizer(Recipe(encoder_rate=0.1), RATE, 1, 1)) is keras.optimizers.Adam
    assert type(create_optimizer(Recipe(), RATE, 1, 1, [variable])) is keras.optimizers.Adam
    assert type(create_optimizer(Recipe(weight_decay=0.1), RATE, 1, 1, [variable])) is keras.optimizers.AdamW


@pytest.mark.slow
def test_pretrained_weights_are_those_of_the_lite0_encoder() -> None:
    def names(network: str, bands: int, options: dict[str, object]) -> set[str]:
        spec = read_network(network, options, "test")
        model = build_network(spec, np.zeros(bands, np.float32), np.ones(bands, np.float32), 1)
        return {weight.path.split("/")[0].rsplit("_", 1)[0] for weight in pretrained_weights(spec, model)}

    encoder = names("pretrained_unet", 3, {"filters": 1})
    assert {"block_10", "block_0", "block_1"} <= encoder
    assert not any(name.startswith(("decoder", "probability")) for name in encoder)
    assert names("pretrained_unet", 3, {"filters": 1, "weights": "none"}) == set()
    assert names("unet", 3, {"filters": 1, "depth": 1}) == set()
