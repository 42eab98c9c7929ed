"""Networks by name, with their settings and the options of a contract.

Settings state bands by group, so that they hold for every band set. `network_options` derives from them and the names
of the bands the options, which state bands by their index in the stack.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from talud.bands import Group, band_named
from talud.errors import ParamsError
from talud.files import md5
from talud.params.reading import Frozen, validation_message

NetworkName = Literal[
    "unet", "pretrained_unet", "resunet", "attention_unet", "multiscale_unet", "fusion_unet", "dual_encoder"
]
PLAIN_UNET: NetworkName = "unet"  # the study's

PretrainedEncoder = Literal["efficientnet_lite0", "mobilenet_v2", "resnet50"]
Index = Annotated[int, Field(ge=0)]
PixelSize = Literal[1, 2, 4]
GroupEncoder = Literal["plain", "efficientnet_lite0"]
RGB = ("red", "green", "blue")  # bands that the ImageNet weights read
LITE0_DEPTH = 4  # number of times that the stages to 1/16 of EfficientNet-Lite0 halve the scale


def _checked_weights(weights: str) -> str:
    """Check a choice of initial weights."""
    path = PurePath(weights)
    if weights in {"imagenet", "none"}:
        return weights
    if path.suffix not in {".h5", ".hdf5"}:
        raise ValueError(f"'{weights}' is neither imagenet, none nor the path of a file of Keras (.h5)")
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"'{weights}' is not in the project; put the file there, and give its path relative to params.yaml"
        )
    return weights


Weights = Annotated[str, AfterValidator(_checked_weights)]


class NetworkOptions(Frozen):
    """Options of a network."""

    filters: int = Field(16, ge=1, le=1024, description="filters of the first level, doubled at each lower level")

    @property
    def alignment(self) -> int:
        """Number of pixels of which the sides of an input are a multiple."""
        raise NotImplementedError

    @property
    def least_weights(self) -> int:
        """Lower bound of the number of weights."""
        return self.filters**2

    def pinned(self, root: Path) -> Self:
        """Return the options with the checksum of their file of weights.

        Args:
            root: root folder of the project.

        Raises:
            ParamsError: The file cannot be read.
        """
        weights = getattr(self, "weights", "none")
        if weights in {"imagenet", "none"}:
            return self
        try:
            return self.model_copy(update={"weights_md5": md5(root / weights)})
        except OSError as error:
            raise ParamsError(
                f"{root / weights}: the weights that params.yaml names cannot be read: {error.strerror or error}; put "
                "the file there, or set weights to imagenet or none"
            ) from None


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

    @property
    def least_weights(self) -> int:
        """Lower bound of the number of weights."""
        return self.widths[-1] ** 2


class UnetOptions(LevelOptions):
    """Options of the study's U-Net."""

    filters: int = Field(ge=1, le=1024, description="filters of the first level, doubled at each lower level")


class PretrainedUnetSettings(Frozen):
    """Settings of the U-Net with a pretrained encoder."""

    encoder: PretrainedEncoder = Field("efficientnet_lite0", description="encoder; the last two are Keras's")
    stages: Literal["1/16", "all"] = Field(
        "1/16",
        description="stages of the encoder: 1/16, those of pixels up to 16 times the stack's (alignment 16; halo 208, "
        "with mobilenet_v2 176, with resnet50 192); all, with those of pixels 32 times as large (alignment 32; halo "
        "512, with the others 320)",
    )
    weights: Weights = Field(
        "imagenet",
        description="initial weights of the encoder, if the bands include red, green and blue: imagenet, trained on "
        "photographs, which talud has for efficientnet_lite0; the path of a file of Keras (.h5) in the project; none, "
        "random ones",
    )

    @model_validator(mode="after")
    def _weights_exist(self) -> Self:
        if self.weights == "imagenet" and self.encoder != "efficientnet_lite0":
            raise ValueError(
                f"talud has no ImageNet weights of {self.encoder}; set weights to the path of a file of Keras without "
                "the top (such as …_no_top.h5 or …_notop.h5), or to none"
            )
        return self


class PretrainedUnetOptions(PretrainedUnetSettings, NetworkOptions):
    """Options of the U-Net with a pretrained encoder."""

    filters: int = Field(
        32, ge=1, le=1024, description="filters of the decoder at the scale of the stack; 1.5, 2, 3, 6 times at coarser"
    )
    rgb: tuple[Index, Index, Index] = Field(
        (0, 1, 2), description="indices of red, green and blue among the bands, which the ImageNet weights read"
    )
    weights_md5: str | None = Field(None, description="MD5 of the file of weights; null: there is none")

    @property
    def alignment(self) -> int:
        """Number of pixels of which the sides of an input are a multiple."""
        return 32 if self.stages == "all" else 16


class CitedUnetOptions(LevelOptions):
    """Options of a U-Net of the literature."""


class FusionUnetSettings(Frozen):
    """Settings of the U-Net that first treats each band by itself."""

    band_filters: int = Field(4, ge=1, le=64, description="filters of each band before the bands are fused")


class FusionUnetOptions(FusionUnetSettings, LevelOptions):
    """Options of the U-Net that first treats each band by itself."""


class BandGroup(Frozen):
    """Consecutive bands with an encoder of their own."""

    bands: int = Field(ge=1, description="number of bands")
    encoder: GroupEncoder = Field("plain", description="plain: that of a U-Net; efficientnet_lite0: its stages to 1/16")
    pixels: PixelSize = Field(
        1, description="pixel size of the bands in pixels of the stack; they enter the encoder averaged to it"
    )
    rgb: tuple[Index, Index, Index] | None = Field(
        None,
        description="efficientnet_lite0: indices of red, green and blue within the group; null: random initial weights",
    )


class DualEncoderOptions(LevelOptions):
    """Options of the U-Net with an encoder for each group of bands."""

    groups: Annotated[tuple[BandGroup, ...], Len(1, 8)] = Field(
        description="groups of bands, in the order of the bands in the stack"
    )
    depth: int = Field(4, ge=3, le=6, description="number of times that the scale is halved; 4 with efficientnet_lite0")
    weights: Weights = Field("imagenet", description="initial weights of groups with rgb, as for pretrained_unet")
    weights_md5: str | None = Field(None, description="MD5 of the file of weights; null: there is none")

    @model_validator(mode="after")
    def _encoders_have_their_scale(self) -> Self:
        if all(group.pixels > 1 for group in self.groups):
            raise ValueError("no group has the pixels of the stack; set pixels to 1 for at least one group")
        for number, group in enumerate(self.groups):
            if group.encoder == "efficientnet_lite0" and (group.pixels > 1 or self.depth != LITE0_DEPTH):
                raise ValueError(
                    f"group {number} has the encoder efficientnet_lite0, which needs depth {LITE0_DEPTH} and pixels 1"
                )
        return self


class DualEncoderSettings(Frozen):
    """Settings of the U-Net with an encoder for each group of bands."""

    weights: Weights = Field(
        "imagenet", description="initial weights of efficientnet_lite0 with red, green and blue, as for pretrained_unet"
    )
    optical: GroupEncoder | None = Field(
        None,
        description="encoder of the optical bands: efficientnet_lite0, its stages to 1/16; plain, that of a U-Net; "
        "default: efficientnet_lite0 for red, green and blue at depth 4, else plain",
    )
    pixels: dict[Group, PixelSize] = Field(
        {},
        description="band group → size of its pixels in pixels of the stack, onto which they are averaged, such as "
        "`{sar: 2}` for 20 m on a 10 m stack; default: 1",
    )

    @field_validator("pixels")
    @classmethod
    def _groups_are_read(cls, pixels: dict[Group, PixelSize]) -> dict[Group, PixelSize]:
        if Group.OCCLUSION in pixels:
            raise ValueError(f"'{Group.OCCLUSION}' is not an input of networks; give optical, terrain or sar")
        return pixels

    @model_validator(mode="after")
    def _file_is_read(self) -> Self:
        if self.optical == "plain" and self.weights not in {"imagenet", "none"}:
            raise ValueError(
                f"weights is '{self.weights}', but no encoder reads it with optical: plain; remove one of them"
            )
        return self


class NetworkSettings(Frozen):
    """Settings of single networks, apart from `filters` and `depth`."""

    pretrained_unet: PretrainedUnetSettings = PretrainedUnetSettings()
    fusion_unet: FusionUnetSettings = FusionUnetSettings()
    dual_encoder: DualEncoderSettings = DualEncoderSettings()

    def lost_weights(self, name: NetworkName, options: NetworkOptions, bands: Sequence[str]) -> str:
        """Return why a network cannot have its initial weights, else an empty text."""
        stated = getattr(getattr(self, name, None), "weights", "none")
        chosen = name == "dual_encoder" and self.dual_encoder.optical == "plain"
        if chosen or getattr(options, "weights", "none") == stated:
            return ""
        if not set(RGB) <= set(bands):
            return f"its initial weights need red, green and blue, and the band set has {', '.join(bands)}"
        needed = f"training.depth {LITE0_DEPTH} and red, green and blue in one group"
        return f"its pretrained encoder needs {needed}, with pixels 1"


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


def network_options(
    name: NetworkName, filters: int, depth: int, settings: NetworkSettings, bands: Sequence[str]
) -> NetworkOptions:
    """Return the options of a network for the bands of a stack.

    Initial weights need red, green and blue; without them the weights are none.

    Args:
        name: name of the network.
        filters: its filters, whose meaning depends on the network.
        depth: number of times that the scale is halved, for networks that have this option.
        settings: settings of all networks.
        bands: names of the bands, in order.

    Raises:
        ParamsError: The depth, or the number of groups, does not suit the network.
    """
    model = NETWORK_OPTIONS[name]
    stated: dict[str, object] = {"filters": filters}
    if "depth" in model.model_fields:
        stated["depth"] = depth
    if name == "pretrained_unet":
        stated |= settings.pretrained_unet.model_dump() | _photograph_options(bands)
    elif name == "fusion_unet":
        stated |= settings.fusion_unet.model_dump()
    elif name == "dual_encoder":
        groups = _band_groups(settings.dual_encoder, depth, bands)
        weights = settings.dual_encoder.weights if any(group.rgb for group in groups) else "none"
        stated |= {"groups": groups, "weights": weights}
    try:
        return model.model_validate(stated)
    except ValidationError as error:
        problem = validation_message(error, model)
        raise ParamsError(
            f"the network {name} cannot be built: {problem}; change training.depth, training.networks or the network "
            "of the search in params.yaml"
        ) from None


def _photograph_options(bands: Sequence[str]) -> dict[str, object]:
    """Return what the bands decide about weights from photographs."""
    return {"rgb": tuple(bands.index(name) for name in RGB)} if set(RGB) <= set(bands) else {"weights": "none"}


def _band_groups(settings: DualEncoderSettings, depth: int, bands: Sequence[str]) -> list[BandGroup]:
    """Return an encoder for each run of bands of one group."""
    runs = [(group, list(run)) for group, run in itertools.groupby(bands, lambda name: band_named(name).group)]
    # A network has the pixels of its finest group.
    finest = min(settings.pixels.get(group, 1) for group, _ in runs)
    groups = []
    for group, run in runs:
        pixels, encoder = settings.pixels.get(group, 1) // finest, "plain"
        if group is Group.OPTICAL:
            suits = set(RGB) <= set(run) and depth == LITE0_DEPTH and pixels == 1
            encoder = settings.optical or ("efficientnet_lite0" if suits else "plain")
        photographed = encoder == "efficientnet_lite0" and set(RGB) <= set(run)
        rgb = tuple(run.index(name) for name in RGB) if photographed else None
        groups.append(BandGroup(bands=len(run), encoder=encoder, pixels=pixels, rgb=rgb))
    return groups
