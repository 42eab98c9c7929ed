"""Initial weights of encoders.

Those of EfficientNet-Lite0 from ImageNet are part of talud. They are those of Google's release (Apache License 2.0),
converted by `pretrained/efficientnet_lite0.py`. Others come from a file of the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from talud.errors import ModelError
from talud.networks.encoders import RESNET_EPSILON, layer_prefixes, published_names
from talud.networks.unet import NORMALISATION_EPSILON, NORMALISATION_SUFFIX
from talud.networks.weight_files import read_layers
from talud.params.networks import PretrainedEncoder

_FILE = "efficientnet_lite0.npz"
_NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")
# ResNet50 of Keras Applications reads blue, green and red in counts less their means. Their deviations are 57 to 58
# counts in ImageNet; the bands of our networks have a deviation of 1.
_RESNET_DEVIATION = 57.6


class _Convolution(NamedTuple):
    """Weights of a convolution without a bias, and those of its normalisation.

    Attributes:
        kernel: kernel in Keras's axis order, float32.
        normalisation: scale, offset, mean and variance of each output channel, float64.
    """

    kernel: NDArray[np.float32]
    normalisation: Sequence[NDArray[np.float64]]


def load_encoder(
    model: keras.Model, encoder: PretrainedEncoder, weights: str, rgb: Sequence[int], root: Path, prefix: str = ""
) -> None:
    """Load initial weights into an encoder of a network, in place.

    Photographs have three bands. The weights of further bands start at 0, so that at first they have no effect. A file
    may have weights for all bands of the encoder instead, in their order and with a deviation of 1.

    Args:
        model: network with an encoder of `talud.networks.encoders`, with or without normalisation.
        encoder: name of the encoder.
        weights: "imagenet", or the path of a file of Keras's `save_weights`.
        rgb: indices of red, green and blue among the bands of the encoder.
        root: folder to which the path is relative.
        prefix: start of the names of the encoder's layers.

    Raises:
        ModelError: The encoder has no such bands, or the file does not have its weights.
    """
    convolutions = {
        layer.name.removeprefix(prefix): layer
        for layer in model.layers
        if layer.name.startswith(layer_prefixes(prefix)) and isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)
    }
    bands = convolutions["stem"].kernel.shape[2]
    found = _imagenet() if weights == "imagenet" else _from_file(root / weights, encoder, convolutions)
    epsilon = RESNET_EPSILON if encoder == "resnet50" else NORMALISATION_EPSILON
    for name, layer in convolutions.items():
        kernel, normalisation = found[name]
        if name == "stem":
            kernel = _first_kernel(kernel, encoder, rgb, bands)
        if layer.use_bias:
            layer.set_weights(_folded(kernel, normalisation, epsilon, layer))
        else:
            layer.set_weights([kernel])
            model.get_layer(f"{layer.name}{NORMALISATION_SUFFIX}").set_weights(normalisation)


@cache
def _imagenet() -> Mapping[str, _Convolution]:
    """Return the weights of EfficientNet-Lite0 by the name of the convolution."""
    with as_file(files(__package__) / _FILE) as path, np.load(path) as stored:
        names = dict.fromkeys(key.split("/")[0] for key in stored)
        return {
            name: _Convolution(
                stored[f"{name}/kernel"].astype(np.float32),
                [stored[f"{name}/{part}"].astype(np.float64) for part in _NORMALISATION],
            )
            for name in names
        }


def _from_file(
    path: Path, encoder: PretrainedEncoder, convolutions: Mapping[str, keras.Layer]
) -> dict[str, _Convolution]:
    """Return the weights in a file by the name of the convolution.

    Raises:
        ModelError: The file cannot be read, or does not have the weights of the encoder.
    """
    allowed: dict[str, list[list[tuple[int, ...]]]] = {}
    names = {name: published_names(encoder, name) for name in convolutions}
    for name, layer in convolutions.items():
        shape = tuple(layer.kernel.shape)
        filters = shape[2] if isinstance(layer, layers.DepthwiseConv2D) else shape[3]
        kernels = [(*shape[:2], bands, filters) for bands in (3, shape[2])] if name == "stem" else [shape]
        biases = [(filters,)] if encoder == "resnet50" else []
        allowed[names[name][0]] = [[kernel, *biases] for kernel in kernels]
        allowed[names[name][1]] = [[(filters,)] * len(_NORMALISATION)]
    stored = read_layers(path, allowed)
    found = {}
    for name, (convolution, normalisation) in names.items():
        kernel, *bias = stored[convolution]
        scale, offset, mean, variance = (values.astype(np.float64) for values in stored[normalisation])
        if np.any(variance < 0):
            raise ModelError(
                f"{path}: the layer '{normalisation}' has negative variances; give a file of trained weights"
            )
        # A bias before the normalisation only moves its mean.
        found[name] = _Convolution(kernel, [scale, offset, mean - (bias[0] if bias else 0), variance])
    return found


def _first_kernel(
    kernel: NDArray[np.float32], encoder: PretrainedEncoder, rgb: Sequence[int], bands: int
) -> NDArray[np.float32]:
    """Return the first kernel, (height, width, bands, filters), for all bands.

    A kernel of three bands is taken for one of photographs.
    """
    if kernel.shape[2] != 3:
        return kernel
    if len(set(rgb)) != len(rgb) or not all(0 <= index < bands for index in rgb):
        raise ModelError(
            f"the ImageNet weights need red, green and blue, stated as bands {list(rgb)} of {bands}; set rgb to their "
            "indices, counted from 0, or weights to none"
        )
    result = np.zeros((*kernel.shape[:2], bands, kernel.shape[3]), np.float32)
    if encoder == "resnet50":
        kernel = kernel[:, :, ::-1] * np.float32(_RESNET_DEVIATION)
    result[:, :, list(rgb)] = kernel
    return result


def _folded(
    kernel: NDArray[np.float32], normalisation: Sequence[NDArray[np.float64]], epsilon: float, layer: keras.Layer
) -> list[NDArray[Any]]:
    """Return kernel and bias of a convolution that includes its normalisation."""
    scale, offset, mean, variance = normalisation
    factor = scale / np.sqrt(variance + epsilon)
    along = factor[:, np.newaxis] if isinstance(layer, layers.DepthwiseConv2D) else factor
    return [(kernel * along).astype(np.float32), (offset - mean * factor).astype(np.float32)]
