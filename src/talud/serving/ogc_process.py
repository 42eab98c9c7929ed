"""The process `map-landslides`: what it takes and gives, as OGC API – Processes describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl

from talud.mapping.options import ResultOptions
from talud.products.rasters import Products

PROCESS_ID = "map-landslides"
COG_MEDIA_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
OUTPUTS: dict[str, tuple[str, str, str]] = {  # name → attribute of `Products`, media type, what it is
    "probability": (
        "probability",
        COG_MEDIA_TYPE,
        "probability of a landslide, float32; NaN where nothing can be said",
    ),
    "landslides": ("classes", COG_MEDIA_TYPE, "0 background, 1 landslide, 255 not mapped"),
    "polygons": ("polygons", "application/geopackage+sqlite3", "landslides, and what is not mapped and why"),
    "summary": ("summary", "text/html", "one page to read or to mail"),
    "quicklook": ("quicklook", "image/png", "a picture for a first look"),
    "record": ("record", "application/json", "model, raster, numbers, landslide area with its interval"),
}


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RasterReference(_RequestModel):
    """A raster by reference."""

    href: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2000,
            description="a path below the data folder, uploads/ID, or an https:// or s3:// address on the allow-list",
            examples=["synthetic_liboriana.tif"],
        ),
    ]


class Inputs(ResultOptions):
    """Inputs of the process: a raster, a model, and the options of a map that clients may set."""

    raster: Annotated[RasterReference, Field(description="a stack: a GeoTIFF whose bands are named")]
    model: Annotated[
        str,
        Field(
            max_length=200,
            pattern=r"^[^\s:/@]+(@[^\s/@:]+|/\d+)?$",
            description="auto: the champion with most bands that the raster supports; or NAME (its champion), "
            "NAME@ALIAS, NAME/VERSION",
        ),
    ] = "auto"
    bands: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=60)], ...] | None,
        Field(min_length=1, max_length=60, description="only these bands may be read; default: all of the raster"),
    ] = None


class RequestedOutput(_RequestModel):
    """Requested form of an output: by reference, the only one."""

    transmissionMode: Literal["reference"] = "reference"  # noqa: N815 - the standard's name
    format: dict[str, Any] | None = None


class Subscriber(_RequestModel):
    """Addresses, on the allow-list, that are told how a job fares."""

    successUri: HttpUrl | None = None  # noqa: N815
    inProgressUri: HttpUrl | None = None  # noqa: N815
    failedUri: HttpUrl | None = None  # noqa: N815


class ExecuteRequest(_RequestModel):
    """A request for a map."""

    inputs: Inputs
    outputs: Annotated[dict[str, RequestedOutput] | None, Field(description="those that are wanted; default: all")] = (
        None
    )
    response: Literal["document", "raw"] = "document"
    subscriber: Subscriber | None = None


class Link(BaseModel):
    """A link."""

    href: str
    rel: str
    type: str | None = None
    title: str | None = None


def process_summary() -> dict[str, Any]:
    """The process in a list of processes, without links."""
    return {
        "id": PROCESS_ID,
        "title": "Map landslides",
        "description": "Maps the landslides of a satellite stack by a registered U-Net: the probability of each pixel, "
        "classes, polygons, and where nothing could be said. Made by a neural network; nobody has checked it in the "
        "field.",
        "keywords": ["landslides", "semantic segmentation", "U-Net"],
        "version": "1",
        "jobControlOptions": ["sync-execute", "async-execute", "dismiss"],
        "outputTransmission": ["reference"],
    }


def process_description() -> dict[str, Any]:
    """The whole description, without links."""
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
            "description": what,
            "schema": {"type": "string", "contentMediaType": media, "contentEncoding": "binary"},
        }
        for name, (_, media, what) in OUTPUTS.items()
    }
    return process_summary() | {"inputs": inputs, "outputs": outputs}


def output_files(products: Products) -> dict[str, str]:
    """Name of each output → name of its file."""
    return {name: getattr(products, attribute).name for name, (attribute, _, _) in OUTPUTS.items()}
