"""U-Net with a published encoder.

The decoder is that of a U-Net, with a skip connection at each scale, including that of the stack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from talud.networks.blocks import Blocks
from talud.networks.encoder_weights import load_encoder
from talud.networks.encoders import encode, layer_prefixes
from talud.params.networks import PretrainedUnetOptions

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
    scales = encode(stack, options.encoder, blocks, to_sixteenth=options.stages == "1/16")
    return blocks.decoder(scales, [round(options.filters * width) for width in _WIDTHS])[0]


def load_weights(model: keras.Model, options: PretrainedUnetOptions, root: Path) -> None:
    """Load the initial weights of the encoder, in place.

    Args:
        model: network of `build_features`.
        options: options of the network.
        root: folder to which the path of a file of weights is relative.

    Raises:
        ModelError: The network has no bands that the weights can read, or the file does not have its weights.
    """
    if options.weights != "none":
        load_encoder(model, options.encoder, options.weights, options.rgb, root)


def pretrained_prefixes(options: PretrainedUnetOptions) -> tuple[str, ...]:
    """Return the starts of the names of the layers with pretrained weights."""
    return () if options.weights == "none" else layer_prefixes()
