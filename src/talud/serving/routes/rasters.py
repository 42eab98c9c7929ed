"""Routes for rasters: list, uploads and tiles."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path as File
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from talud.contract import Contract
from talud.errors import RegistryError
from talud.serving import raster_paths, tiles
from talud.serving.monitoring import log
from talud.serving.problems import Problem, problem_responses
from talud.serving.rasters import Raster, find_rasters
from talud.serving.service import CurrentService, ReadKey, RunKey, Service
from talud.serving.settings import Settings
from talud.serving.storage import Upload
from talud.serving.tables import UNFINISHED

router = APIRouter(tags=["rasters"])
_WRITE_BYTES = 2**20  # of an upload in one write
_MAX_ZOOM = 30

Zoom = Annotated[int, Path(ge=0, le=_MAX_ZOOM, description="zoom level; 0 shows the world in one tile")]
Column = Annotated[int, Path(ge=0, lt=2**_MAX_ZOOM, description="column of the tile, counted from the west")]
Row = Annotated[int, Path(ge=0, lt=2**_MAX_ZOOM, description="row of the tile, counted from the north")]
TILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "PNG of 256 × 256 pixels with transparency"},
    204: {"description": "the tile is empty"},
}


class RasterList(BaseModel):
    """Rasters in the data folder."""

    rasters: Annotated[tuple[Raster, ...], Field(description="rasters in the data folder")]
    unreadable: Annotated[int, Field(description="number of further GeoTIFFs that cannot be read")]


@router.get("/rasters", responses=problem_responses(401, 403))
def list_rasters(service: CurrentService, _: ReadKey) -> RasterList:
    """Return the rasters in the data folder, without masks and hidden files."""
    found, unreadable = find_rasters(service.settings, _champion_contracts(service))
    return RasterList(rasters=found, unreadable=unreadable)


@router.put(
    "/uploads/{filename}",
    status_code=201,
    responses=problem_responses(401, 403, 408, 413, 422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("application/octet-stream", "image/tiff")
            },
        }
    },
)
async def upload_raster(
    filename: Annotated[
        str, Path(max_length=1000, description="file name; other characters than letters, digits and - are replaced")
    ],
    request: Request,
    service: CurrentService,
    key: RunKey,
) -> Raster:
    """Upload a GeoTIFF.

    The body is the file. Requests for maps refer to the raster by the returned href.
    """
    parts = _body_parts(request, service.settings.upload_bytes)
    arriving = await run_in_threadpool(Upload.create, service.settings, filename)
    stated, received, claimed = request.headers.get("Content-Length", ""), 0, 0
    try:
        async for part in parts:
            received += len(part)
            if received > claimed:
                claimed = max(int(stated) if stated.isdecimal() else 0, received)
                await run_in_threadpool(service.uploads.reserve, arriving.id, key, claimed)
            await run_in_threadpool(arriving.write, part)
        raster = await run_in_threadpool(arriving.finish, service.settings, _champion_contracts(service))
        await run_in_threadpool(service.uploads.reserve, arriving.id, key, received)
    except BaseException as error:
        arriving.discard()
        service.uploads.release([arriving.id])
        if isinstance(error, ClientDisconnect):
            raise Problem(400, "the upload was interrupted") from error
        raise
    log.info("uploaded: %s, %s, %s bytes", raster.href, raster.name, f"{received:,}", extra={"key": key.name})
    return raster


@router.delete("/uploads/{upload_id}", status_code=204, responses=problem_responses(401, 403, 404, 409))
def delete_upload(
    upload_id: Annotated[str, Path(pattern=raster_paths.UPLOAD_ID_PATTERN, description="id of the upload")],
    service: CurrentService,
    key: RunKey,
) -> None:
    """Delete an upload; its maps are kept.

    A key may delete its own uploads, and a key with the scope admin any upload.
    """
    folder = service.settings.results / raster_paths.UPLOADS_FOLDER / upload_id
    if not folder.is_dir():
        raise Problem(404, f"there is no upload {upload_id}")
    if service.uploads.owner(upload_id) != key.id and not key.allows("admin"):
        raise Problem(403, f"the upload belongs to another key than {key.name}; deleting it requires the scope admin")
    href = f"{raster_paths.UPLOADS_FOLDER}/{upload_id}"
    if any(job.request.raster == href for job in service.jobs.list(UNFINISHED, limit=10**6)):
        raise Problem(409, "an unfinished job uses this upload; dismiss the job, or wait until it has ended")
    shutil.rmtree(folder, ignore_errors=True)
    service.uploads.release([upload_id])
    log.info("deleted: %s", href, extra={"key": key.name})


async def _body_parts(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield the body of a request in parts, and check its size."""
    too_large = Problem(413, f"the file is too large; this service accepts at most {most:,} bytes")
    stated = request.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) > most:
        raise too_large
    received, waiting = 0, bytearray()
    async for chunk in request.stream():
        received += len(chunk)
        if received > most:
            raise too_large
        waiting += chunk
        if len(waiting) >= _WRITE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


@router.get(
    "/rasters/tiles/{layer}/{z}/{x}/{y}.png",
    responses=TILE_RESPONSES | problem_responses(401, 403, 422),
    response_class=Response,
)
def get_raster_tile(
    layer: Literal["optical", "slope", "elevation", "sar_before", "sar_after", "inventory"],
    z: Zoom,
    x: Column,
    y: Row,
    raster: Annotated[str, Query(max_length=2000, description="href of the raster")],
    service: CurrentService,
    _: ReadKey,
) -> Response:
    """Return a map tile of a raster.

    Gaps are transparent. In the inventory, landslides have the value 255 and background 0.
    """
    return tile_response(raster_paths.resolve_raster(raster, service.settings), service.settings, layer, z, x, y)


def tile_response(path: File, settings: Settings, layer: tiles.Layer, z: int, x: int, y: int) -> Response:
    """Return a tile of a raster or of its mask."""
    if max(x, y) >= 2**z:
        raise Problem(422, f"there is no tile {x}, {y} at zoom {z}, which has {2**z} × {2**z} tiles")
    source = raster_paths.find_mask(path, settings) if layer == "inventory" else path
    found = tiles.render_tile(source, layer, z, x, y) if source else None
    headers = {"Cache-Control": "private, max-age=300"}
    if found is None:
        return Response(status_code=204, headers=headers)
    return Response(found, media_type="image/png", headers=headers)


def _champion_contracts(service: Service) -> Sequence[tuple[str, Contract]]:
    """Return the champions' contracts, or none in an outage.

    The list is empty if the registry cannot be reached.
    """
    try:
        return [(champion.name, champion.contract) for champion in service.models.champions()]
    except RegistryError:
        return ()
