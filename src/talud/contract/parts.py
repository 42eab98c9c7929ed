"""Parts of a model's contract: input, origin, measurements, derivations.

`name`, `bands` and `hyperparameters` have the names of the Machine Learning Model extension of STAC (`mlm:name`, the
`bands` of a model input, `mlm:hyperparameters`), which has no names for the other fields.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, NonNegativeInt, model_validator

from talud.bands import Group, powerset
from talud.metrics import Confusion, lack_of_skill

Precision = Literal["float32", "float16", "int8"]
ReducedPrecision = Literal["float16", "int8"]
AlignedPart = Literal["bands", "layers"]
Share = Annotated[float, Field(ge=0, le=1)]
# Number of non-empty subsets of three band groups.
MAX_SUBSETS = 7
# Bands are read as float32, whose largest value is about this.
_LARGEST_FLOAT32 = 3.4e38


class FrozenModel(BaseModel):
    """Immutable object without unknown fields or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BandContract(FrozenModel):
    """Input band, in the order in which the network reads it."""

    name: str = Field(description="name of the band in a stack, such as red or vv_pre")
    group: Group = Field(description="sensor group: optical, terrain or sar")
    unit: str = Field(description="unit as stated in the stack: degree, 1/100m, dB, reflectance, DN …")
    lowest: float = Field(description="lower end of the plausible range; lower values mean another unit or an error")
    highest: float = Field(description="upper end of the plausible range")
    mean: float = Field(description="mean over valid training pixels")
    deviation: float = Field(description="standard deviation over valid training pixels")
    minimum: float = Field(description="minimum over valid training pixels")
    maximum: float = Field(description="maximum over valid training pixels")
    edges: tuple[FiniteFloat, ...] = Field(
        (), description="bin edges of the histogram over valid training pixels, ascending; empty in older files"
    )
    shares: tuple[Share, ...] = Field((), description="share of the pixels in each bin; one fewer than edges")

    @model_validator(mode="after")
    def _histogram_is_one(self) -> Self:
        _check_histogram(self.edges, self.shares)
        return self


class Difference(FrozenModel):
    """Histogram of the difference of two bands over the training pixels.

    A difference, such as a hue, may be outside the training data although the values of each band are not.
    """

    bands: tuple[str, str] = Field(description="minuend and subtrahend")
    edges: tuple[FiniteFloat, ...] = Field(description="bin edges of the histogram over the training pixels, ascending")
    shares: tuple[Share, ...] = Field(min_length=1, description="share of the pixels in each bin")

    @model_validator(mode="after")
    def _histogram_is_one(self) -> Self:
        _check_histogram(self.edges, self.shares)
        return self


def _check_histogram(edges: Sequence[float], shares: Sequence[float]) -> None:
    if len(edges) != (len(shares) + 1 if shares else 0) or sorted(edges) != list(edges):
        raise ValueError("edges and shares are not a histogram")


class Subset(FrozenModel):
    """Subset of band groups, with its scores."""

    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = Field(description="band groups of the subset")
    precision: Share = Field(description="precision on the validation blocks")
    recall: Share = Field(description="recall on the validation blocks")
    f1: Share = Field(description="F1 on the validation blocks")
    supported: bool = Field(description="true if pixels are mapped where only these groups are valid")


class ModelInput(FrozenModel):
    """Raster that a model expects."""

    bands: tuple[BandContract, ...] = Field(description="bands in the order in which the network reads them")
    differences: tuple[Difference, ...] = Field(
        (), description="differences of neighbouring optical bands, and of SAR bands; empty in older files"
    )
    required_groups: tuple[Group, ...] = Field(description="band groups without which a pixel is not mapped")
    subsets: Annotated[tuple[Subset, ...], Field(max_length=MAX_SUBSETS)] = Field(
        (),
        description="scores with each subset of the band groups, on the same pixels of the validation blocks and at "
        "the threshold; empty if the model was not trained with missing groups, and in older files",
    )
    pixel_size: float = Field(gt=0, description="side of a pixel in metres")
    pixel_sizes: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="pixel sizes in metres that the model was trained at, ascending, if there are several "
        "(`stack.pixel_sizes: native`); a raster may have any from the first to the last; empty: pixel_size only",
    )
    halo: int = Field(ge=0, description="context that a tile needs on each side, in pixels")
    alignment: int = Field(ge=1, description="tile origins are multiples of this number of pixels; 2^depth for a U-Net")
    stack: dict[str, str] = Field(description="processing of the stack: slope, curvature, SAR unit, speckle filter")

    @property
    def pixel_size_range(self) -> tuple[float, float]:
        """Smallest and largest pixel size that the model maps, in metres."""
        sizes = self.pixel_sizes or (self.pixel_size,)
        return sizes[0], sizes[-1]

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in network order."""
        return tuple(band.name for band in self.bands)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of the bands, in the order of their first band."""
        return tuple(dict.fromkeys(band.group for band in self.bands))

    @property
    def supported(self) -> frozenset[frozenset[Group]]:
        """Sets of valid groups with which a pixel is mapped."""
        if self.subsets:
            return frozenset(frozenset(subset.groups) for subset in self.subsets if subset.supported)
        required = set(self.required_groups)
        return frozenset(chosen for chosen in map(frozenset, powerset(self.groups)) if chosen and required <= chosen)

    def subset(self, groups: Collection[Group]) -> Subset | None:
        """Return the scores with only these groups; None if not measured."""
        return next((subset for subset in self.subsets if set(subset.groups) == set(groups)), None)

    @model_validator(mode="after")
    def _subsets_make_sense(self) -> Self:
        if not self.subsets:
            return self
        groups = [frozenset(subset.groups) for subset in self.subsets]
        if not set().union(*groups) <= set(self.groups):
            raise ValueError("subsets: a subset has a group without bands")
        names_twice = any(len(subset.groups) > len(set(subset.groups)) for subset in self.subsets)
        if names_twice or len(set(groups)) < len(groups):
            raise ValueError("subsets: a subset is listed twice, or lists a group twice")
        if frozenset(self.groups) not in self.supported:
            raise ValueError("subsets: the subset of all groups is missing or not supported")
        if set(self.required_groups) != frozenset.intersection(*self.supported):
            raise ValueError("subsets: the required groups are not those that all supported subsets share")
        return self

    @model_validator(mode="after")
    def _bands_make_sense(self) -> Self:
        names = self.band_names
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("a band has no name, or is listed twice")
        for band in self.bands:
            numbers = (band.lowest, band.highest, band.minimum, band.maximum)
            upside_down = band.lowest > band.highest or band.minimum > band.maximum or band.deviation < 0
            if upside_down or max(map(abs, numbers)) > _LARGEST_FLOAT32:
                raise ValueError(f"band '{band.name}' has an invalid range or deviation")
        if any(not set(difference.bands) <= set(names) for difference in self.differences):
            raise ValueError("a difference refers to a band that the model does not read")
        if self.pixel_sizes and (
            list(self.pixel_sizes) != sorted(set(self.pixel_sizes)) or self.pixel_size not in self.pixel_sizes
        ):
            raise ValueError("pixel_sizes are not ascending, or lack pixel_size")
        if not set(self.required_groups) <= {band.group for band in self.bands}:
            raise ValueError("a required group has no bands")
        return self


class NetworkArchitecture(FrozenModel):
    """Network with its options."""

    name: str = Field(description="name of the network, such as unet")
    options: dict[str, JsonValue] = Field(description="options of the network, such as filters and depth")


class ModelOrigin(FrozenModel):
    """Training run, data and code of a model."""

    name: str = Field(description="band set")
    weights: str = Field(
        description="SHA-256 over the constants of the float32 graph; equal for all exports of a model and its "
        "variants of reduced precision"
    )
    data_version: str = Field(description="MD5 over the MD5s of the training stacks and masks")
    areas: tuple[str, ...] = Field(description="training areas")
    area_pixel_sizes: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="training area → pixel size of its data in metres, before patches were resampled; empty if all are "
        "pixel_size",
    )
    landslide_share: Share | None = Field(
        None, description="share of landslide in the labelled pixels of the training blocks; missing in older files"
    )
    commit: str = Field(description="git commit of the project, with +changes if it was not clean")
    run_id: str = Field(description="MLflow run of the trial")
    hyperparameters: dict[str, float | int | str] = Field(
        description="hyperparameters of the trial: network, filters, depth, learning rate, batch size, seed, split and "
        "recipe"
    )
    network: NetworkArchitecture | None = Field(
        None, description="network and its options, from which it can be rebuilt; null in older files, which are U-Nets"
    )

    @property
    def network_name(self) -> str:
        """Name of the network."""
        return self.network.name if self.network else "unet"


class Calibration(FrozenModel):
    """Platt scaling (1999) in a model's last layer.

    logit' = slope * logit + offset.
    """

    slope: FiniteFloat = Field(gt=0, description="1 if the probabilities were not calibrated")
    offset: FiniteFloat = Field(description="0 if the probabilities were not calibrated")
    error_before: float = Field(
        ge=0,
        le=1,
        description="expected calibration error before calibration, on the validation blocks to which it was fitted",
    )
    error_after: float = Field(ge=0, le=1, description="expected calibration error of the file's probabilities")
    declined: str = Field("", description="reason why the probabilities were not calibrated; else empty")


class Validation(FrozenModel):
    """Pixel counts on the validation blocks, for area estimates."""

    tp: NonNegativeInt = Field(description="landslide pixels mapped as landslide")
    fp: NonNegativeInt = Field(description="background pixels mapped as landslide")
    fn: NonNegativeInt = Field(description="landslide pixels mapped as background")
    tn: NonNegativeInt = Field(description="background pixels mapped as background")
    blocks: NonNegativeInt = Field(description="number of blocks with a counted pixel")
    design_effects: tuple[Annotated[FiniteFloat, Field(ge=1)], Annotated[FiniteFloat, Field(ge=1)]] = Field(
        description="design effects of the landslide share among pixels mapped as landslide and as background: ratio "
        "of its variance to that of independent pixels, because errors in a block are correlated"
    )
    correlation: float = Field(ge=-1, le=1, description="correlation of the two shares between blocks")


class PassMemory(FrozenModel):
    """Memory of a pass of the network, per pixel of its window.

    The window is that of a core of 1024 pixels with its halo.
    """

    plain: float = Field(gt=0, le=1e6, description="bytes per pixel of a pass of the whole network")
    cropped: float = Field(gt=0, le=1e6, description="bytes per pixel of the passes over cropped tiles of all kinds")


class Measurements(FrozenModel):
    """Threshold of a model, and its measured properties."""

    threshold: float = Field(gt=0, lt=1, description="lowest probability of a landslide")
    scores: dict[str, float] = Field(description="precision, recall, f1, iou and mcc on the validation blocks")
    halo_errors: dict[NonNegativeInt, Share] = Field(
        default={},
        description="smaller halo in pixels → largest difference in probability, on windows of the training areas; "
        "empty if not measured",
    )
    parity: dict[Literal["difference", "allowed"], Annotated[FiniteFloat, Field(ge=0)]] = Field(
        default={},
        description="largest difference in probability between the file and the Keras model on the validation "
        "patches, and the largest that rounding allows; empty in older files",
    )
    calibration: Calibration | None = Field(
        None, description="calibration of the probabilities; missing in older files and if switched off"
    )
    memory: PassMemory | None = Field(
        None, description="memory of a pass, as determined when the file was exported; missing in older files"
    )
    validation: Validation | None = Field(None, description="counts on the validation blocks; missing in older files")
    loss: dict[str, float] = Field(
        default_factory=dict,
        description="loss by reduced precision on the validation blocks: f1, decrease relative to the float32 file; "
        "largest_difference and mean_difference, in probability",
    )

    @property
    def lack_of_skill(self) -> str:
        """Sentence that reports a lack of skill, or empty.

        The text is empty if the model is better. It is derived from the counts on the validation blocks. Contracts of
        older, adapted and fine-tuned models hold scores without counts: they lack skill if F1 or MCC is not positive.
        """
        if self.validation is not None:
            known = self.validation
            sentence = lack_of_skill(Confusion(known.tp, known.fp, known.fn, known.tn))
        elif "f1" in self.scores and min(self.scores["f1"], self.scores.get("mcc", 1.0)) <= 0:
            sentence = f"no better than a constant map: F1 {self.scores['f1']:.3f}"
        else:
            sentence = ""
        return f"on the validation blocks {sentence}" if sentence else ""


class ParentModel(FrozenModel):
    """Model from which another was made."""

    weights: str = Field(description="SHA-256 of its weights, as in its contract")
    model: str = Field(description="registered name, or band set if unregistered")
    version: str = Field(description="registered version, or `unregistered`")
    area: str = Field(description="area for which the new model was made")


def describe_alignment(part: AlignedPart, strength: float) -> str:
    """Describe an alignment, such as "bands aligned"."""
    whole = "" if strength == 1 else f" at strength {strength:g}"
    return f"{'bands' if part == 'bands' else 'bands and layers'} aligned{whole}"


class Adaptation(ParentModel):
    """Alignment of a network's features to an area without labels."""

    raster: str = Field(description="raster to which the features were aligned")
    raster_digest: str = Field(description="fingerprint of the raster, as in the tag TALUD_RASTER_DIGEST of its maps")
    aligned: AlignedPart = Field(
        "layers",
        exclude_if=lambda part: part == "layers",
        description="bands: mean and deviation of the bands only; layers, as in older files: also all features",
    )
    strength: float = Field(gt=0, le=1, description="weight of the area's statistics; 1 uses no others")
    squares: int = Field(ge=1, description="number of windows on which the statistics were measured")
    side: int = Field(ge=1, description="side of a window in pixels")
    agreement_before: float = Field(
        ge=-1, le=1, description="correlation of the original model's maps of turned and mirrored windows with its map"
    )
    agreement_after: float = Field(ge=-1, le=1, description="the same correlation for the adapted model")
    share_before: Share | None = Field(
        None,
        exclude_if=lambda share: share is None,
        description="share of landslide in the original model's maps of the windows; missing in older files",
    )
    share_after: Share | None = Field(
        None, exclude_if=lambda share: share is None, description="the same share for the adapted model"
    )

    @property
    def label(self) -> str:
        """Description of the alignment, such as "bands aligned"."""
        return describe_alignment(self.aligned, self.strength)


class FineTuning(ParentModel):
    """Fine-tuning on labelled patches of a new area."""

    labels: str = Field(description="MD5 of the area's mask")
    patches: int = Field(ge=1, description="number of labelled patches")
    cells: tuple[tuple[int, int], ...] = Field(description="row and column of each patch's first pixel")
    side: int = Field(ge=1, description="side of a patch in pixels")
    landslide_pixels: int = Field(ge=1, description="landslide pixels in the patches")
    seed: int = Field(description="seed of the random generator")
    steps: int = Field(ge=1, description="training steps")
    learning_rate: float = Field(gt=0, description="learning rate at the start of fine-tuning")
    recipe: str = Field(description="recipe of the project that gave loss, augmentation and dropping")
    rehearsed: tuple[str, ...] = Field(description="training areas that filled half of each batch; empty if none")
    f1_before: float | None = Field(
        description="F1 on the area's other labelled patches before fine-tuning; null if there are none"
    )
    f1_after: float | None = Field(description="F1 on these patches after fine-tuning")


class Derivations(FrozenModel):
    """Steps that made a file from a trained network."""

    precision: Precision = Field(
        "float32", description="precision of weights and arithmetic, except in the layers that scale bands"
    )
    adapted: Adaptation | None = Field(
        None, description="adaptation to a new area, if any; the scores are those of the original model"
    )
    finetuned: FineTuning | None = Field(None, description="fine-tuning on labels of a new area, if any")
