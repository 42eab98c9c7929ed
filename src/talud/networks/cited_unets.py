"""U-Nets of the literature that the study cites, in a compact form.

Each builder returns the features (batch, height, width, channels) before the last layer from the scaled stack, its
options and the factory of the layers.
"""

from __future__ import annotations

from typing import Any

from talud.networks.blocks import Blocks, Gate
from talud.params.networks import CitedUnetOptions, FusionUnetOptions


def build_resunet(stack: Any, options: CitedUnetOptions, blocks: Blocks) -> Any:
    """Return the features of a residual U-Net (Zhang, Liu and Wang, 2018).

    Strided convolutions take the place of poolings. The normalisation follows each convolution, as in the first
    residual networks (He et al., 2016), so that it can be folded.
    """
    scales = [_residual(stack, options.filters, "encoder_0", 1, blocks)]
    for level in range(1, options.depth + 1):
        scales.append(_residual(scales[-1], options.widths[level], f"encoder_{level}", 2, blocks))
    x = scales.pop()
    for level in reversed(range(options.depth)):
        joined = blocks.join([blocks.up(x, f"up_{level}"), scales[level]], f"skip_{level}")
        x = _residual(joined, options.widths[level], f"decoder_{level}", 1, blocks)
    return x


def build_attention_unet(stack: Any, options: CitedUnetOptions, blocks: Blocks) -> Any:
    """Return the features of a U-Net with attention gates (Oktay et al., 2018)."""
    scales = blocks.encoder(stack, options.filters, options.depth)
    return blocks.decoder(scales, options.widths, _attention_gate(blocks))[0]


def build_multiscale_unet(stack: Any, options: CitedUnetOptions, blocks: Blocks) -> Any:
    """Return the features of a U-Net with several scales of input and output.

    It is an attention U-Net (Abraham and Khan, 2019). The averaged stack enters each level of the encoder. A score of
    each level of the decoder is up-sampled and reaches the last layer directly, so that a coarse level learns from the
    mask without passing through the finer ones.
    """
    scales = [blocks.pair(stack, options.filters, "encoder_0")]
    for level in range(1, options.depth + 1):
        small = blocks.pool(stack, f"input_{level}", side=2**level, average=True)
        own = blocks.convolution(small, options.filters, 3, f"input_{level}_convolution")
        pooled = blocks.pool(scales[-1], f"encoder_{level}_pool")
        joined = blocks.join([pooled, own], f"encoder_{level}_join")
        scales.append(blocks.pair(joined, options.widths[level], f"encoder_{level}"))
    finest, *coarser = blocks.decoder(scales, options.widths, _attention_gate(blocks))[:-1]
    scores = []
    for level, features in enumerate(coarser, start=1):
        score = blocks.convolution(features, 1, 1, f"score_{level}", activation=None)
        for finer in reversed(range(level)):
            score = blocks.up(score, f"score_{level}_up_{finer}")
        scores.append(score)
    return blocks.join([finest, *scores], "scores") if scores else finest


def build_fusion_unet(stack: Any, options: FusionUnetOptions, blocks: Blocks) -> Any:
    """Return the features of a U-Net that fuses the bands after filters of their own.

    Each band has its own 3 × 3 filters, as in an encoder of its own; a 1 × 1 convolution then fuses the bands.
    """
    own = blocks.depthwise(stack, 3, "bands", multiplier=options.band_filters, activation="relu")
    fused = blocks.convolution(own, options.filters, 1, "fusion")
    scales = blocks.encoder(fused, options.filters, options.depth)
    return blocks.decoder(scales, options.widths)[0]


def _residual(x: Any, filters: int, name: str, stride: int, blocks: Blocks) -> Any:
    """Append a residual block."""
    inner = blocks.convolution(x, filters, 3, f"{name}_first", stride=stride)
    inner = blocks.convolution(inner, filters, 3, f"{name}_second", activation=None)
    direct = blocks.convolution(x, filters, 1, f"{name}_direct", stride=stride, activation=None)
    return blocks.activate(blocks.add([direct, inner], f"{name}_add"), "relu", f"{name}_relu")


def _attention_gate(blocks: Blocks) -> Gate:
    """Return a gate that weights each pixel of a skip connection by 0 to 1."""

    def gate(level: int, skip: Any, larger: Any) -> Any:
        width = max(skip.shape[-1] // 2, 1)
        both = [
            blocks.convolution(tensor, width, 1, f"gate_{level}_{name}", activation=None)
            for name, tensor in (("skip", skip), ("up", larger))
        ]
        attended = blocks.activate(blocks.add(both, f"gate_{level}_add"), "relu", f"gate_{level}_relu")
        weight = blocks.convolution(attended, 1, 1, f"gate_{level}_weight", activation="sigmoid")
        return blocks.multiply([skip, weight], f"gate_{level}")

    return gate
