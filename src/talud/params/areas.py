"""Areas, stacks and splits in params.yaml."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from talud.bands import Group, band_named
from talud.errors import ParamsError
from talud.params.reading import Frozen, validation_message

SlopeMethod = Literal["zevenbergen_thorne", "horn"]
CurvatureKind = Literal["profile", "contour", "total"]
SarUnit = Literal["amplitude", "power", "db"]
Source = Literal["optical", "dtm", "sar_pre", "sar_post", "inventory", "boundary", "cloud", "sar_mask"]

# Keys of an area that apply to rasters and polygons, not to patches.
_RASTER_KEYS = (
    "files",
    "optical_bands",
    "optical_scale",
    "optical_offset",
    "sar_bands",
    "crs",
    "bounds",
    "resolution",
    "inventory_filter",
)


class Acquired(Frozen):
    """Acquisition dates of the images of an area."""

    optical: date | None = Field(None, description="date of the optical image")
    sar_pre: date | None = Field(None, description="date of the SAR image before the event")
    sar_post: date | None = Field(None, description="date of the SAR image after the event")


class PatchData(Frozen):
    """Patch data set: square images and masks."""

    images: str = Field("images", description="subfolder of the area's folder, or a pattern such as img/image_*.h5")
    masks: str = Field(
        "masks",
        description="the same for masks; image_12.h5 is paired with mask_12.h5, 12.png with 12.png; not used for files "
        "with a variable MASK",
    )
    sar: str | None = Field(None, description="the same for files with the variables VV and VH of the same patches")
    index: str | None = Field(
        None,
        description="table whose first column lists the patches to use, or splits.json with the patches of train, val "
        "and test; default: all",
    )
    where: str | None = Field(None, description="filter of the rows of the table, as an OGR SQL WHERE clause")
    split: str | None = Field(
        None,
        description="column of the table with the part of each patch: train, val or test; default: by patch number, "
        "unless index is splits.json",
    )
    bands: Annotated[dict[str, Annotated[int, Field(ge=1)] | str | None], Len(1)] = Field(
        {"red": 1, "green": 2, "blue": 3},
        description="band name → channel number in an image, from 1, or name of a variable; or a list of bands "
        "that the files name; slope and curvature are computed from elevation, which is in metres",
    )
    pixel_size: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="pixel size in metres; default: that of the files, else 10"
    )

    @field_validator("bands", mode="before")
    @classmethod
    def _listed_bands_are_named_by_the_files(cls, bands: object) -> object:
        if isinstance(bands, (list, tuple)) and all(isinstance(name, str) for name in bands):
            twice = next((name for place, name in enumerate(bands) if name in bands[:place]), None)
            if twice:
                raise ValueError(f"lists '{twice}' twice")
            return dict.fromkeys(bands)
        return bands

    @model_serializer(mode="wrap")
    def _without_unset_options(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out unset options that the records of older stacks lack."""
        stated: dict[str, object] = serialize(self)
        return {key: value for key, value in stated.items() if value is not None or key not in ("sar", "split")}

    @model_validator(mode="after")
    def _clause_has_its_table(self) -> Self:
        for key, value in (("where", self.where), ("split", self.split)):
            if value and not self.index:
                raise ValueError(f"{key} refers to the table of index, but index is not set")
            if value and self.index and self.index.lower().endswith(".json"):
                raise ValueError(f"{key} refers to a table, but {self.index} is not one; use patch_locations.geojson")
        return self

    @model_validator(mode="after")
    def _bands_are_measured(self) -> Self:
        for name in self.bands:
            if band_named(name).group is Group.OCCLUSION:
                raise ValueError(f"bands: '{name}' is a mask, which patches do not have; remove it")
        return self


class Area(Frozen):
    """Area: a basin and its sources."""

    role: Literal["training", "gate", "transfer"] = Field(
        description="training; gate: labelled, decides about promotion; transfer: labelled or not, only scored"
    )
    folder: str = Field(description="folder with the sources: optical.*, dtm.*, sar_pre.*, inventory.* and others")
    files: dict[Source, str] = Field({}, description="file of a source, relative to the folder, if its name differs")
    optical_bands: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {"red": 1, "green": 2, "blue": 3}, description="band name → band number in the optical source, from 1"
    )
    optical_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="scale from stored values to reflectance; default: that of the file",
    )
    optical_offset: float | None = Field(
        None, allow_inf_nan=False, description="offset added after scaling: -0.1 for Sentinel-2 L2A since January 2022"
    )
    sar_bands: dict[Literal["vv", "vh"], Annotated[int, Field(ge=1)]] = Field(
        {"vv": 1}, description="polarisation → band number in sar_pre and sar_post, from 1"
    )
    sar_unit: SarUnit | None = Field(
        None, description="unit of the SAR sources, or of the SAR bands of patches; default: the unit in their tags"
    )
    crs: str | None = Field(
        None, description="coordinate reference system of the stack; default: that of the first source"
    )
    bounds: tuple[float, float, float, float] | None = Field(
        None,
        description="left, bottom, right, top in the CRS of the stack; pixels with their centre inside are included; "
        "default: extent of the first source",
    )
    resolution: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="pixel size of the stack in metres; default: stack.resolution"
    )
    inventory_filter: str | None = Field(None, description="filter of the inventory, as an OGR SQL WHERE clause")
    acquired: Acquired = Acquired()
    event: date | None = Field(None, description="date of the event that triggered the landslides")
    patches: PatchData | None = Field(None, description="patch data set, instead of rasters")
    adapt: bool = Field(
        False,
        description="transfer areas: the pipeline also maps the area with each model adapted to it, without labels",
    )

    @classmethod
    def create(cls, **fields: object) -> Self:
        """Return an area that is not in params.yaml.

        Raises:
            ParamsError: a value is invalid.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ParamsError(validation_message(error, cls)) from error

    @model_validator(mode="after")
    def _optical_names_are_optical(self) -> Self:
        _require_optical_bands("optical_bands", self.optical_bands)
        return self

    @model_validator(mode="after")
    def _patches_stand_alone(self) -> Self:
        if self.patches:
            fields = type(self).model_fields
            set_keys = [name for name in _RASTER_KEYS if getattr(self, name) != fields[name].get_default()]
            if set_keys:
                raise ValueError(f"an area with patches cannot have {', '.join(set_keys)}, which apply to rasters")
        return self

    @model_validator(mode="after")
    def _transfer_areas_are_adapted(self) -> Self:
        if self.adapt and self.role != "transfer":
            raise ValueError(f"adapt: true applies to areas with role: transfer, but the role is {self.role}")
        return self

    @model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        pre, post = self.acquired.sar_pre, self.acquired.sar_post
        if self.event and pre and pre >= self.event:
            raise ValueError(f"sar_pre was acquired on {pre}, not before the event of {self.event}")
        for name, day in (("sar_post", post), ("optical", self.acquired.optical)):
            if self.event and day and day < self.event:
                raise ValueError(f"{name} was acquired on {day}, before the event of {self.event}")
        if pre and post and pre >= post:
            raise ValueError(f"sar_pre was acquired on {pre}, not before sar_post on {post}")
        return self


class StackOptions(Frozen):
    """Options of the stacks."""

    resolution: float = Field(
        12.5, gt=0, description="pixel size in metres; of patches only with pixel_sizes: resample"
    )
    pixel_sizes: Literal["equal", "resample", "native"] = Field(
        "equal",
        description="pixel sizes of areas: equal, training areas must have one; resample, patches are resampled to "
        "`resolution`, each by itself; native, areas of different pixel sizes train together as they are",
    )
    origin: Literal["source"] | tuple[FiniteFloat, FiniteFloat] = Field(
        "source",
        description="alignment of the grid, in the CRS of the stack: x and y of any pixel corner; source: the grid of "
        "the first source with the CRS and resolution of the stack, else corners at multiples of the resolution",
    )
    overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="pixels shared by areas of different roles, or by two training areas: error, or allowed"
    )
    slope: SlopeMethod = Field("zevenbergen_thorne", description="method of the slope's derivatives")
    curvature: CurvatureKind = Field("profile", description="kind of curvature")
    sar_unit: SarUnit = Field("db", description="unit of the SAR bands in the stack")
    lee_window: int = Field(0, ge=0, description="side of the Lee speckle filter in SAR pixels, odd; 0: no filter")
    inventory_rule: Literal["centre", "all_touched"] = Field(
        "centre", description="rasterisation of polygons: pixels with their centre inside, or all pixels touched"
    )

    def for_area(self, area: Area) -> StackOptions:
        """Return the options with the pixel size of an area of rasters."""
        return self if area.resolution is None else self.model_copy(update={"resolution": area.resolution})

    def resamples(self, pixel_size: float) -> bool:
        """Check if patches of a pixel size are resampled.

        Args:
            pixel_size: pixel size of the patches, in metres.
        """
        return self.pixel_sizes == "resample" and not math.isclose(pixel_size, self.resolution)

    @field_validator("origin", mode="before")
    @classmethod
    def _origin_is_a_corner(cls, origin: object) -> object:
        numbers = isinstance(origin, (list, tuple)) and all(type(one) in (int, float) for one in origin)
        if origin != "source" and not (numbers and len(origin) == 2):  # type: ignore[arg-type]
            raise ValueError(f"is {origin!r}; give source, or x and y of a pixel corner, such as [500000, 4000000]")
        return origin

    @model_validator(mode="after")
    def _lee_window_is_odd(self) -> Self:
        if self.lee_window and self.lee_window % 2 == 0:
            raise ValueError(f"lee_window is {self.lee_window}; it must be odd or 0")
        return self


class SplitOptions(Frozen):
    """Options of the split into blocks and patches."""

    block: int = Field(128, gt=0, description="side of a spatial block in pixels; each block is assigned to one part")
    validation: float = Field(0.2, gt=0, lt=1, description="share of blocks for validation")
    test: float = Field(0.2, gt=0, lt=1, description="share of blocks for the test")
    guard: int = Field(0, ge=0, description="buffer in pixels along the border of each block that is left unused")
    patch: int = Field(64, gt=0, description="side of a patch in pixels")
    stride: int = Field(32, gt=0, description="distance between training patches in pixels")
    empty_share: float = Field(0.3, ge=0, le=1, description="largest share of training patches without a landslide")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be less than 1, so that blocks are left for training")
        if self.patch > self.block - 2 * self.guard:
            raise ValueError(
                f"a patch of {self.patch} pixels does not fit into a block of {self.block} with a guard of {self.guard}"
            )
        return self


def _require_optical_bands(key: str, names: Iterable[str]) -> None:
    for name in names:
        if band_named(name).group is not Group.OPTICAL:
            raise ValueError(f"{key}: '{name}' is not an optical band; give the optical band another name")
