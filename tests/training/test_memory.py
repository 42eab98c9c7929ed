"""The arithmetic of a training step's memory, against Keras's own tensors and what a process uses."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from talud.params import TrainingOptions
from talud.training import unet
from talud.training.memory import StepBytes, step_bytes


@pytest.mark.parametrize(("filters", "depth", "bands"), [(4, 1, 3), (3, 3, 7)])
def test_the_bytes_are_those_of_the_tensors_and_weights_that_keras_makes(filters: int, depth: int, bands: int) -> None:
    ones = np.ones(bands, np.float32)
    model = unet.build(filters, depth, ones, ones, seed=1)
    outputs = keras.Model(model.input, [layer.output for layer in model.layers[1:]])(np.zeros((2, 16, 16, bands)))
    found = step_bytes(TrainingOptions(depth=depth), filters=filters, batch_size=2, patch=16, bands=bands)
    assert found.kept == sum(np.asarray(output).nbytes for output in outputs)
    weights = sum(np.asarray(weight).nbytes for weight in model.trainable_weights)
    assert (found.weights, found.gradients, found.moments) == (weights, weights, 2 * weights)


def largest(**options: object) -> StepBytes:
    """The largest trial of the study: 64 filters in batches of 64, at 128²."""
    return step_bytes(TrainingOptions(**options), filters=64, batch_size=64, patch=128, bands=7)


def test_rematerialised_the_largest_trial_of_the_study_fits_its_gpu_of_4_gb() -> None:
    assert largest().kept == pytest.approx(4.7e9, rel=0.01)
    assert largest().total > 4e9 > largest(rematerialise=True).total
    half = largest(rematerialise=True, mixed_precision="float16")
    assert half.activations == pytest.approx(largest(rematerialise=True).activations / 2, rel=0.05)


def kept(model: keras.Model, stack: np.ndarray) -> int:
    """The bytes of activations that the backward pass of TensorFlow's graph of a step takes from the forward pass."""
    import tensorflow as tf

    @tf.function
    def step(stack: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(stack, training=True))
        forward.update(operation.name for operation in tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    def source(tensor: tf.Tensor) -> tf.Tensor:
        """Past operations that hand on what they were given."""
        while tensor.op.type in ("Identity", "IdentityN"):
            tensor = tensor.op.inputs[tensor.value_index]
        return tensor

    forward: set[str] = set()
    graph = step.get_concrete_function(tf.constant(stack)).graph
    taken = {
        source(tensor).name: 4 * source(tensor).shape.num_elements()
        for operation in graph.get_operations()
        if operation.name not in forward and operation.type not in ("Shape", "ShapeN", "Identity", "IdentityN")
        for tensor in operation.inputs
        if source(tensor).op.name in forward and source(tensor).shape.rank == 4 and source(tensor).op.inputs
        if len(tensor.shape) == 4 and tensor.shape[0] == len(stack)
    }
    return sum(taken.values())


@pytest.mark.parametrize("normalised", [False, True])
def test_rematerialised_the_backward_pass_takes_from_the_forward_pass_what_was_counted(normalised: bool) -> None:
    found = {}
    for again in (False, True):
        choices = {"rematerialise": again, "batch_normalisation": normalised}
        model = unet.build(8, 3, np.zeros(3, np.float32), np.ones(3, np.float32), seed=1, **choices)
        stack = np.zeros((2, 32, 32, 3), np.float32)
        found[again] = kept(model, stack)
        options = TrainingOptions(depth=3, rematerialise=again)
        form = {"filters": 8, "batch_size": 2, "patch": 32, "bands": 3}
        counted = step_bytes(options, **form, batch_normalisation=normalised)
        assert counted.weights == sum(np.asarray(weight).nbytes for weight in model.trainable_weights)
        assert found[again] == counted.kept
