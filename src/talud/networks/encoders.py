"""Encoders that are published with weights from ImageNet, without their heads.

EfficientNet-Lite0 is that of Google's release (github.com/tensorflow/tpu, models/official/efficientnet/lite):
EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6 instead of swish, so that it is local.
MobileNetV2 (Sandler et al., 2018) and ResNet50 (He et al., 2016) are those of Keras Applications.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from talud.networks.blocks import Blocks
from talud.networks.unet import NORMALISATION_SUFFIX
from talud.params.networks import PretrainedEncoder


class Stage(NamedTuple):
    """Blocks of equal width.

    Attributes:
        blocks: number of blocks.
        side: side of the kernels between the 1 × 1 kernels, in pixels.
        stride: stride of the first block.
        expansion: channels inside a block per channel of its input; of a residual block, per channel of its output.
        filters: channels of the output.
    """

    blocks: int
    side: int
    stride: int
    expansion: float
    filters: int


STEM_FILTERS: Mapping[PretrainedEncoder, int] = {"efficientnet_lite0": 32, "mobilenet_v2": 32, "resnet50": 64}
STAGES: Mapping[PretrainedEncoder, tuple[Stage, ...]] = {
    "efficientnet_lite0": (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(2, 5, 2, 6, 40),
        Stage(3, 3, 2, 6, 80),
        Stage(3, 5, 1, 6, 112),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    ),
    "mobilenet_v2": (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(3, 3, 2, 6, 32),
        Stage(4, 3, 2, 6, 64),
        Stage(3, 3, 1, 6, 96),
        Stage(3, 3, 2, 6, 160),
        Stage(1, 3, 1, 6, 320),
    ),
    "resnet50": (
        Stage(3, 3, 1, 0.25, 256),
        Stage(4, 3, 2, 0.25, 512),
        Stage(6, 3, 2, 0.25, 1024),
        Stage(3, 3, 2, 0.25, 2048),
    ),
}
# Number of stages with pixels of at most 16 pixels of the stack.
STAGES_TO_SIXTEENTH: Mapping[PretrainedEncoder, int] = {"efficientnet_lite0": 5, "mobilenet_v2": 5, "resnet50": 3}
RESNET_EPSILON = 1.001e-5  # of the normalisations of ResNet50 in Keras Applications
# Name of a convolution in a block → number in the names of Keras Applications.
_RESNET_PARTS = {"direct": 0, "reduce": 1, "spatial": 2, "expand": 3}


def encode(
    stack: Any, encoder: PretrainedEncoder, blocks: Blocks, *, to_sixteenth: bool = True, prefix: str = ""
) -> list[Any]:
    """Return the last tensor of each scale, finest first, the stack included.

    Args:
        stack: scaled stack (batch, height, width, bands).
        encoder: name of the encoder.
        blocks: factory of the layers.
        to_sixteenth: leave out the stages whose pixels have more than 16 times the side of the stack's.
        prefix: start of the names of the layers.
    """
    stages = STAGES[encoder][: STAGES_TO_SIXTEENTH[encoder] if to_sixteenth else None]
    append, scales, number = _inverted_residual, [stack], 0
    if encoder == "resnet50":
        append, blocks = _bottleneck, replace(blocks, epsilon=RESNET_EPSILON)
        scales.append(blocks.convolution(stack, STEM_FILTERS[encoder], 7, f"{prefix}stem", stride=2, pad=3))
        x = blocks.pool_overlapping(scales[-1], f"{prefix}stem_pool")
    else:
        x = blocks.convolution(stack, STEM_FILTERS[encoder], 3, f"{prefix}stem", stride=2, activation="relu6")
    for stage in stages:
        for stride in (stage.stride, *[1] * (stage.blocks - 1)):
            if stride == 2:
                scales.append(x)
            x = append(x, stage, stride, f"{prefix}block_{number}", blocks)
            number += 1
    return [*scales, x]


def layer_prefixes(prefix: str = "") -> tuple[str, ...]:
    """Return the starts of the names of an encoder's layers."""
    return f"{prefix}stem", f"{prefix}block_"


def published_names(encoder: PretrainedEncoder, layer: str) -> tuple[str, str]:
    """Return the names of a convolution and its normalisation in files of weights.

    Those of MobileNetV2 and ResNet50 are the names of Keras Applications; those of EfficientNet-Lite0 are talud's.

    Args:
        encoder: name of the encoder.
        layer: name of the convolution in talud, without the encoder's prefix.
    """
    if encoder == "efficientnet_lite0":
        return layer, f"{layer}{NORMALISATION_SUFFIX}"
    if encoder == "mobilenet_v2":
        name = re.sub(r"^block_0_", "expanded_conv_", layer)
        return ("Conv1", "bn_Conv1") if layer == "stem" else (name, f"{name}_BN")
    if layer == "stem":
        return "conv1_conv", "conv1_bn"
    _, number, part = layer.split("_")
    places = [
        f"conv{stage}_block{place}"
        for stage, stated in enumerate(STAGES[encoder], start=2)
        for place in range(1, stated.blocks + 1)
    ]
    name = f"{places[int(number)]}_{_RESNET_PARTS[part]}"
    return f"{name}_conv", f"{name}_bn"


def _inverted_residual(x: Any, stage: Stage, stride: int, name: str, blocks: Blocks) -> Any:
    """Append an inverted residual block."""
    channels, inner = x.shape[-1], x
    if stage.expansion > 1:
        inner = blocks.convolution(inner, channels * int(stage.expansion), 1, f"{name}_expand", activation="relu6")
    inner = blocks.depthwise(inner, stage.side, f"{name}_depthwise", stride=stride)
    inner = blocks.convolution(inner, stage.filters, 1, f"{name}_project", activation=None)
    return blocks.add([x, inner], f"{name}_add") if stride == 1 and channels == stage.filters else inner


def _bottleneck(x: Any, stage: Stage, stride: int, name: str, blocks: Blocks) -> Any:
    """Append a residual block with fewer channels inside.

    Its first convolution has the stride.
    """
    width, direct = max(int(stage.filters * stage.expansion), 1), x
    if stride > 1 or x.shape[-1] != stage.filters:
        direct = blocks.convolution(x, stage.filters, 1, f"{name}_direct", stride=stride, activation=None)
    inner = blocks.convolution(x, width, 1, f"{name}_reduce", stride=stride)
    inner = blocks.convolution(inner, width, stage.side, f"{name}_spatial")
    inner = blocks.convolution(inner, stage.filters, 1, f"{name}_expand", activation=None)
    return blocks.activate(blocks.add([direct, inner], f"{name}_add"), "relu", f"{name}_relu")
