"""Tests of the memory that a training step needs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from talud.networks import unet
from talud.params import TrainingOptions
from talud.training.trial_runner import _memory_advice


def stored_activation_bytes(model: keras.Model, stack: np.ndarray) -> int:
    """Return the bytes of activations stored for the backward pass.

    They are counted in TensorFlow's graph of a training step.
    """
    import tensorflow as tf

    @tf.function
    def step(stack: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(stack, training=True))
        forward.update(operation.name for operation in tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    def origin(tensor: tf.Tensor) -> tf.Tensor:
        """Return the tensor behind identity operations."""
        while tensor.op.type in ("Identity", "IdentityN"):
            tensor = tensor.op.inputs[tensor.value_index]
        return tensor

    forward: set[str] = set()
    graph = step.get_concrete_function(tf.constant(stack)).graph
    taken = {
        origin(tensor).name: 4 * origin(tensor).shape.num_elements()
        for operation in graph.get_operations()
        if operation.name not in forward and operation.type not in ("Shape", "ShapeN", "Identity", "IdentityN")
        for tensor in operation.inputs
        if origin(tensor).op.name in forward and origin(tensor).shape.rank == 4 and origin(tensor).op.inputs
        if len(tensor.shape) == 4 and tensor.shape[0] == len(stack)
    }
    return sum(taken.values())


@pytest.mark.slow
@pytest.mark.parametrize("normalised", [False, True])
def test_rematerialisation_halves_stored_activations(normalised: bool) -> None:
    found = {}
    for again in (False, True):
        choices = {"rematerialise": again, "batch_normalisation": normalised}
        model = unet.build(8, 3, np.zeros(3, np.float32), np.ones(3, np.float32), seed=1, **choices)
        found[again] = stored_activation_bytes(model, np.zeros((2, 32, 32, 3), np.float32))
    assert 0 < found[True] < found[False] / 2


def test_memory_advice_names_unused_options() -> None:
    assert _memory_advice(TrainingOptions()) == (
        "to save memory, use a smaller batch_size or training.rematerialise: true or training.mixed_precision: float16"
    )
    chosen = TrainingOptions(rematerialise=True, mixed_precision="float16")
    assert _memory_advice(chosen) == "to save memory, use a smaller batch_size"
