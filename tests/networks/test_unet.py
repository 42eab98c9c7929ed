"""Tests of the U-Net."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from onnx_writer import to_onnx
from talud.networks import unet


def build_unet(bands: int, filters: int, depth: int, seed: int = 1) -> keras.Model:
    generator = np.random.default_rng(0)
    mean, deviation = generator.normal(50, 9, bands), generator.uniform(1, 9, bands)
    return unet.build(filters, depth, mean.astype(np.float32), deviation.astype(np.float32), seed)


def count_weights(bands: int, filters: int, depth: int) -> int:
    """Count the trainable weights from the published description."""

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
def test_unet_accepts_any_bands_filters_and_depth(bands: int, filters: int, depth: int) -> None:
    model = build_unet(bands, filters, depth)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == count_weights(bands, filters, depth)
    assert len(model.non_trainable_weights) == 2  # mean and deviation
    stack = np.zeros((2, 2**depth * 3, 2**depth, bands), np.float32)
    assert model(stack).shape == (2, 2**depth * 3, 2**depth, 1)


def test_unet_treats_nan_as_band_mean() -> None:
    model = build_unet(3, 2, 2)
    mean = model.get_layer("scaling").get_weights()[0]
    stack = np.random.default_rng(1).normal(mean, 20, (1, 16, 16, 3)).astype(np.float32)
    neutral = stack.copy()
    stack[0, 4:9, 2:5, 1], neutral[0, 4:9, 2:5, 1] = np.nan, mean[1]
    np.testing.assert_array_equal(model(stack), model(neutral))
    assert np.isfinite(model(np.full_like(stack, np.nan))).all()


def test_unet_scaling_makes_units_irrelevant() -> None:
    """Convert stack and constants to another unit, which gives the same map."""
    mean, deviation = np.array([10, 20], np.float32), np.array([2, 4], np.float32)
    stack = np.random.default_rng(1).normal(mean, deviation, (1, 8, 8, 2)).astype(np.float32)
    metres, feet = (unet.build(2, 1, mean * unit, deviation * unit, seed=5) for unit in (1, np.float32(3.2808)))
    np.testing.assert_allclose(metres(stack), feet(stack * np.float32(3.2808)), atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15 with NumPy 2.4
def test_saved_keras_model_gives_same_map(tmp_path: Path) -> None:
    model = build_unet(2, 2, 1)
    model.save(tmp_path / "model.keras")
    stack = np.random.default_rng(1).normal(50, 9, (1, 8, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(stack), model(stack))


def test_seed_gives_each_layer_its_own_weights() -> None:
    first, again, other = (build_unet(2, 4, 2, seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])
    kernels = [weight for weight in first if weight.shape == (3, 3, 4, 4)]
    assert len(kernels) > 1
    assert not np.array_equal(kernels[0], kernels[1])


TRAINING_ON_JAX = """
import json
import sys
from pathlib import Path
import numpy as np
from talud.data.patches import Patches
from talud.errors import StudyError
from talud.params import Recipe, TrainingOptions
from talud.training.checkpoint import TrialState
from talud.training.dataset import Statistics, TrainingData
from talud.training.search import Hyperparameters
from talud.training.trial import TrialConfig, train
import jax
import keras

generator = np.random.default_rng(0)
stack = generator.normal(size=(8, 16, 16, 2)).astype(np.float32)
mask = (stack[..., 0] > 0.5).astype(np.uint8)
stack[:, 3, 3], mask[:, 5, 5] = np.nan, 255
hyperparameters = Hyperparameters(4, 1e-2, 4, 4, None)
patches, statistics = Patches(stack, mask), Statistics.of(stack, ("a", "b"))

def losses(recipe=Recipe(), interrupted=True, **options):
    state = TrialState()
    for until in (2, 4) if interrupted else (4,):
        state = train(TrainingData(("a", "b"), patches, patches, statistics),
                      TrialConfig(hyperparameters, recipe, TrainingOptions(depth=1, **options), 1, ("a", "b")),
                      Path(sys.argv[1]), state=state, max_epochs=until)
    return [epoch.metrics[name] for name in ("loss", "val_loss") for epoch in state.epochs]

whole = Recipe(schedule="cosine", weight_decay=0.01, averaging=0.8, batch_normalisation=True)

def refused_option():
    try:
        losses(rematerialise=True)
    except StudyError as error:
        return str(error)

def stored_bytes_and_gradients(rematerialise):
    config = TrialConfig(hyperparameters, Recipe(), TrainingOptions(depth=2), 1, ("a", "b"))
    model = config.build(statistics, rematerialise=rematerialise)
    fixed = [variable.value for variable in model.non_trainable_variables]
    weights = [variable.value for variable in model.trainable_variables]
    model.stateless_call([0 * weight for weight in weights], fixed, stack)  # its weights must not be cached
    probability = lambda weights: model.stateless_call(weights, fixed, stack)[0]
    value, pull = jax.vjp(probability, weights)
    kept = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(pull))
    return kept, pull(value)[0]

(plain, expected), (again, gradients) = stored_bytes_and_gradients(False), stored_bytes_and_gradients(True)
for first, second in zip(expected, gradients, strict=True):
    np.testing.assert_array_equal(first, second)
print(json.dumps({
    "backend": keras.backend.backend(),
    "losses": losses(interrupted=False),
    "mixed": losses(interrupted=False, mixed_precision="float16"),
    "recipe": [losses(whole, interrupted) for interrupted in (True, False)],
    "kept": [plain, again],
    "refusal": refused_option(),
}))
"""


@pytest.mark.slow
def test_unet_trains_on_jax_with_every_option(tmp_path: Path) -> None:
    # Compiling the network takes most of the time, without optimisation less.
    jax_options = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = {**os.environ, "KERAS_BACKEND": "jax", **jax_options}
    command = [sys.executable, "-W", "ignore", "-c", TRAINING_ON_JAX, tmp_path / "trial.npz"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["backend"] == "jax"
    assert found["losses"][3] < found["losses"][0] - 0.02
    interrupted, whole = found["recipe"]
    assert interrupted == whole
    assert whole[3] < whole[0] - 0.02
    assert whole[4:] != sorted(whole[4:])  # the averaged weights of the validation learn, too
    assert found["mixed"] == pytest.approx(found["losses"], abs=0.01)
    plain, again = found["kept"]
    assert again < 0.6 * plain
    assert "rematerialise saves no memory with JAX on a CPU" in found["refusal"]


@pytest.mark.slow
def test_rematerialised_unet_has_same_map_and_gradients() -> None:
    import tensorflow as tf

    mean, deviation = np.array([50, 60], np.float32), np.array([9, 5], np.float32)
    plain, again = (unet.build(3, 2, mean, deviation, 1, rematerialise=option) for option in (False, True))
    assert [weight.path for weight in plain.weights] == [weight.path for weight in again.weights]
    assert all(np.array_equal(a, b) for a, b in zip(plain.get_weights(), again.get_weights(), strict=True))
    assert to_onnx(plain).SerializeToString() == to_onnx(again).SerializeToString()
    stack = np.random.default_rng(1).normal(mean, deviation, (2, 8, 8, 2)).astype(np.float32)
    stack[0, 2, 3] = np.nan
    np.testing.assert_array_equal(plain(stack), again(stack))

    def gradients(model: keras.Model) -> list[np.ndarray]:
        @tf.function
        def step() -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(stack, training=True) ** 2)
            return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

        return [gradient.numpy() for gradient in step()]

    for first, second in zip(gradients(plain), gradients(again), strict=True):
        assert np.any(first)
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)


def test_mixed_precision_keeps_scaling_and_probability_float32() -> None:
    """Use values beyond the range of float16, and invalid pixels."""
    mean, deviation = np.array([2e5, 0.5], np.float32), np.array([1e4, 1e-6], np.float32)
    plain, mixed = (unet.build(4, 2, mean, deviation, 1, mixed_precision=option) for option in (False, "float16"))
    stack = np.random.default_rng(1).normal(mean, deviation, (2, 16, 16, 2)).astype(np.float32)
    neutral = stack.copy()
    stack[0, 2:7, 3:9, 0], neutral[0, 2:7, 3:9, 0] = np.nan, mean[0]
    probability = np.asarray(mixed(stack))
    assert probability.dtype == np.float32
    np.testing.assert_array_equal(probability, np.asarray(mixed(neutral)))
    np.testing.assert_allclose(probability, plain(stack), atol=0.01)
    assert not np.array_equal(probability, plain(stack))  # the arithmetic is float16
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    assert to_onnx(mixed).SerializeToString() == to_onnx(plain).SerializeToString()
