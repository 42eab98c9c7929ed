"""The U-Net as the study describes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from talud.training import unet


def built(bands: int, filters: int, depth: int, seed: int = 1) -> keras.Model:
    generator = np.random.default_rng(0)
    mean, deviation = generator.normal(50, 9, bands), generator.uniform(1, 9, bands)
    return unet.build(filters, depth, mean.astype(np.float32), deviation.astype(np.float32), seed)


def weights(bands: int, filters: int, depth: int) -> int:
    """The number of trainable weights, counted from the description."""

    def convolution(side: int, entering: int, leaving: int) -> int:
        return side * side * entering * leaving + leaving

    total, entering = 0, bands
    for level in range(depth + 1):
        size = filters * 2**level
        total += convolution(3, entering, size) + convolution(3, size, size)
        entering = size
    for level in reversed(range(depth)):
        size = filters * 2**level
        total += convolution(3, 2 * size, size) + convolution(3, 2 * size, size) + convolution(3, size, size)
    return total + convolution(1, filters, 1)


@pytest.mark.parametrize(("bands", "filters", "depth"), [(3, 16, 4), (5, 3, 1), (9, 5, 3)])
def test_any_number_of_bands_filters_and_depth(bands: int, filters: int, depth: int) -> None:
    model = built(bands, filters, depth)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == weights(bands, filters, depth)
    assert len(model.non_trainable_weights) == 2  # mean and deviation, which no optimiser moves
    stack = np.zeros((2, 2**depth * 3, 2**depth, bands), np.float32)
    assert model(stack).shape == (2, 2**depth * 3, 2**depth, 1)


def test_an_invalid_pixel_says_no_more_than_the_mean_of_its_band() -> None:
    model = built(3, 2, 2)
    mean = model.get_layer("scaling").get_weights()[0]
    stack = np.random.default_rng(1).normal(mean, 20, (1, 16, 16, 3)).astype(np.float32)
    neutral = stack.copy()
    stack[0, 4:9, 2:5, 1], neutral[0, 4:9, 2:5, 1] = np.nan, mean[1]
    np.testing.assert_array_equal(model(stack), model(neutral))
    assert np.isfinite(model(np.full_like(stack, np.nan))).all()


def test_scaling_is_part_of_the_model() -> None:
    """The same stack in another unit, with the constants in that unit, gives the same map."""
    mean, deviation = np.array([10, 20], np.float32), np.array([2, 4], np.float32)
    stack = np.random.default_rng(1).normal(mean, deviation, (1, 8, 8, 2)).astype(np.float32)
    metres, feet = (unet.build(2, 1, mean * unit, deviation * unit, seed=5) for unit in (1, np.float32(3.2808)))
    np.testing.assert_allclose(metres(stack), feet(stack * np.float32(3.2808)), atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15 with NumPy 2.4
def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = built(2, 2, 1)
    model.save(tmp_path / "model.keras")
    stack = np.random.default_rng(1).normal(50, 9, (1, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(stack), model(stack))


def test_a_seed_decides_the_weights_and_no_two_layers_share_them() -> None:
    first, again, other = (built(2, 4, 2, seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])
    kernels = [weight for weight in first if weight.shape == (3, 3, 4, 4)]
    assert len(kernels) > 1
    assert not np.array_equal(kernels[0], kernels[1])


STEPS = """
import numpy as np
from talud.data.patches import Patches
from talud.training.dataset import Statistics
from talud.training.trial import Hyperparameters, train
import keras
generator = np.random.default_rng(0)
stack = generator.normal(size=(8, 16, 16, 2)).astype(np.float32)
mask = (stack[..., 0] > 0.5).astype(np.uint8)
stack[:, 3, 3], mask[:, 5, 5] = np.nan, 255
patches, losses = Patches(stack, mask), []
train(patches, patches, Hyperparameters(4, 1e-2, 4, 4), Statistics.of(stack, ("a", "b")), depth=1, augment=True, seed=1,
      on_epoch=lambda epoch, metrics: losses.append(metrics["loss"]))
assert losses[-1] < losses[0] - 0.02, losses
print(keras.backend.backend())
"""


@pytest.mark.slow
def test_it_trains_on_the_jax_backend() -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", STEPS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "jax"
