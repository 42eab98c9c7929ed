"""The four parts of a model's contract: input, origin, measurements and derivations.

`name`, `bands` and `hyperparameters` are called as in the Machine Learning Model extension of STAC (`mlm:name`, the
`bands` of a model input, `mlm:hyperparameters`), which has no names for the other fields.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator

from talud.bands import Group, powerset
from talud.metrics import Confusion, lack_of_skill

Precision = Literal["float32", "float16", "int8"]
ReducedPrecision = Literal["float16", "int8"]
Share = Annotated[float, Field(ge=0, le=1)]
# Of three groups of bands.
MAX_SUBSETS = 7
# Bands are read as float32.
_LARGEST_FLOAT32 = 3.4e38


class FrozenModel(BaseModel):
    """An immutable object without unknown fields or infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BandContract(FrozenModel):
    """One input band, in the order in which the network reads it."""

    name: str
    group: Group
    unit: str = Field(description="as the stack states it: degree, 1/100m, dB, reflectance, DN …")
    lowest: float = Field(description="plausible range: values below mean another unit, or a fault")
    highest: float
    mean: float = Field(description="of the valid training pixels, like the three that follow")
    deviation: float
    minimum: float
    maximum: float
    edges: tuple[FiniteFloat, ...] = Field(
        (), description="of the bins of their histogram, ascending; empty in older files"
    )
    shares: tuple[Share, ...] = Field((), description="of the pixels in each bin, one fewer than edges")

    @model_validator(mode="after")
    def _histogram_is_one(self) -> Self:
        _check_histogram(self.edges, self.shares)
        return self


class Difference(FrozenModel):
    """The histogram of the difference of two bands over the training pixels.

    Such a difference, a hue for instance, may be new where the values of each band are not.
    """

    bands: tuple[str, str] = Field(description="the second is taken from the first")
    edges: tuple[FiniteFloat, ...] = Field(description="of the bins of its histogram over the training pixels")
    shares: tuple[Share, ...] = Field(min_length=1, description="of the pixels in each")

    @model_validator(mode="after")
    def _histogram_is_one(self) -> Self:
        _check_histogram(self.edges, self.shares)
        return self


def _check_histogram(edges: Sequence[float], shares: Sequence[float]) -> None:
    if len(edges) != (len(shares) + 1 if shares else 0) or sorted(edges) != list(edges):
        raise ValueError("edges and shares are no histogram")


class Subset(FrozenModel):
    """Some of a model's band groups, with the model's scores where only these are valid."""

    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    precision: Share
    recall: Share
    f1: Share
    supported: bool = Field(description="whether a pixel is mapped where these groups are valid and no other is")


class ModelInput(FrozenModel):
    """The raster that a model expects."""

    bands: tuple[BandContract, ...]
    differences: tuple[Difference, ...] = Field(
        (), description="of neighbouring optical bands, and of SAR bands; empty in older files"
    )
    required_groups: tuple[Group, ...] = Field(description="where one of these is invalid, nothing is mapped")
    subsets: Annotated[tuple[Subset, ...], Field(max_length=MAX_SUBSETS)] = Field(
        (),
        description="of a model that learned to do without some groups: each of the subsets of its groups, with the "
        "scores on the validation blocks where the other groups are absent, all on the same pixels and at the "
        "threshold; empty for one that needs all of the required groups, and in older files",
    )
    pixel_size: float = Field(gt=0, description="metres")
    halo: int = Field(ge=0, description="pixels of context that a tile on the lattice can depend on, each side")
    alignment: int = Field(ge=1, description="tile origins lie on multiples of this: 2^depth")
    stack: dict[str, str] = Field(description="how the stack was made: slope, curvature, SAR unit, speckle filter")

    @property
    def band_names(self) -> tuple[str, ...]:
        """The names of the bands, in the order in which the network reads them."""
        return tuple(band.name for band in self.bands)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of the bands, in the order of their first band."""
        return tuple(dict.fromkeys(band.group for band in self.bands))

    @property
    def supported(self) -> frozenset[frozenset[Group]]:
        """The sets of valid groups with which a pixel is mapped."""
        if self.subsets:
            return frozenset(frozenset(subset.groups) for subset in self.subsets if subset.supported)
        required = set(self.required_groups)
        return frozenset(chosen for chosen in map(frozenset, powerset(self.groups)) if chosen and required <= chosen)

    def subset(self, groups: Collection[Group]) -> Subset | None:
        """Return the scores with these groups alone, or None if they were not measured."""
        return next((subset for subset in self.subsets if set(subset.groups) == set(groups)), None)

    @model_validator(mode="after")
    def _subsets_make_sense(self) -> Self:
        if not self.subsets:
            return self
        groups = [frozenset(subset.groups) for subset in self.subsets]
        if not set().union(*groups) <= set(self.groups):
            raise ValueError("subsets: one names a group without bands")
        names_twice = any(len(subset.groups) > len(set(subset.groups)) for subset in self.subsets)
        if names_twice or len(set(groups)) < len(groups):
            raise ValueError("subsets: one stands twice, or names a group twice")
        if frozenset(self.groups) not in self.supported:
            raise ValueError("subsets: that of all groups is missing, or not supported")
        if set(self.required_groups) != frozenset.intersection(*self.supported):
            raise ValueError("subsets: the required groups are not those of every supported one")
        return self

    @model_validator(mode="after")
    def _bands_make_sense(self) -> Self:
        names = self.band_names
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("a band has no name, or stands twice")
        for band in self.bands:
            numbers = (band.lowest, band.highest, band.minimum, band.maximum)
            upside_down = band.lowest > band.highest or band.minimum > band.maximum or band.deviation < 0
            if upside_down or max(map(abs, numbers)) > _LARGEST_FLOAT32:
                raise ValueError(f"the numbers of band '{band.name}' are no range that values can have")
        if any(not set(difference.bands) <= set(names) for difference in self.differences):
            raise ValueError("a difference is of a band that the model does not read")
        if not set(self.required_groups) <= {band.group for band in self.bands}:
            raise ValueError("a required group has no bands")
        return self


class ModelOrigin(FrozenModel):
    """The training run, data and code that a model came from."""

    name: str = Field(description="the band set")
    weights: str = Field(
        description="SHA-256 over the constants of the float32 graph: the same for two exports of one model, and for "
        "its variants of reduced precision"
    )
    data_version: str = Field(description="MD5 over the MD5s of the stacks and masks trained on")
    areas: tuple[str, ...] = Field(description="the areas trained on")
    commit: str = Field(description="of the project's repository, with +changes where it was not clean")
    run_id: str = Field(description="the MLflow run of the trial")
    hyperparameters: dict[str, float | int | str]


class Calibration(FrozenModel):
    """The line of Platt (1999) in the last layer: logit' = slope * logit + offset."""

    slope: FiniteFloat = Field(gt=0, description="1 where they were left as they are")
    offset: FiniteFloat = Field(description="0 where they were left as they are")
    error_before: float = Field(
        ge=0,
        le=1,
        description="expected calibration error on the validation blocks, which slope and offset fit",
    )
    error_after: float = Field(ge=0, le=1, description="the same of the probabilities that the file gives")
    declined: str = Field("", description="why they were left as they are; empty where they were not")


class Validation(FrozenModel):
    """Pixel counts on the validation blocks, from which an area is estimated."""

    tp: NonNegativeInt
    fp: NonNegativeInt
    fn: NonNegativeInt
    tn: NonNegativeInt
    blocks: NonNegativeInt = Field(description="that hold a pixel of these")
    design_effects: tuple[Annotated[FiniteFloat, Field(ge=1)], Annotated[FiniteFloat, Field(ge=1)]] = Field(
        description="of the landslide share of what is mapped as landslide, and as background: how many times its "
        "variance is that of pixels drawn one by one, for those of a block err together"
    )
    correlation: float = Field(ge=-1, le=1, description="of these two shares, between blocks")


class Measurements(FrozenModel):
    """The threshold, and all that was measured of a model at it."""

    threshold: float = Field(gt=0, lt=1, description="landslide where the probability is at least this")
    scores: dict[str, float] = Field(description="precision, recall, f1, iou and mcc on the validation blocks")
    halo_errors: dict[NonNegativeInt, Share] = Field(
        default={},
        description="a smaller halo in pixels, and how far probabilities differ with it, at most, on windows of the "
        "training areas; empty where that was not measured",
    )
    parity: dict[Literal["difference", "allowed"], Annotated[FiniteFloat, Field(ge=0)]] = Field(
        default={},
        description="how far the file's probabilities differ from the Keras model's, at most, on the validation "
        "patches, and how far rounding allows them to; empty in older files",
    )
    calibration: Calibration | None = Field(
        None, description="of the probabilities; missing in older files and where it is switched off"
    )
    validation: Validation | None = Field(None, description="counts on the validation blocks; missing in older files")
    loss: dict[str, float] = Field(
        default_factory=dict,
        description="what a reduced precision costs on the validation blocks: f1, how much lower it is than that of "
        "the float32 file; largest_difference and mean_difference, of the probabilities",
    )

    @property
    def lack_of_skill(self) -> str:
        """Return a sentence if the model is no better than a constant map.

        The scores are those of its validation blocks; the text is empty if the model is better.

        An older file, and an adapted or fine-tuned one, holds scores and no counts: it lacks skill where its F1 is 0,
        or its map does not correlate with the truth.
        """
        if self.validation is not None:
            known = self.validation
            said = lack_of_skill(Confusion(known.tp, known.fp, known.fn, known.tn))
        elif "f1" in self.scores and min(self.scores["f1"], self.scores.get("mcc", 1.0)) <= 0:
            said = f"no better than a constant map: F1 {self.scores['f1']:.3f}"
        else:
            said = ""
        return f"on the validation blocks {said}" if said else ""


class ParentModel(FrozenModel):
    """The model that another was made from."""

    weights: str = Field(description="its digest, as `weights` of its contract's origin")
    model: str = Field(description="its registered name, or the band set")
    version: str = Field(description="registered, or unregistered")
    area: str = Field(description="that the new one was made for")


class Adaptation(ParentModel):
    """The area and raster to which the network's features were aligned without labels."""

    raster: str
    raster_digest: str = Field(description="as the tag TALUD_RASTER_DIGEST of its maps")
    strength: float = Field(gt=0, le=1, description="1: to the statistics of the area alone; 0 would be as it was")
    squares: int = Field(ge=1, description="of the raster, on which they were measured")
    side: int = Field(ge=1, description="of these, in pixels")
    agreement_before: float = Field(
        ge=-1, le=1, description="correlation of the original's maps of the squares, turned and mirrored, with its map"
    )
    agreement_after: float = Field(ge=-1, le=1, description="likewise of the adapted model's maps")


class FineTuning(ParentModel):
    """The labelled patches of a new area with which a model was trained further."""

    labels: str = Field(description="MD5 of the area's mask")
    patches: int = Field(ge=1)
    cells: tuple[tuple[int, int], ...] = Field(description="row and column of each patch's first pixel")
    side: int = Field(ge=1, description="of a patch in pixels")
    landslide_pixels: int = Field(ge=1, description="in the patches")
    seed: int
    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    recipe: str = Field(description="of the project, whose loss, augmentation and dropping it was")
    rehearsed: tuple[str, ...] = Field(description="training areas of which half of each batch was; empty: none")
    f1_before: float | None = Field(description="on the area's other labelled patches; null: there are none")
    f1_after: float | None


class Derivations(FrozenModel):
    """The steps by which a file was derived from a trained network."""

    precision: Precision = Field(
        "float32", description="of weights and arithmetic, but for the layers that scale bands"
    )
    adapted: Adaptation | None = Field(
        None, description="where its features were aligned to a new area; the scores are still the original's"
    )
    finetuned: FineTuning | None = Field(None, description="where it was trained further on labels of a new area")
