"""U-Net with EfficientNet-Lite0 as its encoder.

The encoder is that of Google's release (github.com/tensorflow/tpu, models/official/efficientnet/lite), without its
head: EfficientNet-B0 (Tan and Le, 2019) without squeeze-and-excitation, with ReLU6 instead of swish, so that it is
local. The decoder is that of a U-Net, with a skip connection at each scale, including that of the stack.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from talud.networks import imagenet
from talud.networks.blocks import Blocks
from talud.params.networks import PretrainedUnetOptions


class Stage(NamedTuple):
    """Inverted residual blocks of equal width (Sandler et al., 2018).

    Attributes:
        blocks: number of blocks.
        side: side of the depthwise kernels, in pixels.
        stride: stride of the first block.
        expansion: channels inside a block per channel of its input.
        filters: channels of the output.
    """

    blocks: int
    side: int
    stride: int
    expansion: int
    filters: int


STEM_FILTERS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STAGES_TO_SIXTEENTH = 5  # number of stages with pixels of at most 16 pixels of the stack
# Widths of the decoder at each scale in widths at the scale of the stack.
_WIDTHS = (1, 1.5, 2, 3, 6)


def build_features(stack: Any, options: PretrainedUnetOptions, blocks: Blocks) -> Any:
    """Return the features of the last decoder block.

    Args:
        stack: scaled stack (batch, height, width, bands).
        options: options of the network.
        blocks: factory of the layers.

    Returns:
        Features (batch, height, width, filters).
    """
    scales = encode(stack, STAGES if options.stages == "all" else STAGES[:STAGES_TO_SIXTEENTH], blocks)
    return blocks.decoder(scales, [round(options.filters * width) for width in _WIDTHS])[0]


def load_weights(model: keras.Model, options: PretrainedUnetOptions) -> None:
    """Load the initial weights of the encoder, in place.

    Raises:
        ModelError: The network has no bands that the weights can read.
    """
    if options.weights == "imagenet":
        imagenet.load_encoder(model, options.rgb)


def pretrained_prefixes(options: PretrainedUnetOptions) -> tuple[str, ...]:
    """Return the starts of the names of the layers with pretrained weights."""
    return () if options.weights == "none" else layer_prefixes()


def layer_prefixes(prefix: str = "") -> tuple[str, ...]:
    """Return the starts of the names of the layers of `encode`."""
    return f"{prefix}stem", f"{prefix}block_"


def encode(stack: Any, stages: tuple[Stage, ...], blocks: Blocks, prefix: str = "") -> list[Any]:
    """Return the last tensor of each scale, finest first, the stack included.

    Args:
        stack: scaled stack (batch, height, width, bands).
        stages: stages of the encoder.
        blocks: factory of the layers.
        prefix: start of the names of the layers.
    """
    scales = [stack]
    x, number = blocks.convolution(stack, STEM_FILTERS, 3, f"{prefix}stem", stride=2, activation="relu6"), 0
    for stage in stages:
        for first in (True, *[False] * (stage.blocks - 1)):
            stride = stage.stride if first else 1
            if stride == 2:
                scales.append(x)
            x = _inverted_residual(x, stage, stride, f"{prefix}block_{number}", blocks)
            number += 1
    return [*scales, x]


def _inverted_residual(x: Any, stage: Stage, stride: int, name: str, blocks: Blocks) -> Any:
    """Append an inverted residual block."""
    channels, inner = x.shape[-1], x
    if stage.expansion > 1:
        inner = blocks.convolution(inner, channels * stage.expansion, 1, f"{name}_expand", activation="relu6")
    inner = blocks.depthwise(inner, stage.side, f"{name}_depthwise", stride=stride)
    inner = blocks.convolution(inner, stage.filters, 1, f"{name}_project", activation=None)
    return blocks.add([x, inner], f"{name}_add") if stride == 1 and channels == stage.filters else inner
