"""Areas, and the options by which their sources become stacks and patches."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal, Self

from annotated_types import Len
from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from talud.bands import Group, band_named
from talud.errors import ParamsError
from talud.params.reading import Frozen, validation_message

SlopeMethod = Literal["zevenbergen_thorne", "horn"]
CurvatureKind = Literal["profile", "contour", "total"]
SarUnit = Literal["amplitude", "power", "db"]
Source = Literal["optical", "dtm", "sar_pre", "sar_post", "inventory", "boundary", "cloud", "sar_mask"]

# Keys of an area about its rasters and polygons.
_RASTER_KEYS = (
    "files",
    "optical_bands",
    "optical_scale",
    "optical_offset",
    "sar_bands",
    "sar_unit",
    "crs",
    "bounds",
    "inventory_filter",
)


class Acquired(Frozen):
    """The dates on which an area's images were taken."""

    optical: date | None = None
    sar_pre: date | None = None
    sar_post: date | None = None


class PatchData(Frozen):
    """Square images and their masks, an area's source in place of rasters."""

    images: str = Field("images", description="a folder below the area's, or a pattern such as img/image_*.h5")
    masks: str = Field("masks", description="likewise; image_12.h5 belongs to mask_12.h5, 12.png to 12.png")
    index: str | None = Field(
        None, description="a table (CSV) whose first column names the patches that count; default: all count"
    )
    where: str | None = Field(None, description="which of its rows count, as an OGR SQL where clause")
    bands: Annotated[dict[str, Annotated[int, Field(ge=1)]], Len(1)] = Field(
        {"red": 1, "green": 2, "blue": 3}, description="band name → number of the channel in an image"
    )
    pixel_size: float = Field(10.0, gt=0, allow_inf_nan=False, description="side of a pixel in metres")

    @model_validator(mode="after")
    def _clause_has_its_table(self) -> Self:
        if self.where and not self.index:
            raise ValueError("where chooses rows of the table that index names, and there is none")
        return self

    @model_validator(mode="after")
    def _bands_are_optical(self) -> Self:
        _require_optical_bands("bands", self.bands)
        return self


class Area(Frozen):
    """A basin with its sources."""

    role: Literal["training", "gate", "transfer"] = Field(
        description="training; gate: labelled, decides promotion; transfer: labelled or not, never decides"
    )
    folder: str = Field(description="where its sources lie: optical.*, dtm.*, sar_pre.*, inventory.* and so on")
    files: dict[Source, str] = Field(
        {}, description="a source's own file, relative to the folder, where its name differs"
    )
    optical_bands: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {"red": 1, "green": 2, "blue": 3}, description="band name → band number in the optical source"
    )
    optical_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="from the image's numbers to reflectance; default: the file's",
    )
    optical_offset: float | None = Field(
        None, allow_inf_nan=False, description="added after that; for Sentinel-2 since January 2022 -0.1"
    )
    sar_bands: dict[Literal["vv", "vh"], Annotated[int, Field(ge=1)]] = Field(
        {"vv": 1}, description="polarisation → band number in sar_pre and sar_post"
    )
    sar_unit: SarUnit | None = Field(None, description="of the SAR sources; default: what their tags say")
    crs: str | None = Field(None, description="of the stack; default: that of the first source present")
    bounds: tuple[float, float, float, float] | None = Field(
        None,
        description="left, bottom, right, top in the CRS of the stack, which holds the pixels whose centres lie in it; "
        "default: the first source's extent",
    )
    inventory_filter: str | None = Field(None, description="which features count, as an OGR SQL where clause")
    acquired: Acquired = Acquired()
    event: date | None = Field(None, description="when the landslides happened")
    patches: PatchData | None = Field(None, description="in place of rasters: images cut into squares, and their masks")

    @classmethod
    def create(cls, **fields: object) -> Self:
        """Return an area from values given by hand.

        Raises:
            ParamsError: a value is not usable.
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
            said = [name for name in _RASTER_KEYS if getattr(self, name) != fields[name].get_default()]
            if said:
                raise ValueError(f"patches stand in place of rasters, to which {', '.join(said)} belong")
            if self.acquired.sar_pre or self.acquired.sar_post:
                raise ValueError("acquired: patches have no SAR scenes")
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
    """Options by which the sources of an area become its stack."""

    resolution: float = Field(12.5, gt=0, description="side of a pixel in metres")
    origin: Literal["source"] | tuple[FiniteFloat, FiniteFloat] = Field(
        "source",
        description="of the grid, in the CRS of the stack: x and y of any pixel's corner; source: the pixels of the "
        "first source that has the stack's CRS and resolution, else corners on multiples of the resolution",
    )
    overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="of areas with different roles, or of two training areas: pixels that lie in both"
    )
    slope: SlopeMethod = "zevenbergen_thorne"
    curvature: CurvatureKind = "profile"
    sar_unit: SarUnit = Field("db", description="the unit of the SAR bands in the stack")
    lee_window: int = Field(0, ge=0, description="side of the Lee speckle filter in SAR pixels, odd; 0 leaves speckle")
    inventory_rule: Literal["centre", "all_touched"] = Field(
        "centre", description="which pixels a polygon marks: those whose centre it holds, or all it touches"
    )

    @field_validator("origin", mode="before")
    @classmethod
    def _origin_is_a_corner(cls, origin: object) -> object:
        numbers = isinstance(origin, (list, tuple)) and all(type(one) in (int, float) for one in origin)
        if origin != "source" and not (numbers and len(origin) == 2):  # type: ignore[arg-type]
            raise ValueError(f"is {origin!r}; give source, or x and y of a pixel's corner, such as [500000, 4000000]")
        return origin

    @model_validator(mode="after")
    def _lee_window_is_odd(self) -> Self:
        if self.lee_window and self.lee_window % 2 == 0:
            raise ValueError(f"lee_window is {self.lee_window}, it must be odd or 0")
        return self


class SplitOptions(Frozen):
    """Options by which training areas are split into blocks, and blocks into patches."""

    block: int = Field(128, gt=0, description="side of a spatial block in pixels; a block goes to one part whole")
    validation: float = Field(0.2, gt=0, lt=1, description="share of the blocks")
    test: float = Field(0.2, gt=0, lt=1, description="share of the blocks")
    guard: int = Field(0, ge=0, description="pixels left out along each block's border")
    patch: int = Field(64, gt=0, description="side of a patch in pixels")
    stride: int = Field(32, gt=0, description="from one training patch to the next, in pixels")
    empty_share: float = Field(0.3, ge=0, le=1, description="largest share of training patches without a landslide")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave no block for training")
        if self.patch > self.block - 2 * self.guard:
            raise ValueError(f"a patch of {self.patch} pixels does not fit a block of {self.block} with its guard")
        return self


def _require_optical_bands(key: str, names: Iterable[str]) -> None:
    for name in names:
        if band_named(name).group is not Group.OPTICAL:
            raise ValueError(f"{key}: '{name}' is a band of another source; give the optical band its own name")
