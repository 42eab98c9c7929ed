"""Networks by name, with their options as a contract has them.

The options state bands by their index in the stack. `talud.networks.catalogue.network_spec` derives them from the
settings of params.yaml, which state bands by group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from talud.params.reading import Frozen

NetworkName = Literal[
    "unet", "pretrained_unet", "resunet", "attention_unet", "multiscale_unet", "fusion_unet", "dual_encoder"
]
PLAIN_UNET: NetworkName = "unet"  # the study's

Index = Annotated[int, Field(ge=0)]
PixelSize = Literal[1, 2, 4]
LITE0_DEPTH = 4  # number of times that the stages to 1/16 of EfficientNet-Lite0 halve the scale


class NetworkOptions(Frozen):
    """Options of a network."""

    filters: int = Field(16, ge=1, le=1024, description="filters of the first level, doubled at each lower level")

    @property
    def alignment(self) -> int:
        """Number of pixels of which the sides of an input are a multiple."""
        raise NotImplementedError


class LevelOptions(NetworkOptions):
    """Options of a network whose levels halve the scale."""

    depth: int = Field(4, ge=1, le=8, description="number of times that the scale is halved")

    @property
    def alignment(self) -> int:
        """Number of pixels of which the sides of an input are a multiple."""
        return 1 << self.depth

    @property
    def widths(self) -> list[int]:
        """Filters of each level, finest first."""
        return [self.filters * 2**level for level in range(self.depth + 1)]


class UnetOptions(LevelOptions):
    """Options of the study's U-Net."""

    filters: int = Field(ge=1, le=1024, description="filters of the first level, doubled at each lower level")


class PretrainedUnetOptions(NetworkOptions):
    """Options of the U-Net with a pretrained encoder."""

    filters: int = Field(
        32, ge=1, le=1024, description="filters of the decoder at the scale of the stack; 1.5, 2, 3, 6 times at coarser"
    )
    stages: Literal["1/16", "all"] = Field(
        "1/16",
        description="stages of the encoder: 1/16, those of pixels up to 16 times the stack's (halo 208, alignment 16); "
        "all, with those of pixels 32 times as large (halo 512, alignment 32)",
    )
    weights: Literal["imagenet", "none"] = Field(
        "imagenet", description="initial weights of the encoder: imagenet, trained on photographs; none, random ones"
    )
    rgb: tuple[Index, Index, Index] = Field(
        (0, 1, 2), description="indices of red, green and blue among the bands, which the ImageNet weights read"
    )

    @property
    def alignment(self) -> int:
        """Number of pixels of which the sides of an input are a multiple."""
        return 32 if self.stages == "all" else 16


class CitedUnetOptions(LevelOptions):
    """Options of a U-Net of the literature."""


class FusionUnetOptions(CitedUnetOptions):
    """Options of the U-Net that first treats each band by itself."""

    band_filters: int = Field(4, ge=1, le=64, description="filters of each band before the bands are fused")


class BandGroup(Frozen):
    """Consecutive bands with an encoder of their own."""

    bands: int = Field(ge=1, description="number of bands")
    encoder: Literal["plain", "lite0"] = Field(
        "plain", description="plain: that of a U-Net; lite0: EfficientNet-Lite0 to 1/16"
    )
    pixels: PixelSize = Field(
        1, description="pixel size of the bands in pixels of the stack; they enter the encoder averaged to it"
    )


class DualEncoderOptions(LevelOptions):
    """Options of the U-Net with an encoder for each group of bands."""

    groups: Annotated[tuple[BandGroup, ...], Len(1, 8)] = Field(
        description="groups of bands, in the order of the bands in the stack"
    )
    depth: int = Field(4, ge=3, le=6, description="number of times that the scale is halved; 4 with lite0")


# Name of a network → model of its options.
NETWORK_OPTIONS: Mapping[NetworkName, type[NetworkOptions]] = {
    PLAIN_UNET: UnetOptions,
    "pretrained_unet": PretrainedUnetOptions,
    "resunet": CitedUnetOptions,
    "attention_unet": CitedUnetOptions,
    "multiscale_unet": CitedUnetOptions,
    "fusion_unet": FusionUnetOptions,
    "dual_encoder": DualEncoderOptions,
}
