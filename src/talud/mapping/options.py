"""Options of a map.

They are defined once for command line, Python and service.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FiniteFloat,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from talud.contract import Precision
from talud.errors import ParamsError

Provider = Literal["auto", "cpu", "cuda"]


class ResultOptions(BaseModel):
    """Options that decide what a map shows.

    Clients of the service may set them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Annotated[
        FiniteFloat | None,
        Field(gt=0, lt=1, description="landslide where the probability is at least this; default: the model's own"),
    ] = None
    minimum_area: Annotated[
        FiniteFloat,
        Field(ge=0, description="leave landslides of less than this many square metres out of the polygons"),
    ] = 0.0


class MapOptions(ResultOptions):
    """Validated options of a map.

    The descriptions of the fields are the help of the command line and of the service.

    Attributes:
        threshold: probability from which a pixel is a landslide. Default: the contract's.
        minimum_area: area in m² below which landslides are left out of the polygons, but not of the rasters.
        smooth: whether to smooth the outlines of the landslides instead of following the edges of the pixels.
        geojson: whether to write the landslides as GeoJSON too.
        tta: whether to use test-time augmentation: average the probability over the eight flips and rotations of the
            raster, and write a raster of their disagreement. It takes eight times as long.
        tile: longest side of a tile's core in pixels. Default: as memory allows. The map does not depend on it. A
            raster that consists of patches (tag TALUD_PATCH) is cut into these, and accepts neither tile nor halo.
        halo: pixels of context around a tile's core, rounded up to the model's alignment. Default and maximum: the
            exact number. A smaller one saves arithmetic; its error is measured when a model is exported
            (`Prediction.halo_error`).
        batch: number of tiles in one pass of the network; memory grows in proportion. Default: one on the CPU, as many
            as memory allows on CUDA. The map does not depend on it.
        memory: memory in bytes that the network may take in each process, or a text such as "4GB"; it decides the tiles
            and the batch. Default: 2 GB, or half of the machine's memory if that is less.
        provider: device for a model that is named by its file or URI.
        precision: precision of the variant to open, for a model that is named by its file or URI.
        workers: number of processes on this machine, or address of a Dask scheduler; default: this process. The map
            does not depend on it. A script must start processes under `if __name__ == "__main__":`, since each of them
            imports the script.

    Raises:
        ParamsError: A value is not valid.
    """

    smooth: Annotated[
        bool, Field(description="smooth the outlines of the landslides; their statistics do not change")
    ] = False
    geojson: Annotated[bool, Field(description="also write landslides.geojson, in longitude and latitude")] = False
    tta: Annotated[
        bool,
        Field(
            description="average over the eight flips and rotations of the raster, and write disagreement.tif; takes "
            "eight times as long"
        ),
    ] = False
    tile: Annotated[
        int | None,
        Field(
            ge=1,
            description="longest side of a tile in pixels; default: the tiles with the least arithmetic that fit into "
            "the memory. The map does not change.",
        ),
    ] = None
    halo: Annotated[
        int | None,
        Field(
            ge=0,
            description="pixels of context around a tile, rounded up to the model's alignment; default and maximum: "
            "the exact halo. A smaller halo is faster; the largest known error is reported.",
        ),
    ] = None
    batch: Annotated[
        int | None,
        Field(
            ge=1,
            description="tiles in one pass of the network; memory grows in proportion. Default: 1 on the CPU, what "
            "fits into the memory on CUDA. The map does not change.",
        ),
    ] = None
    memory: Annotated[
        ByteSize | None,
        Field(
            gt=0,
            description="memory that the network may take in each process, such as 4GB or 500MB; default: 2 GB, or "
            "half of the machine's if that is less. The map does not change.",
        ),
    ] = None
    provider: Annotated[Provider, Field(description="device for the network; auto is CUDA if usable, else the CPU")] = (
        "auto"
    )
    precision: Annotated[
        Precision | None,
        Field(
            description="precision of the model's variant, made by talud quantize; default: that of the named file, "
            "float32 for a registered model"
        ),
    ] = None
    workers: Annotated[
        int | str | None,
        Field(description="number of processes that share the work; each needs the memory of a map, and 1 GB more"),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn a validation error of pydantic into one line."""
        try:
            return handler(values)
        except ValidationError as error:
            raise ParamsError(_error_message(error)) from None


def _error_message(error: ValidationError) -> str:
    """Return a message on the first error."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]).replace("_", " "), first["input"]
    value = f"{value:g}" if isinstance(value, int | float) else value
    if name == "threshold":
        return f"the threshold is {value}; it must be between 0 and 1"
    if name == "minimum area":
        return f"the minimum area is {value} m²; it must be 0 or more"
    if name == "memory":
        return f"the memory is {value}; it must be a size such as 4GB or 500MB"
    if first["type"] == "greater_than_equal":
        return f"the {name} is {value}; it must be at least {first['ctx']['ge']}"
    if first["type"] == "extra_forbidden":
        return f"unknown map option {first['loc'][0]!r}; use one of {', '.join(MapOptions.model_fields)}"
    return f"the option {first['loc'][0]} is {value!r}: {first['msg']}"


DEFAULT_OPTIONS = MapOptions()
