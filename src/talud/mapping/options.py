"""Options of a map: their single definition for command line, Python and service."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
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
    """Options that decide what a map shows; clients of the service may set these."""

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
    """Options of a map, checked.

    The descriptions of the fields are the help of the command line and of the service.

    Attributes:
        threshold: landslide where the probability is at least this. Default: the contract's.
        minimum_area: in m²; smaller landslides are left out of the polygons, not of the rasters.
        smooth: smooth the outlines of the landslides instead of following the edges of the pixels.
        geojson: write the landslides as GeoJSON too.
        tta: test-time augmentation: average the probability over the raster turned and mirrored in all eight ways, and
            write a raster of the disagreement. It takes eight times as long.
        tile: longest side of a tile's core in pixels. Default: what memory allows. The map is the same. A raster that
            consists of patches (tag TALUD_PATCH) is cut into these, each read alone, and takes neither tile nor halo.
        halo: pixels of context around a tile's core, rounded up to the model's alignment. Default, and most: the exact
            number. A smaller one saves arithmetic; its cost is measured when a model is exported
            (`Prediction.halo_error`).
        batch: number of tiles in one pass of the network; each takes as much memory again. Default: one on the CPU, as
            many as memory allows on CUDA. The map is the same.
        provider: device that a model named by its file or URI runs on.
        precision: precision of the variant to open of a model named by its file or URI.
        workers: a number of processes on this machine, or the address of a Dask scheduler; default: this process. The
            map is the same. A script must ask for processes under `if __name__ == "__main__":`, for each of them runs
            what stands outside of it.

    Raises:
        ParamsError: A value makes no sense.
    """

    smooth: Annotated[bool, Field(description="round the corners of the landslides' outlines; their numbers stay")] = (
        False
    )
    geojson: Annotated[bool, Field(description="write landslides.geojson too, in longitude and latitude")] = False
    tta: Annotated[
        bool,
        Field(
            description="average over the raster turned and mirrored in all eight ways, and write disagreement.tif; "
            "takes eight times as long"
        ),
    ] = False
    tile: Annotated[
        int | None,
        Field(ge=1, description="longest side of a tile in pixels; default: what 2 GB allow. The map is the same."),
    ] = None
    halo: Annotated[
        int | None,
        Field(
            ge=0,
            description="pixels of context around a tile, rounded up to the model's lattice; default, and most: the "
            "exact one. With fewer it is faster, and says how far probabilities may differ.",
        ),
    ] = None
    batch: Annotated[
        int | None,
        Field(
            ge=1,
            description="tiles in one pass of the network, each of which takes as much memory again; default: 1 on the "
            "CPU, what 2 GB allow on CUDA. The map is the same.",
        ),
    ] = None
    provider: Annotated[
        Provider, Field(description="what the network runs on; auto takes CUDA where it can be used")
    ] = "auto"
    precision: Annotated[
        Precision | None,
        Field(
            description="the model's variant of that precision, made by talud quantize; default: the file that is "
            "named, float32 in the registry"
        ),
    ] = None
    workers: Annotated[
        int | str | None,
        Field(description="let so many processes share the work and the cores; each may take 3 GB of memory"),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Turn pydantic's errors into one line."""
        try:
            return handler(values)
        except ValidationError as error:
            raise ParamsError(_error_message(error)) from None


def _error_message(error: ValidationError) -> str:
    """Return the first error of the options in words."""
    first = error.errors(include_url=False)[0]
    name, value = str(first["loc"][0]).replace("_", " "), first["input"]
    value = f"{value:g}" if isinstance(value, int | float) else value
    if name == "threshold":
        return f"the threshold is {value}; it must lie between 0 and 1"
    if name == "minimum area":
        return f"the minimum area is {value} m²; it must be 0 or more"
    if first["type"] == "greater_than_equal":
        return f"the {name} is {value}; it must be at least {first['ctx']['ge']}"
    if first["type"] == "extra_forbidden":
        return f"there is no option {first['loc'][0]!r} of a map; there are {', '.join(MapOptions.model_fields)}"
    return f"the option {first['loc'][0]} is {value!r}: {first['msg']}"


DEFAULT_OPTIONS = MapOptions()
