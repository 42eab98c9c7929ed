"""Keras models rebuilt from exported graphs, for further training."""

from __future__ import annotations

import re

import keras
import numpy as np
import onnx
from keras import layers
from numpy.typing import NDArray
from onnx import numpy_helper

from talud.contract import NetworkArchitecture
from talud.errors import ModelError
from talud.networks import unet
from talud.networks.catalogue import build_network, read_network
from talud.networks.export import to_onnx
from talud.params.networks import PLAIN_UNET

# Names of constants in files of earlier versions, with the present ones.
_EARLIER_NAMES = {"neutral": "scaling_constant_1"}


def from_onnx(
    graph: onnx.ModelProto,
    architecture: NetworkArchitecture | None,
    origin: str,
    mixed_precision: unet.Precision = False,
) -> keras.Model:
    """Rebuild the Keras model of an exported graph.

    Batch normalisations are part of the convolutions' weights, so the model has none.

    Args:
        graph: float32 graph of `talud.networks.export.to_onnx`.
        architecture: network and options that the contract states; None for files that state none, which are U-Nets.
        origin: name of the file for error messages.
        mixed_precision: precision of the rebuilt model's arithmetic, as for `talud.networks.unet.build`.

    Raises:
        ModelError: The graph is not that of the network, or of a network of the catalogue.
    """
    constants = _named_constants(graph)
    refused = f"{origin}: is not a float32 network of talud train, so it cannot be trained further"
    try:
        stated = architecture or _plain_unet(constants)
        network = read_network(stated.name, stated.options, origin).with_random_weights
        stored, least = sum(values.size for values in constants.values()), network.options.least_weights
        # Otherwise a small file could state a network that does not fit into memory.
        if stored < least:
            raise ModelError(
                f"{refused}: it has {stored} weights, but its network, {stated.name}, has more than {least}"
            )
        scaling = constants["mean"].ravel(), constants["deviation"].ravel()
        model = build_network(network, *scaling, seed=0, mixed_precision=mixed_precision)
        for layer in model.layers:
            if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
                layer.set_weights([_kernel(constants, layer), constants[f"{layer.name}_bias"]])
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(refused) from error
    if not _equal(_named_constants(to_onnx(model)), constants):
        raise ModelError(refused)
    return model


def _kernel(constants: dict[str, NDArray[np.float32]], layer: keras.Layer) -> NDArray[np.float32]:
    """Return a kernel in Keras's axis order.

    A depth-wise kernel is (height, width, channels, filters of a channel) there, others are (height, width, in, out).
    """
    kernel = constants[f"{layer.name}_kernel"]
    if isinstance(layer, layers.DepthwiseConv2D):
        return kernel.transpose(2, 3, 0, 1).reshape(layer.kernel.shape)
    return kernel.transpose(2, 3, 1, 0)


def _named_constants(graph: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Return the constants of a graph by their present names."""
    return {
        _EARLIER_NAMES.get(constant.name, constant.name): numpy_helper.to_array(constant)
        for constant in graph.graph.initializer
    }


def _equal(first: dict[str, NDArray[np.float32]], second: dict[str, NDArray[np.float32]]) -> bool:
    """Return whether constants are equal in any order.

    The order depends on the normalisations of a network.
    """
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def _plain_unet(constants: dict[str, NDArray[np.float32]]) -> NetworkArchitecture:
    """Return the architecture of a file that does not state it.

    Files of earlier versions hold U-Nets, whose size follows from their constants.
    """
    depth = sum(re.fullmatch(r"up_\d+_scales", name) is not None for name in constants)
    filters = constants["encoder_0_first_kernel"].shape[0]
    return NetworkArchitecture(name=PLAIN_UNET, options={"filters": filters, "depth": depth})
