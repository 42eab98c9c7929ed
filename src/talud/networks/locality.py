"""Refusal of networks that are not local.

A map in tiles equals that of one pass only if an output pixel depends on a limited neighbourhood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import layers

from talud.errors import ModelError

_BANDS_AXES = (-1, 3)  # axes of the channels in (batch, height, width, channels)
_MIXING = "every output pixel would depend on the whole image"
# Reasons for the refusal of layers, in order; a subclass comes before its base class.
_GLOBAL: Mapping[str, tuple[type[keras.Layer], ...]] = {
    f"averages the whole image, as in squeeze-and-excitation: {_MIXING}": (
        layers.GlobalAveragePooling1D,
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling1D,
        layers.GlobalMaxPooling2D,
    ),
    f"divides by statistics of the whole image: {_MIXING}": (layers.GroupNormalization,),
    f"is attention over the whole image: {_MIXING}": (
        layers.AdditiveAttention,
        layers.Attention,
        layers.GroupQueryAttention,
        layers.MultiHeadAttention,
    ),
    f"passes on a state from pixel to pixel: {_MIXING}": (layers.RNN, layers.ConvLSTM1D, layers.ConvLSTM2D),
    f"joins all pixels in one vector: {_MIXING}": (layers.Flatten, layers.Permute, layers.RepeatVector, layers.Reshape),
}
# Attribute with the axes over which a layer computes.
_AXES: Mapping[type[keras.Layer], str] = {
    layers.BatchNormalization: "keeps the statistics of an axis",
    layers.Concatenate: "joins tensors along an axis",
    layers.LayerNormalization: "divides by statistics along an axis",
    layers.Softmax: "divides by a sum along an axis",
    layers.UnitNormalization: "divides by a norm along an axis",
}


def check_local(model: keras.Model) -> None:
    """Check that no layer of a network depends on the whole image.

    The export also checks each operator of the graph, and so finds what a layer unknown here does.

    Args:
        model: model of tensors (batch, height, width, channels).

    Raises:
        ModelError: A layer is not local.
    """
    for operation in _operations(model):
        if reason := _objection(operation):
            raise ModelError(
                f"the network's layer '{operation.name}' ({type(operation).__name__}) {reason}; a map in tiles needs "
                "layers that see a limited neighbourhood, such as convolutions and poolings"
            )


def _operations(model: keras.Model) -> Iterator[Any]:
    """Yield the layers and functions of a model, with those of models inside it."""
    for operation in getattr(model, "operations", None) or model.layers:
        if isinstance(operation, keras.Model):
            yield from _operations(operation)
        else:
            yield operation


def _objection(operation: Any) -> str | None:
    """Return a reason against an operation, or None if it is local."""
    for reason, types in _GLOBAL.items():
        if isinstance(operation, types):
            return reason
    for kind, what in _AXES.items():
        if isinstance(operation, kind) and (axes := _other_axes(operation.axis)):
            return f"{what} of the image ({axes}): {_MIXING}"
    if isinstance(operation, layers.Dense):
        return "is no convolution; write a layer that connects the bands of each pixel as a 1 × 1 convolution"
    if isinstance(operation, layers.UpSampling2D) and operation.interpolation != "nearest":
        return f"up-samples with '{operation.interpolation}', which is different at the edge of a tile; use 'nearest'"
    return None


def _other_axes(axis: int | tuple[int, ...] | list[int]) -> str:
    """Return the axes that are not that of the channels, as text."""
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    return ", ".join(f"axis {one}" for one in axes if one not in _BANDS_AXES)
