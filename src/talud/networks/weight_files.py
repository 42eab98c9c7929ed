"""Files of weights that Keras writes: `.weights.h5`, and `.h5` of Keras 2.

A file is untrusted. Shapes are checked before anything is read, and nothing outside the file is read: HDF5 knows links
to other files, and arrays stored in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from talud.errors import ModelError
from talud.text import first_line

Shapes = Sequence[tuple[int, ...]]
_LARGEST_NESTING = 20  # groups within groups; the names of all groups grow with its square
_LARGEST_CHUNK = 2**26  # bytes that HDF5 decompresses at once; Keras writes arrays whole


def read_layers(path: Path, allowed: Mapping[str, Sequence[Shapes]]) -> dict[str, list[NDArray[np.float32]]]:
    """Read the weights of layers.

    Args:
        path: path of the file.
        allowed: name of a layer → alternatives of the shapes of its weights. Other layers of the file are ignored.

    Returns:
        The float32 weights of each layer, in the order of `keras.Layer.get_weights`.

    Raises:
        ModelError: The file cannot be read, lacks a layer, or has weights of another shape or without a finite value.
    """
    try:
        with h5py.File(path, "r") as file:
            layers = _layers(file)
            return {name: _read(layers, name, shapes, path) for name, shapes in allowed.items()}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file of weights; give its path relative to the project") from None
    # The exceptions of HDF5 have no common base class.
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise ModelError(
            f"{path}: cannot be read as weights of Keras ({first_line(error)}); give a file of save_weights"
        ) from error


def _layers(file: h5py.File) -> dict[str, list[h5py.Dataset]]:
    """Return the stored weights of layers, of models within the model too."""
    groups: dict[str, h5py.Group] = {}
    datasets: dict[str, h5py.Dataset] = {}

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if name.count("/") > _LARGEST_NESTING:
            raise ValueError(f"it has groups nested more than {_LARGEST_NESTING} deep")
        (datasets if isinstance(item, h5py.Dataset) else groups)[name] = item

    file.visititems(add)  # follows no links to other files
    found = {}
    for place, group in groups.items():
        _, _, last = place.rpartition("/")
        if last == "vars" and "name" in group.attrs:
            names = [f"{place}/{number}" for number in range(len(group))]
            found[str(group.attrs["name"])] = [datasets[name] for name in names]
        elif "weight_names" in group.attrs:
            names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["weight_names"]]
            found[last] = [datasets[f"{place}/{name}"] for name in names]
    return {name: stored for name, stored in found.items() if stored}


def _read(
    layers: Mapping[str, Sequence[h5py.Dataset]], name: str, allowed: Sequence[Shapes], path: Path
) -> list[NDArray[np.float32]]:
    """Read the weights of a layer."""
    if name not in layers:
        some = ", ".join(sorted(layers)[:3]) or "none"
        raise ModelError(
            f"{path}: has no layer '{name}' (its layers: {some}{' …' if len(layers) > 3 else ''}); give a file of the "
            "encoder that is chosen, without its head"
        )
    stored = layers[name]
    shapes = [weights.shape for weights in stored]
    if not any(shapes == list(one) for one in allowed):
        expected = " or ".join(_shown(one) for one in allowed)
        raise ModelError(
            f"{path}: the layer '{name}' has weights of the shapes {_shown(shapes)}, expected {expected}; give a "
            "file of the encoder that is chosen, for three bands or those of the band set"
        )
    if any(weights.external or weights.is_virtual or weights.dtype.kind != "f" for weights in stored):
        raise ModelError(
            f"{path}: the weights of the layer '{name}' are not real numbers stored in the file itself; write the file "
            "again with save_weights"
        )
    if any(math.prod(weights.chunks or ()) * weights.dtype.itemsize > _LARGEST_CHUNK for weights in stored):
        raise ModelError(
            f"{path}: the weights of the layer '{name}' are stored in chunks of more than {_LARGEST_CHUNK >> 20} MiB; "
            "write the file again with save_weights"
        )
    values: list[NDArray[Any]] = [weights[()].astype(np.float32) for weights in stored]
    if not all(np.isfinite(each).all() for each in values):
        raise ModelError(f"{path}: the layer '{name}' has weights that are not finite; give a file of trained weights")
    return values


def _shown(shapes: Shapes) -> str:
    return ", ".join(" × ".join(map(str, shape)) for shape in shapes) or "none"
