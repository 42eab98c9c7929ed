"""Description of the process `map-landslides` for OGC API – Processes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl

from talud.mapping.options import ResultOptions
from talud.products.rasters import Products

PROCESS_ID = "map-landslides"
COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
OUTPUTS: dict[str, tuple[str, str, str]] = {  # name → attribute of `Products`, media type, description
    "probability": (
        "probability",
        COG_MEDIA_TYPE,
        "probability of a landslide, float32; NaN where not mapped",
    ),
    "landslides": ("classes", COG_MEDIA_TYPE, "0 background, 1 landslide, 255 not mapped"),
    "polygons": ("polygons", "application/geopackage+sqlite3", "landslides, and unmapped parts with their reasons"),
    "summary": ("summary", "text/html", "one-page summary of the map"),
    "quicklook": ("quicklook", "image/png", "preview image"),
    "record": (
        "record",
        "application/json",
        "model, raster, statistics, and landslide area with its confidence interval",
    ),
}


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RasterReference(_RequestModel):
    """Reference to a raster."""

    href: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="path below the data folder, uploads/ID, or an https:// or s3:// URL on the allow-list",
            examples=["synthetic_liboriana.tif"],
        ),
    ]


class Inputs(ResultOptions):
    """Inputs of the process: raster, model, and options of the map."""

    raster: Annotated[RasterReference, Field(description="stack to map: a GeoTIFF with band names")]
    model: Annotated[
        str,
        Field(
            max_length=200,
            pattern=r"^[^\s:/@]+(@[^\s/@:]+|/\d+)?$",
            description="auto: the champion that uses the most bands of the raster; or NAME (its champion), "
            "NAME@ALIAS, NAME/VERSION",
        ),
    ] = "auto"
    bands: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=60)], ...] | None,
        Field(
            min_length=1,
            max_length=60,
            description="names of the bands that may be used; default: all bands of the raster",
        ),
    ] = None


class RequestedOutput(_RequestModel):
    """Requested form of an output; outputs are always links."""

    transmissionMode: Annotated[Literal["reference"], Field(description="outputs are always links")] = "reference"  # noqa: N815 - the standard's name
    format: Annotated[dict[str, Any] | None, Field(description="ignored: each output has one format")] = None


class Subscriber(_RequestModel):
    """Callback URLs for changes of a job's status, on the allow-list."""

    successUri: Annotated[HttpUrl | None, Field(description="URL to call when the job has succeeded")] = None  # noqa: N815
    inProgressUri: Annotated[HttpUrl | None, Field(description="URL to call when the job has started")] = None  # noqa: N815
    failedUri: Annotated[HttpUrl | None, Field(description="URL to call when the job has failed")] = None  # noqa: N815


class ExecuteRequest(_RequestModel):
    """Request for a map."""

    inputs: Inputs
    outputs: Annotated[dict[str, RequestedOutput] | None, Field(description="outputs to return; default: all")] = None
    response: Annotated[Literal["document", "raw"], Field(description="ignored: the response is always a document")] = (
        "document"
    )
    subscriber: Subscriber | None = None


class Link(BaseModel):
    """Link to a resource."""

    href: Annotated[str, Field(description="URL of the resource")]
    rel: Annotated[str, Field(description="relation to the resource")]
    type: Annotated[str | None, Field(description="media type of the resource")] = None
    title: Annotated[str | None, Field(description="title of the resource")] = None


def process_summary() -> dict[str, Any]:
    """Return the summary of the process, without links."""
    return {
        "id": PROCESS_ID,
        "title": "Map landslides",
        "description": "Maps landslides in a satellite stack with a registered U-Net. Returns the probability of each "
        "pixel, classes, polygons, and the unmapped parts. The map is made by a neural network and is not validated in "
        "the field.",
        "keywords": ["landslides", "semantic segmentation", "U-Net"],
        "version": "1",
        "jobControlOptions": ["sync-execute", "async-execute", "dismiss"],
        "outputTransmission": ["reference"],
    }


def process_description() -> dict[str, Any]:
    """Return the full description of the process, without links."""
    schema = Inputs.model_json_schema(ref_template="{model}")
    required = schema.get("required", ())
    reference = RasterReference.model_json_schema()
    inputs = {
        name: {
            "title": name.replace("_", " ").capitalize(),
            "description": field.pop("description"),
            "minOccurs": int(name in required),
            "maxOccurs": 1,
            "schema": reference if name == "raster" else field,
        }
        for name, field in schema["properties"].items()
    }
    outputs = {
        name: {
            "title": name.capitalize(),
            "description": text,
            "schema": {"type": "string", "contentMediaType": media, "contentEncoding": "binary"},
        }
        for name, (_, media, text) in OUTPUTS.items()
    }
    return process_summary() | {"inputs": inputs, "outputs": outputs}


def output_files(products: Products) -> dict[str, str]:
    """Return the file name of each output, by the output's name."""
    return {name: getattr(products, attribute).name for name, (attribute, _, _) in OUTPUTS.items()}
