"""Networks that recompute activations in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from talud.networks.unet import recomputed


@dataclass(frozen=True)
class _Segment:
    """Consecutive layers of a model.

    Attributes:
        inputs: tensors of earlier segments that the layers read.
        outputs: tensors that later segments or the caller read.
        model: model from a list of the inputs to a list of the outputs.
    """

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    model: keras.Model

    def run(self, *values: Any) -> Any:
        """Return the values of the outputs from those of the inputs."""
        return self.model(list(values))


class Rematerialised(keras.Model):  # type: ignore[misc]
    """Functional model that rematerialises its segments in the backward pass.

    Only tensors between segments are stored. Keras's `RematScope` rematerialises each layer separately, and so still
    stores all tensors between layers. A segment ends before a layer that changes the scale.
    """

    def __init__(self, model: keras.Model) -> None:
        """Take over the layers of a functional model with one input and one output."""
        super().__init__(model.inputs[0], model.outputs[0], name=model.name)
        self._segments = _segments(model)

    def call(self, inputs: Any) -> Any:
        """Return the output of the model."""
        values = {id(self.inputs[0]): inputs}
        for segment in self._segments:
            results = recomputed(segment.run)(*(values[id(tensor)] for tensor in segment.inputs))
            # A single result is not returned as a list.
            results = results if isinstance(results, list | tuple) else [results]
            values |= {id(tensor): result for tensor, result in zip(segment.outputs, results, strict=True)}
        return values[id(self.outputs[0])]


def _segments(model: keras.Model) -> tuple[_Segment, ...]:
    """Divide the layers of a functional model, in the order of computation."""
    groups: list[list[keras.Layer]] = [[]]
    for layer in model.layers[1:]:
        if groups[-1] and _changes_scale(layer):
            groups.append([])
        groups[-1].append(layer)
    made = [{id(layer.output): layer.output for layer in group} for group in groups]
    read = [{id(tensor): tensor for layer in group for tensor in _inputs(layer)} for group in groups]
    segments = []
    for number in range(len(groups)):
        later = {id(model.outputs[0])}.union(*read[number + 1 :])
        inputs = tuple(tensor for key, tensor in read[number].items() if key not in made[number])
        outputs = tuple(tensor for key, tensor in made[number].items() if key in later)
        segments.append(_Segment(inputs, outputs, keras.Model(list(inputs), list(outputs))))
    return tuple(segments)


def _inputs(layer: keras.Layer) -> Iterator[Any]:
    yield from layer.input if isinstance(layer.input, list) else [layer.input]


def _changes_scale(layer: keras.Layer) -> bool:
    return isinstance(layer, layers.UpSampling2D) or max(getattr(layer, "strides", (1,))) > 1
