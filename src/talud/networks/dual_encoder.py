"""U-Net with an encoder for each group of bands, fused at each scale."""

from __future__ import annotations

from collections.abc import Iterator
from math import log2
from pathlib import Path
from typing import Any

import keras

from talud.errors import ModelError
from talud.networks.blocks import BandSlice, Blocks
from talud.networks.encoder_weights import load_encoder
from talud.networks.encoders import encode, layer_prefixes
from talud.params.networks import BandGroup, DualEncoderOptions


def build_features(stack: Any, options: DualEncoderOptions, blocks: Blocks) -> Any:
    """Return the features of the last decoder block.

    A group of coarser pixels takes part from the scale of its pixels on.

    Args:
        stack: scaled stack (batch, height, width, bands).
        options: options of the network.
        blocks: factory of the layers.

    Returns:
        Features (batch, height, width, filters).

    Raises:
        ModelError: The groups do not have the bands of the stack.
    """
    _check(options, stack.shape[-1])
    by_level: list[list[Any]] = [[] for _ in range(options.depth + 1)]
    first = 0
    for number, group in enumerate(options.groups):
        own = BandSlice(first, group.bands, dtype=blocks.dtype, name=f"group_{number}")(stack)
        first += group.bands
        for level, tensor in enumerate(_encode(own, group, number, options, blocks), start=int(log2(group.pixels))):
            by_level[level].append(tensor)
    fused = []
    for level, tensors in enumerate(by_level):
        joined = blocks.join(tensors, f"fusion_{level}_join") if len(tensors) > 1 else tensors[0]
        fused.append(blocks.convolution(joined, options.widths[level], 1, f"fusion_{level}"))
    return blocks.decoder(fused, options.widths)[0]


def load_weights(model: keras.Model, options: DualEncoderOptions, root: Path) -> None:
    """Load the initial weights of the groups with red, green and blue, in place.

    Args:
        model: network of `build_features`.
        options: options of the network.
        root: folder to which the path of a file of weights is relative.

    Raises:
        ModelError: A group has no bands that the weights can read, or the file does not have its weights.
    """
    for prefix, rgb in _pretrained_groups(options):
        load_encoder(model, "efficientnet_lite0", options.weights, rgb, root, prefix)


def pretrained_prefixes(options: DualEncoderOptions) -> tuple[str, ...]:
    """Return the starts of the names of the layers with pretrained weights."""
    return tuple(name for prefix, _ in _pretrained_groups(options) for name in layer_prefixes(prefix))


def _pretrained_groups(options: DualEncoderOptions) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Yield prefix and `rgb` of each group with pretrained weights."""
    for number, group in enumerate(options.groups):
        if options.weights != "none" and group.encoder == "efficientnet_lite0" and group.rgb:
            yield f"group_{number}_", group.rgb


def _encode(bands: Any, group: BandGroup, number: int, options: DualEncoderOptions, blocks: Blocks) -> list[Any]:
    """Return the tensor of each scale of a group's encoder, finest first."""
    if group.pixels > 1:
        bands = blocks.pool(bands, f"group_{number}_pool", side=group.pixels, average=True)
    if group.encoder == "efficientnet_lite0":
        return encode(bands, "efficientnet_lite0", blocks, prefix=f"group_{number}_")
    coarser = int(log2(group.pixels))
    return blocks.encoder(bands, options.filters * group.pixels, options.depth - coarser, f"group_{number}_encoder")


def _check(options: DualEncoderOptions, bands: int) -> None:
    stated = sum(group.bands for group in options.groups)
    if stated != bands:
        raise ModelError(
            f"dual_encoder: the groups have {stated} bands, but the stack has {bands}; state all, in order"
        )
