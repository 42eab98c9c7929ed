"""ImageNet weights of the EfficientNet-Lite0 encoder.

They are those of Google's release (Apache License 2.0), converted by `pretrained/efficientnet_lite0.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from talud.errors import ModelError
from talud.networks.unet import NORMALISATION_SUFFIX

_FILE = "efficientnet_lite0.npz"
_NORMALISATION = ("gamma", "beta", "moving_mean", "moving_variance")
_EPSILON = 1e-3  # of the release's normalisations, and of Keras's


def load_encoder(model: keras.Model, rgb: Sequence[int]) -> None:
    """Load the weights into the encoder of a network, in place.

    ImageNet has three bands. The weights of further bands start at 0, so that at first they have no effect.

    Args:
        model: network of `talud.networks.pretrained_unet`, with any number of stages, with or without normalisation.
        rgb: indices of red, green and blue among the bands.

    Raises:
        ModelError: The network has no such bands.
    """
    weights = _weights()
    for name in dict.fromkeys(key.split("/")[0] for key in weights):
        if not any(layer.name == name for layer in model.layers):
            continue
        layer = model.get_layer(name)
        kernel = weights[f"{name}/kernel"].astype(np.float32)
        if name == "stem":
            kernel = _spread(kernel, rgb, layer.kernel.shape[2])
        normalisation = [weights[f"{name}/{part}"] for part in _NORMALISATION]
        if layer.use_bias:
            layer.set_weights(_folded(kernel, normalisation, layer))
        else:
            layer.set_weights([kernel])
            model.get_layer(f"{name}{NORMALISATION_SUFFIX}").set_weights(normalisation)


@cache
def _weights() -> dict[str, NDArray[Any]]:
    """Return the stored weights by layer and weight."""
    with as_file(files(__package__) / _FILE) as path, np.load(path) as stored:
        return dict(stored)


def _spread(kernel: NDArray[np.float32], rgb: Sequence[int], bands: int) -> NDArray[np.float32]:
    """Return the first kernel, (height, width, bands, filters), for all bands."""
    if len(set(rgb)) != len(rgb) or not all(0 <= index < bands for index in rgb):
        raise ModelError(
            f"the ImageNet weights need red, green and blue, stated as bands {list(rgb)} of {bands}; set rgb to their "
            "indices, counted from 0, or weights to none"
        )
    result = np.zeros((*kernel.shape[:2], bands, kernel.shape[3]), np.float32)
    result[:, :, list(rgb)] = kernel
    return result


def _folded(kernel: NDArray[np.float32], normalisation: Sequence[NDArray[Any]], layer: Any) -> list[NDArray[Any]]:
    """Return kernel and bias of a convolution that includes its normalisation."""
    scale, offset, mean, variance = (values.astype(np.float64) for values in normalisation)
    factor = scale / np.sqrt(variance + _EPSILON)
    along = factor[:, np.newaxis] if isinstance(layer, keras.layers.DepthwiseConv2D) else factor
    return [(kernel * along).astype(np.float32), (offset - mean * factor).astype(np.float32)]
