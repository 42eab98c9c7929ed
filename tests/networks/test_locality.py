"""Tests of the refusal of networks that are not local."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from talud.errors import ModelError
from talud.networks.locality import check_local


def model_of(body: Callable[[Any], Any]) -> keras.Model:
    """Return a model with a convolution before and after what is tested."""
    stack = layers.Input((8, 8, 4), name="stack")
    x = body(layers.Conv2D(4, 3, padding="same", name="first")(stack))
    return keras.Model(stack, layers.Conv2D(1, 1, name="probability")(x))


def squeeze_and_excitation(x: Any) -> Any:
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    return layers.Multiply(name="excite")([x, layers.Conv2D(4, 1, activation="sigmoid")(squeezed)])


def attention(x: Any) -> Any:
    return layers.MultiHeadAttention(1, 4, attention_axes=(1, 2), name="attention")(x, x)


def vector(x: Any) -> Any:
    flat = layers.Flatten(name="flat")(x)
    return layers.Reshape((8, 8, 1))(layers.Dense(64)(flat))


def inner_model(x: Any) -> Any:
    inside = layers.Input((8, 8, 4))
    return keras.Model(inside, layers.GroupNormalization(2, name="inside")(inside), name="inner")(x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (squeeze_and_excitation, "'squeeze' (GlobalAveragePooling2D) averages the whole image"),
        (layers.GlobalMaxPooling2D(keepdims=True, name="peak"), "'peak' (GlobalMaxPooling2D) averages the whole image"),
        (layers.GroupNormalization(2, name="group"), "'group' (GroupNormalization) divides by statistics of the whole"),
        (
            layers.LayerNormalization(axis=(1, 2, 3), name="layer"),
            "'layer' (LayerNormalization) divides by statistics along an axis of the image",
        ),
        (layers.UnitNormalization(axis=(1, 2), name="unit"), "'unit' (UnitNormalization) divides by a norm"),
        (layers.Softmax(axis=(1, 2), name="soft"), "'soft' (Softmax) divides by a sum along an axis of the image"),
        (layers.BatchNormalization(axis=1, name="rows"), "'rows' (BatchNormalization) keeps the statistics of an axis"),
        (attention, "'attention' (MultiHeadAttention) is attention over the whole image"),
        (vector, "'flat' (Flatten) joins all pixels in one vector"),
        (layers.Permute((2, 1, 3), name="turned"), "'turned' (Permute) joins all pixels in one vector"),
        (layers.Dense(4, name="dense"), "'dense' (Dense) is no convolution; write a layer"),
        (inner_model, "'inside' (GroupNormalization) divides by statistics of the whole image"),
        (lambda x: layers.UpSampling2D(interpolation="bilinear", name="up")(x), "'up' (UpSampling2D) up-samples with"),
    ],
    ids=lambda value: value.split("'")[1] if isinstance(value, str) and "'" in value else None,
)
def test_network_with_a_global_layer_is_refused_by_name(body: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_local(model_of(body))
    assert f"the network's layer {message}" in str(caught.value) or message in str(caught.value)
    assert "a limited neighbourhood" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_network_of_local_layers_is_accepted() -> None:
    def body(x: Any) -> Any:
        gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.BatchNormalization()(layers.ReLU(6)(x)))
        coarse = layers.UpSampling2D(2, interpolation="nearest")(layers.AveragePooling2D(2)(x))
        wide = layers.DepthwiseConv2D(5, padding="same", activation="hard_silu")(layers.Dropout(0.1)(coarse))
        return layers.Concatenate()([layers.Multiply()([x, gate]), layers.Add()([wide, x])])

    check_local(model_of(body))
