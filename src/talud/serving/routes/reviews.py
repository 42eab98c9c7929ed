"""Routes for finished maps: layers, polygons and reviews."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass
from pathlib import Path as File
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from rasterio.warp import transform_bounds

from talud.errors import SourceError
from talud.grid import Bounds, Grid
from talud.products.rasters import Products
from talud.serving import map_polygons, tiles
from talud.serving.database import utc_now
from talud.serving.map_polygons import Geometry, MappedLandslides
from talud.serving.problems import NO_SUCH_JOB, RESULT_NOT_READY, Problem, problem_responses
from talud.serving.rasters import WGS84, has_mask, read_header
from talud.serving.reviews import ReviewStore
from talud.serving.routes.rasters import TILE_RESPONSES, Column, Row, Zoom, tile_response
from talud.serving.service import CurrentService, ReadKey, RunKey
from talud.serving.tables import Job, Review, Verdict

router = APIRouter(prefix="/jobs/{job_id}", tags=["review"])
GEOJSON = "application/geo+json"
GEOPACKAGE = "application/geopackage+sqlite3"
WEB_MERCATOR_RADIUS = 6_378_137  # m
_GEOPACKAGE: dict[int | str, dict[str, Any]] = {200: {"content": {GEOPACKAGE: {}}, "description": "GeoPackage"}}
ReviewerName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")
]


def _geojson(status: int, model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a GeoJSON response."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {status: {"content": {GEOJSON: {"schema": schema}}, "model": model}}


class MapInfo(BaseModel):
    """Properties of a finished map."""

    bounds: Annotated[Bounds, Field(description="west, south, east, north in WGS84")]
    layers: Annotated[tuple[str, ...], Field(description="layers of the raster; empty if the raster was deleted")]
    threshold: Annotated[float, Field(description="lowest probability of a landslide pixel")]
    model: Annotated[str, Field(description="name of the registered model")]
    version: Annotated[str, Field(description="version of the model")]
    raster: Annotated[str, Field(description="href of the raster in the request")]
    name: Annotated[str, Field(description="file name of the raster")]
    resolution: Annotated[float, Field(description="pixel size in metres, from south to north")]
    synthetic: Annotated[bool, Field(description="whether the raster is synthetic, made by a program")]
    inventory: Annotated[bool, Field(description="whether a mask of known landslides is stored next to the raster")]


class PolygonProperties(BaseModel):
    """Properties of a landslide.

    Drawn landslides have no measured properties.
    """

    area_m2: Annotated[float, Field(description="area in m²")]
    mean_probability: Annotated[float | None, Field(description="mean inside the outline of the model")]
    maximum_probability: Annotated[float | None, Field(description="maximum inside the outline of the model")]
    mean_slope_degrees: Annotated[float | None, Field(description="missing if the raster has no slope band")] = None
    origin: Annotated[
        Literal["model", "drawn"], Field(description="whether the model or a reviewer drew the landslide")
    ]
    verdict: Annotated[Verdict, Field(description="verdict of the reviewer")]
    redrawn: Annotated[bool, Field(description="whether a reviewer replaced the model's outline")]
    reviewed_by: Annotated[str | None, Field(description="name of the reviewer")]
    reviewed_at: Annotated[str | None, Field(description="time of the review")]


class PolygonFeature(BaseModel):
    """Landslide in WGS84."""

    type: Literal["Feature"]
    id: Annotated[str, Field(description="id of the landslide")]
    geometry: Geometry
    properties: PolygonProperties


class ReviewCounts(BaseModel):
    """Progress of a review."""

    unreviewed: Annotated[int, Field(description="mapped landslides without a verdict")]
    accepted: Annotated[int, Field(description="accepted mapped landslides")]
    rejected: Annotated[int, Field(description="rejected mapped landslides")]
    drawn: Annotated[int, Field(description="landslides drawn by reviewers")]
    accepted_area_m2: Annotated[float, Field(description="area of the accepted and drawn landslides")]


class PolygonCollection(BaseModel):
    """Landslides of a map in WGS84."""

    type: Literal["FeatureCollection"]
    features: Annotated[list[PolygonFeature], Field(description="mapped landslides, then drawn ones")]
    counts: Annotated[ReviewCounts, Field(description="progress of the review")]


class NotMappedProperties(BaseModel):
    """Reason and area of an unmapped part."""

    reason: Annotated[str, Field(description="reason why the part is not mapped")]
    area_m2: Annotated[float, Field(description="area in m²")]


class NotMappedFeature(BaseModel):
    """Unmapped part of a raster in WGS84."""

    type: Literal["Feature"]
    id: str
    geometry: Geometry
    properties: NotMappedProperties


class NotMappedCollection(BaseModel):
    """Unmapped parts of a raster in WGS84."""

    type: Literal["FeatureCollection"]
    features: Annotated[list[NotMappedFeature], Field(description="unmapped parts")]


class ReviewRequest(BaseModel):
    """Review of a landslide."""

    model_config = ConfigDict(extra="forbid")

    verdict: Annotated[Verdict, Field(description="verdict of the reviewer")]
    geometry: Annotated[
        Geometry | None, Field(description="new outline in WGS84; default: keep the current outline")
    ] = None
    reviewer: Annotated[ReviewerName, Field(description="name of the reviewer")]


class DrawnLandslide(BaseModel):
    """Landslide that the model missed."""

    model_config = ConfigDict(extra="forbid")

    geometry: Annotated[Geometry, Field(description="outline in WGS84")]
    reviewer: Annotated[ReviewerName, Field(description="name of the reviewer")]


class HistoryEntry(BaseModel):
    """Change of a review."""

    verdict: Annotated[Verdict | Literal["withdrawn"], Field(description="new verdict, or withdrawn")]
    reviewed_by: Annotated[str, Field(description="name of the reviewer; for a withdrawal, name of the API key")]
    reviewed_at: Annotated[str, Field(description="time of the change")]
    key_id: Annotated[str | None, Field(description="id of the API key; null for reviews from before keys had ids")]
    area_m2: Annotated[float | None, Field(description="area of the drawn outline; null without one")]


class ReviewHistory(BaseModel):
    """History of a landslide's review."""

    changes: Annotated[list[HistoryEntry], Field(description="changes of the review, oldest first")]


@dataclass(frozen=True)
class _FinishedMap:
    """Finished job, its files, and its raster if it still exists."""

    job: Job
    products: Products
    raster: File | None


def _find_map(
    job_id: Annotated[str, Path(description="id of a successful job")], service: CurrentService
) -> _FinishedMap:
    job = service.jobs.get(job_id)
    if job is None:
        raise Problem(404, f"there is no job {job_id}", NO_SUCH_JOB)
    if job.status != "successful":
        raise Problem(404, f"the job is {job.status}; only a successful job has a map", RESULT_NOT_READY)
    products = service.job_folders.products(job.id)
    if not products.record.is_file():
        raise Problem(404, "the map was deleted; request it again", RESULT_NOT_READY)
    service.job_folders.mark_viewed(job.id)
    try:
        raster = service.resolver.raster_path(job)
    except SourceError:
        raster = None
    return _FinishedMap(job, products, raster)


FinishedMap = Annotated[_FinishedMap, Depends(_find_map)]
PolygonId = Annotated[str, Path(max_length=36, description="id of a mapped or drawn landslide")]


@router.get("/map", responses=problem_responses(401, 403, 404))
def get_map(service: CurrentService, _: ReadKey, finished: FinishedMap) -> MapInfo:
    """Return the bounds, layers, model and raster of a map."""
    grid = map_polygons.read_grid(finished.products.probability)
    record = json.loads(finished.products.record.read_text(encoding="utf-8"))
    raster = finished.raster
    return MapInfo(
        bounds=transform_bounds(grid.crs, WGS84, *grid.bounds, densify_pts=21),
        layers=read_header(raster).layers if raster else (),
        threshold=record["threshold"],
        model=finished.job.request.model,
        version=finished.job.request.version,
        raster=finished.job.request.raster_without_secrets,
        name=record["raster"],
        resolution=pixel_metres(grid),
        synthetic=record["stack"].get("TALUD_SYNTHETIC") == "yes",
        inventory=raster is not None and has_mask(raster, service.settings),
    )


@router.get(
    "/tiles/{layer}/{z}/{x}/{y}.png",
    responses=TILE_RESPONSES | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def get_map_tile(
    layer: tiles.Layer, z: Zoom, x: Column, y: Row, service: CurrentService, _: ReadKey, finished: FinishedMap
) -> Response:
    """Return a map tile of a layer or the probability.

    The grey value of the probability is round(probability × 254) + 1; unmapped pixels are transparent. At low zoom
    levels, the values come from overviews, which are averages.
    """
    shown = finished.products.probability if layer == "probability" else finished.raster
    if shown is None:
        raise Problem(422, f"{finished.job.request.raster_without_secrets}: was deleted; its map still exists")
    return tile_response(shown, service.settings, layer, z, x, y)


@router.get(
    "/polygons",
    responses=_geojson(200, PolygonCollection) | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def list_landslides(service: CurrentService, _: ReadKey, finished: FinishedMap) -> Response:
    """Return the mapped and drawn landslides with their reviews."""
    found, reviews = _read_reviewed(service, finished)
    text = map_polygons.feature_collection(
        map_polygons.geojson_features(found, reviews), counts=map_polygons.review_counts(found, reviews)
    )
    return Response(text, media_type=GEOJSON)


@router.get(
    "/not-mapped",
    responses=_geojson(200, NotMappedCollection) | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def list_unmapped_parts(_: ReadKey, finished: FinishedMap) -> Response:
    """Return the unmapped parts of the raster and their reasons."""
    return Response(map_polygons.read_not_mapped(finished.products), media_type=GEOJSON)


@router.put(
    "/polygons/{polygon}",
    responses=_geojson(200, PolygonFeature) | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def review_landslide(
    polygon: PolygonId, body: ReviewRequest, service: CurrentService, key: RunKey, finished: FinishedMap
) -> Response:
    """Accept or reject a landslide, or replace its outline.

    Only the key that wrote a review, or a key with the scope admin, can change it.
    """
    store, found = ReviewStore(service.database), map_polygons.read_landslides(finished.products)
    review = _new_review(finished.job, polygon, body.verdict, body.reviewer)
    if body.geometry:
        review.geometry = map_polygons.parse_outline(body.geometry, found.grid)
        review.area = map_polygons.outline_area(review.geometry, found.grid)
    if polygon in found.outlines:
        store.save(review, key)
    elif body.verdict != "accepted":
        raise Problem(422, "a drawn landslide is always accepted; use DELETE to remove it")
    elif not store.change(review, key):
        raise _unknown_landslide(polygon)
    return _landslide_response(store, finished, found, polygon)


@router.post(
    "/polygons",
    status_code=201,
    responses=_geojson(201, PolygonFeature) | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def draw_landslide(body: DrawnLandslide, service: CurrentService, key: RunKey, finished: FinishedMap) -> Response:
    """Add a landslide that the model missed."""
    store, found = ReviewStore(service.database), map_polygons.read_landslides(finished.products)
    review = _new_review(finished.job, str(uuid.uuid4()), "accepted", body.reviewer)
    review.geometry = map_polygons.parse_outline(body.geometry, found.grid)
    review.area = map_polygons.outline_area(review.geometry, found.grid)
    store.save(review, key)
    answer = _landslide_response(store, finished, found, review.polygon)
    answer.status_code = 201
    answer.headers["Location"] = f"/jobs/{finished.job.id}/polygons/{review.polygon}"
    return answer


@router.delete("/polygons/{polygon}", status_code=204, responses=problem_responses(401, 403, 404))
def withdraw_review(polygon: PolygonId, service: CurrentService, key: RunKey, finished: FinishedMap) -> None:
    """Withdraw a review; a drawn landslide is deleted."""
    gone = ReviewStore(service.database).withdraw(finished.job.id, polygon, key)
    if not gone and polygon not in map_polygons.read_landslides(finished.products).outlines:
        raise _unknown_landslide(polygon)


@router.get("/polygons/{polygon}/history", responses=problem_responses(401, 403, 404))
def get_review_history(polygon: PolygonId, service: CurrentService, _: ReadKey, finished: FinishedMap) -> ReviewHistory:
    """Return the history of a landslide's review, oldest first.

    The history is deleted with the job.
    """
    changes = ReviewStore(service.database).history(finished.job.id, polygon)
    if not changes and polygon not in map_polygons.read_landslides(finished.products).outlines:
        raise _unknown_landslide(polygon)
    return ReviewHistory(
        changes=[
            HistoryEntry(
                verdict=one.verdict,
                reviewed_by=one.reviewer,
                reviewed_at=one.reviewed.isoformat(),
                key_id=one.key_id,
                area_m2=one.area,
            )
            for one in changes
        ]
    )


@router.get(
    "/review.gpkg",
    responses=_GEOPACKAGE | problem_responses(401, 403, 404, 422),
    response_class=Response,
)
def export_review(service: CurrentService, _: ReadKey, finished: FinishedMap) -> Response:
    """Return the accepted landslides for `talud inventory import`."""
    headers = {"Content-Disposition": 'attachment; filename="review.gpkg"'}
    return Response(
        map_polygons.to_geopackage(*_read_reviewed(service, finished)), media_type=GEOPACKAGE, headers=headers
    )


def pixel_metres(grid: Grid) -> float:
    """Return the pixel size in metres.

    The size of degrees is measured along a meridian.
    """
    return (
        math.radians(grid.resolution) * WEB_MERCATOR_RADIUS
        if grid.crs.is_geographic
        else grid.resolution * grid.metres_per_unit
    )


def _read_reviewed(service: CurrentService, finished: _FinishedMap) -> tuple[MappedLandslides, dict[str, Review]]:
    return map_polygons.read_landslides(finished.products), ReviewStore(service.database).all(finished.job.id)


def _new_review(job: Job, polygon: str, verdict: Verdict, reviewer: str) -> Review:
    return Review(job=job.id, polygon=polygon, verdict=verdict, reviewer=reviewer, reviewed=utc_now())


def _landslide_response(store: ReviewStore, finished: _FinishedMap, found: MappedLandslides, polygon: str) -> Response:
    review = store.get(finished.job.id, polygon)
    if review is None and polygon not in found.outlines:
        raise _unknown_landslide(polygon)  # deleted by another client in the meantime
    (text,) = map_polygons.geojson_features(found, {polygon: review} if review else {}, [polygon])
    return Response(text, media_type=GEOJSON)


def _unknown_landslide(polygon: str) -> Problem:
    return Problem(404, f"the map has no landslide {polygon}")
