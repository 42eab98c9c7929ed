"""Routes of OGC API – Processes, Part 1: process, jobs and results."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import datetime
from pathlib import Path as File
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from starlette.datastructures import URL

from talud.serving import ogc_process, raster_paths, remote
from talud.serving.monitoring import job_fields, log, raster_reference
from talud.serving.ogc_process import OUTPUTS, PROCESS_ID, ExecuteRequest, Link
from talud.serving.problems import NO_SUCH_JOB, NO_SUCH_PROCESS, RESULT_NOT_READY, Problem, problem_responses
from talud.serving.rasters import read_header
from talud.serving.request_resolution import is_remote
from talud.serving.security import PublicAddress
from talud.serving.service import CurrentService, ReadKey, RunKey, Service
from talud.serving.tables import STATUSES, Job, Status

router = APIRouter(tags=["OGC API – Processes"])

CONFORMANCE = [
    f"http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/{name}"
    for name in ("core", "ogc-process-description", "json", "job-list", "callback", "dismiss")
]
RESULTS_RELATION = "http://www.opengis.net/def/rel/ogc/1.0/results"
SYNC_TIMEOUT_SECONDS = 600  # for a synchronous request
# Browsers show an image in a generated page with style attributes.
_PICTURE_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_MAX_HEAD_BYTES = 2**18  # read from a summary page to find its style sheet
POLL_INTERVAL_SECONDS = 0.2  # between two queries of a job's status for a synchronous request

ProcessId = Annotated[str, Path(description="id of the process: map-landslides")]
JobId = Annotated[str, Path(description="id of the job")]


class LandingPage(BaseModel):
    """Landing page."""

    title: Annotated[str, Field(description="name of the service")]
    description: Annotated[str, Field(description="purpose of the service")]
    links: Annotated[list[Link], Field(description="links to the resources of the service")]


class Conformance(BaseModel):
    """Conformance classes of the service."""

    conformsTo: Annotated[list[str], Field(description="URIs of the conformance classes")]  # noqa: N815 - the standard's name


class JobInputs(BaseModel):
    """Inputs of a job with the chosen model."""

    raster: Annotated[str, Field(description="href of the raster, without a query, which may contain a signature")]
    model: Annotated[str, Field(description="name of the registered model; empty until a remote raster is downloaded")]
    version: Annotated[str, Field(description="version of the model")]
    threshold: Annotated[float | None, Field(description="threshold of the probability; null: that of the model")]
    minimum_area: Annotated[float, Field(description="smallest area of a landslide in m²")]


class StatusInfo(BaseModel):
    """Status of a job."""

    processID: Annotated[str, Field(description="id of the process")]  # noqa: N815
    type: Literal["process"] = "process"
    jobID: Annotated[str, Field(description="id of the job")]  # noqa: N815
    status: Annotated[Status, Field(description="status of the job")]
    message: Annotated[str, Field(description="progress or reason of the status")]
    created: Annotated[datetime, Field(description="time of the request")]
    started: Annotated[datetime | None, Field(description="time of the first start")]
    finished: Annotated[datetime | None, Field(description="time of the end")]
    updated: Annotated[datetime, Field(description="time of the last change")]
    progress: Annotated[int, Field(ge=0, le=100, description="percentage of finished tiles")]
    inputs: Annotated[JobInputs, Field(description="inputs of the job")]
    links: Annotated[list[Link], Field(description="links to the job and its results")]


class JobList(BaseModel):
    """List of jobs, newest first."""

    jobs: Annotated[list[StatusInfo], Field(description="jobs, newest first")]
    links: Annotated[list[Link], Field(description="links to this page and the next page")]


class OutputLink(BaseModel):
    """Link to an output."""

    href: Annotated[str, Field(description="URL of the file")]
    type: Annotated[str, Field(description="media type of the file")]


@router.get("/", response_model=LandingPage)
def get_landing_page(request: Request) -> Any:
    """Return the landing page; redirect browsers to the review page."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{_base_url(request)}/page/")
    base = _base_url(request)
    return LandingPage(
        title="talud",
        description="Landslide maps by registered models",
        links=[
            Link(href=f"{base}/", rel="self", type="application/json"),
            Link(href=f"{base}/api", rel="service-desc", type="application/vnd.oai.openapi+json;version=3.1"),
            Link(href=f"{base}/conformance", rel="http://www.opengis.net/def/rel/ogc/1.0/conformance"),
            Link(href=f"{base}/processes", rel="http://www.opengis.net/def/rel/ogc/1.0/processes"),
            Link(href=f"{base}/jobs", rel="http://www.opengis.net/def/rel/ogc/1.0/job-list"),
            Link(href=f"{base}/page/", rel="alternate", type="text/html", title="the review page"),
        ],
    )


@router.get("/conformance")
def get_conformance() -> Conformance:
    """Return the conformance classes of the service."""
    return Conformance(conformsTo=CONFORMANCE)


@router.get("/processes", responses=problem_responses(401))
def list_processes(request: Request, _: ReadKey) -> dict[str, Any]:
    """Return the list of processes, which contains one process."""
    base = _base_url(request)
    one = ogc_process.process_summary() | {
        "links": [Link(href=f"{base}/processes/{PROCESS_ID}", rel="self", type="application/json")]
    }
    return {"processes": [one], "links": [Link(href=f"{base}/processes", rel="self", type="application/json")]}


@router.get("/processes/{process_id}", responses=problem_responses(401, 404))
def get_process(process_id: ProcessId, request: Request, _: ReadKey) -> dict[str, Any]:
    """Return the inputs and outputs of the process."""
    _check_process(process_id)
    execute = f"{_base_url(request)}/processes/{PROCESS_ID}/execution"
    link = Link(href=execute, rel="http://www.opengis.net/def/rel/ogc/1.0/execute", title="Request a map")
    return ogc_process.process_description() | {"links": [link]}


@router.post(
    "/processes/{process_id}/execution",
    response_model=dict[str, OutputLink],
    responses={
        201: {"model": StatusInfo, "description": "The job was accepted; Location contains its URL"},
        **problem_responses(401, 403, 404, 413, 422, 429, 500, 503, 507),
    },
)
async def execute_process(
    process_id: ProcessId,
    execute: ExecuteRequest,
    request: Request,
    key: RunKey,
    service: CurrentService,
    prefer: Annotated[str, Header(description="respond-async: return at once, without waiting for the map")] = "",
) -> Any:
    """Request a landslide map of a raster.

    Without `Prefer: respond-async`, the response is sent when the map is finished; this requires a small raster.
    """
    _check_process(process_id)
    if unknown := sorted((execute.outputs or {}).keys() - OUTPUTS.keys()):
        raise Problem(422, f"outputs: unknown {', '.join(unknown)}; the outputs are {', '.join(OUTPUTS)}")
    asynchronous = "respond-async" in prefer.casefold()
    if not asynchronous:
        await asyncio.to_thread(_check_small, execute, service)
    job = await asyncio.to_thread(service.resolver.accept, execute, key)
    log.info("accepted: %s", raster_reference(job.request), extra=job_fields(job))
    if asynchronous:
        headers = {"Location": f"{_base_url(request)}/jobs/{job.id}", "Preference-Applied": "respond-async"}
        return JSONResponse(_status_info(job, request).model_dump(mode="json"), 201, headers)
    ended = await _wait_for_end(job, service)
    if ended.status != "successful":
        raise Problem(
            500 if ended.status == "failed" else 410, f"the job {ended.id} is {ended.status}: {ended.message}"
        )
    wanted = execute.outputs or OUTPUTS
    return {name: result for name, result in _output_links(ended, request, service).items() if name in wanted}


@router.get("/jobs", responses=problem_responses(401, 422))
def list_jobs(
    request: Request,
    service: CurrentService,
    _: ReadKey,
    status: Annotated[list[Status] | None, Query(description="only jobs with one of these statuses")] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="largest number of jobs in the response")] = 100,
    offset: Annotated[int, Query(ge=0, le=10**9, description="number of jobs to skip")] = 0,
) -> JobList:
    """Return the jobs, newest first."""
    found = service.jobs.list(status or STATUSES, limit + 1, offset)

    def here(url: URL) -> str:
        return f"{_base_url(request)}{url.path}{'?' if url.query else ''}{url.query}"

    links = [Link(href=here(request.url), rel="self", type="application/json")]
    if len(found) > limit:
        onward = request.url.include_query_params(offset=offset + limit, limit=limit)
        links.append(Link(href=here(onward), rel="next", type="application/json"))
    return JobList(jobs=[_status_info(job, request) for job in found[:limit]], links=links)


@router.get("/jobs/{job_id}", responses=problem_responses(401, 404))
def get_job(job_id: JobId, request: Request, service: CurrentService, _: ReadKey) -> StatusInfo:
    """Return the status of a job."""
    return _status_info(_find_job(job_id, service), request)


@router.delete("/jobs/{job_id}", responses=problem_responses(401, 403, 404))
def dismiss_job(job_id: JobId, request: Request, service: CurrentService, key: RunKey) -> StatusInfo:
    """Dismiss a job and delete its map.

    A key may dismiss its own jobs, and a key with the scope admin any job.
    """
    found = _find_job(job_id, service)
    if found.key_id != key.id and not key.allows("admin"):
        raise Problem(403, f"the job belongs to another key than {key.name}; dismissing it requires the scope admin")
    service.executor.dismiss(found.id)
    log.info("dismissed by the key of %s", key.name, extra=job_fields(found))
    return _status_info(_find_job(job_id, service), request)


@router.get("/jobs/{job_id}/results", responses=problem_responses(401, 404, 410, 500))
def get_results(job_id: JobId, request: Request, service: CurrentService, _: ReadKey) -> dict[str, OutputLink]:
    """Return links to the outputs of a job."""
    return _output_links(_successful_job(job_id, service), request, service)


@router.get("/jobs/{job_id}/files/{name}", responses=problem_responses(401, 404), response_class=FileResponse)
def get_file(
    job_id: JobId,
    name: Annotated[str, Path(description="file name, as in the links of the results")],
    service: CurrentService,
    _: ReadKey,
) -> FileResponse:
    """Return a file of a map; Range requests are supported."""
    found = _successful_job(job_id, service)
    media = {
        each: OUTPUTS[output][1]
        for output, each in ogc_process.output_files(service.job_folders.products(found.id)).items()
    }
    path = service.job_folders.map_folder(found.id) / name
    if name not in media or not path.is_file():
        raise Problem(404, f"there is no file {name}; the files are {', '.join(media)}")
    headers = {}
    if media[name] == "text/html":
        headers["Content-Security-Policy"] = _summary_policy(path)
    elif media[name] == "image/png":
        headers["Content-Security-Policy"] = _PICTURE_POLICY
    return FileResponse(path, 200, headers, media[name], filename=name, content_disposition_type="inline")


def _summary_policy(page: File) -> str:
    """Return the Content-Security-Policy of a summary page.

    The policy allows the page's own style sheet, style attributes and embedded images.
    """
    with page.open("rb") as stream:
        head = stream.read(_MAX_HEAD_BYTES)
    sheet = head.partition(b"<style>")[2].partition(b"</style>")[0]
    checksum = base64.b64encode(hashlib.sha256(sheet).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src-elem 'sha256-{checksum}'; style-src-attr 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
    )


def _base_url(request: Request) -> str:
    address: PublicAddress = request.app.state.address
    return address.base(request)


def _check_process(name: str) -> None:
    if name != PROCESS_ID:
        raise Problem(404, f"there is no process {name}; the only process is {PROCESS_ID}", NO_SUCH_PROCESS)


def _check_small(execute: ExecuteRequest, service: Service) -> None:
    """Check that a raster is small enough for a synchronous request."""
    href, most = execute.inputs.raster.href, service.settings.sync_pixels
    if is_remote(href):
        remote.check_reference(href, service.settings)
        raise Problem(413, "a remote raster is only mapped asynchronously; send the header Prefer: respond-async")
    pixels = read_header(raster_paths.resolve_raster(href, service.settings)).pixels
    if pixels > most:
        raise Problem(
            413,
            f"{href}: has {pixels:,} pixels, and synchronous requests are limited to {most:,}; send the header "
            "Prefer: respond-async",
        )


async def _wait_for_end(job: Job, service: Service) -> Job:
    """Wait for the end of a job, and return the job."""
    for _ in range(round(SYNC_TIMEOUT_SECONDS / POLL_INTERVAL_SECONDS)):
        await asyncio.sleep(POLL_INTERVAL_SECONDS)
        found = await asyncio.to_thread(service.jobs.get, job.id)
        if found is None or found.finished:
            return found or job
    raise Problem(
        503, f"the job {job.id} is not finished after {SYNC_TIMEOUT_SECONDS} s and continues; see /jobs/{job.id}"
    )


def _find_job(job_id: str, service: Service) -> Job:
    found = service.jobs.get(job_id)
    if found is None:
        raise Problem(404, f"there is no job {job_id}", NO_SUCH_JOB)
    return found


def _successful_job(job_id: str, service: Service) -> Job:
    """Return a job, and check that it is successful."""
    found = _find_job(job_id, service)
    if found.status == "failed":
        raise Problem(500, f"the job failed: {found.message}")
    if found.status == "dismissed":
        raise Problem(410, "the job was dismissed, and its map was deleted")
    if found.status != "successful":
        raise Problem(404, f"the job is {found.status}; its results are not ready", RESULT_NOT_READY)
    service.job_folders.mark_viewed(found.id)
    return found


def _output_links(job: Job, request: Request, service: Service) -> dict[str, OutputLink]:
    files = f"{_base_url(request)}/jobs/{job.id}/files"
    names = ogc_process.output_files(service.job_folders.products(job.id))
    return {name: OutputLink(href=f"{files}/{names[name]}", type=OUTPUTS[name][1]) for name in OUTPUTS}


def _status_info(job: Job, request: Request) -> StatusInfo:
    here = f"{_base_url(request)}/jobs/{job.id}"
    links = [Link(href=here, rel="self", type="application/json")]
    if job.status == "successful":
        links.append(Link(href=f"{here}/results", rel=RESULTS_RELATION, type="application/json"))
    return StatusInfo(
        processID=PROCESS_ID,
        jobID=job.id,
        status=job.status,
        message=job.message,
        created=job.created,
        started=job.started,
        finished=job.finished,
        updated=job.updated,
        progress=job.progress,
        inputs=JobInputs(
            **job.request.model_dump(include=set(JobInputs.model_fields) - {"raster"}),
            raster=job.request.raster_without_secrets,
        ),
        links=links,
    )
