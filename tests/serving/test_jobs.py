"""Tests of jobs through OGC API – Processes, and of their resumption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service_process import EXECUTION, ServiceProcess, add_champion, run_service, wait_for
from talud.engine.runtime import Model, RegistryVersion
from talud.errors import SourceError
from talud.products.prediction import predict
from talud.serving.database import Database
from talud.serving.jobs import JobStore
from talud.serving.request_resolution import ModelLookup, RequestResolver
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders
from talud.serving.tables import MapRequest

pytestmark = pytest.mark.slow  # the tests share a service process

LARGE_REQUEST = {"raster": "large.tif", "model": "landslide-unet-3band/1"}


@pytest.fixture(scope="module")
def service(service_project: Path) -> Iterator[ServiceProcess]:
    with run_service(service_project) as running:
        yield running


@pytest.fixture(scope="module")
def expected_checksums(
    service_project: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Return the checksums of the map of large.tif made by `predict`."""
    out = tmp_path_factory.mktemp("by_hand") / "map"
    predict(
        Model.load(tiny_model, RegistryVersion("landslide-unet-3band", "1")), service_project / "stacks/large.tif", out
    )
    return checksums({path.name: path.read_bytes() for path in out.iterdir()})


def checksums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def job_checksums(service: ServiceProcess, job: str) -> dict[str, str]:
    """Return the checksums of a job's files."""
    results = service.http.get(f"/jobs/{job}/results").json()
    files = {one["href"].rsplit("/", 1)[1]: service.http.get(one["href"]).content for one in results.values()}
    return checksums(files)


def assert_same_files(found: dict[str, str], expected: dict[str, str]) -> None:
    assert len(found) == 6
    assert found == {name: expected[name] for name in found}


def test_small_raster_is_mapped_synchronously(service: ServiceProcess) -> None:
    answer = service.http.post(EXECUTION, json={"inputs": {"raster": {"href": "small.tif"}}})
    assert answer.status_code == 200, answer.text
    assert sorted(answer.json()) == ["landslides", "polygons", "probability", "quicklook", "record", "summary"]
    record = service.http.get(answer.json()["record"]["href"]).json()
    assert (record["model"]["name"], record["model"]["version"]) == ("landslide-unet-3band", "1")


def test_large_raster_is_mapped_asynchronously_like_predict(
    service: ServiceProcess, expected_checksums: dict[str, str]
) -> None:
    refused = service.http.post(EXECUTION, json={"inputs": {"raster": {"href": "large.tif"}}})
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    job = service.ask(**LARGE_REQUEST)
    assert service.ended(job)["status"] == "successful", service.job(job)
    assert_same_files(job_checksums(service, job), expected_checksums)


def tiles(results: Path, job: str) -> int:
    """Return the number of finished tiles of a job."""
    return len(list((results / "jobs" / job / ".map.partial/tiles").glob("*.npz")))


@pytest.mark.parametrize("killed", ["service", "worker, then both"])
def test_job_resumes_from_tiles_after_kill(
    killed: str, service_project: Path, expected_checksums: dict[str, str], tmp_path: Path
) -> None:
    own = {"results": str(tmp_path)}  # another service of this module may be running
    with run_service(service_project, own) as running:
        job = running.ask(**LARGE_REQUEST)
        wait_for(lambda: tiles(tmp_path, job) >= 2, "no tile is finished")
        workers = running.workers()
        assert len(workers) == 1
        if killed != "service":
            os.kill(workers[0], signal.SIGKILL)
            before = tiles(tmp_path, job)
            wait_for(lambda: tiles(tmp_path, job) > before, "no new worker goes on")
            (worker,) = set(running.workers()) - set(workers)
            os.kill(worker, signal.SIGKILL)
        running.kill()
    assert tiles(tmp_path, job) >= 2
    with run_service(service_project, own) as again:
        assert again.ended(job)["status"] == "successful", again.job(job)
        assert_same_files(job_checksums(again, job), expected_checksums)
    timings = json.loads((tmp_path / "jobs" / job / "map/timings.json").read_text())
    assert timings["tiles_taken_over"] >= 2


def test_dismissed_job_frees_worker_and_files(service: ServiceProcess, service_project: Path) -> None:
    job, waiting = service.ask(**LARGE_REQUEST), service.ask(**LARGE_REQUEST)
    results = service_project / ".talud/service"
    wait_for(lambda: tiles(results, job) >= 1, "no tile is finished")
    for each in (waiting, job):
        assert service.http.delete(f"/jobs/{each}").json()["status"] == "dismissed"
    wait_for(
        lambda: not (results / "jobs" / job).exists() and not (results / "jobs" / waiting).exists(), "the files stay"
    )
    assert service.http.get(f"/jobs/{job}/results").status_code == 410
    assert service.ended(service.ask("small.tif"))["status"] == "successful"


def test_promoted_model_is_used_by_new_jobs_only(
    service: ServiceProcess, service_project: Path, tiny_model: Path
) -> None:
    job = service.ask("large.tif")
    add_champion(service_project, "3band", tiny_model)
    after = service.ask("small.tif")
    assert (service.job(job)["inputs"]["version"], service.job(after)["inputs"]["version"]) == ("1", "2")
    record = service.http.get(f"/jobs/{job}/files/prediction.json")
    assert service.ended(job)["status"] == "successful"
    record = service.http.get(f"/jobs/{job}/files/prediction.json").json()
    assert record["model"]["version"] == "1"


@pytest.mark.parametrize(
    ("inputs", "status", "message"),
    [
        ({"raster": {"href": "nowhere.tif"}}, 422, "nowhere.tif"),
        ({"raster": {"href": "small.tif"}, "model": "landslide-unet-9band"}, 422, "landslide-unet-9band"),
        ({"raster": {"href": "small.tif"}, "bands": ["red", "green"]}, 422, "needs the bands blue"),
        ({"raster": {"href": "small.tif"}, "threshold": 1.5}, 422, "inputs.threshold: Input should be less than 1"),
        ({"raster": {"href": "small.tif"}, "minimum_area": -1}, 422, "inputs.minimum_area"),
        ({"raster": {"href": "small.tif"}, "colour": "red"}, 422, "inputs.colour: Extra inputs are not permitted"),
        ({}, 422, "inputs.raster: Field required"),
    ],
)
def test_invalid_request_is_refused_without_job(
    service: ServiceProcess, inputs: dict[str, Any], status: int, message: str
) -> None:
    before = len(service.http.get("/jobs").json()["jobs"])
    answer = service.http.post(EXECUTION, json={"inputs": inputs}, headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert message in answer.json()["detail"]
    assert len(service.http.get("/jobs").json()["jobs"]) == before


def test_downloaded_raster_is_not_downloaded_again(service_project: Path, tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, results=tmp_path)  # the allow-list is empty
    with Database.open(settings.database_url) as database:
        jobs, folders = JobStore(database), JobFolders(tmp_path / "jobs")
        resolver = RequestResolver(settings, jobs, folders, ModelLookup(service_project))
        request = MapRequest(raster="https://gone.example/small.tif", model="landslide-unet-3band", version="1")
        job = jobs.create("a", "somebody", request)
        with pytest.raises(SourceError, match=r"gone\.example: is not on the allow-list"):
            resolver.fetch(job, lambda: None)
        folders.fetched_raster("a").mkdir(parents=True, exist_ok=True)
        shutil.copy(service_project / "stacks/small.tif", folders.fetched_raster("a"))
        resolver.fetch(job, lambda: None)
        assert resolver.resolve(job)[0] == folders.fetched_raster("a") / "small.tif"
        assert folders.model("a").is_file()


SLOW_SERVER = """
import socketserver, time

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        asked = self.request.recv(65536)
        self.request.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000000\\r\\n\\r\\n")
        while asked:
            self.request.sendall(b"0")
            time.sleep(0.25)

with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


@pytest.fixture
def slow_host() -> Iterator[str]:
    """Yield the address of a host that sends four bytes a second."""
    command = [sys.executable, "-c", SLOW_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def test_slow_download_blocks_neither_workers_nor_shutdown(
    slow_host: str, service_project: Path, tmp_path: Path
) -> None:
    settings = {"results": str(tmp_path), "allowed": json.dumps([slow_host])}
    with run_service(service_project, settings) as running:
        slow = [running.ask(f"http://{slow_host}/{number}.tif?sig=5ec4e7") for number in range(6)]
        wait_for(lambda: [running.job(each)["status"] for each in slow].count("running") == 4, "not four are fetched")
        assert running.ended(running.ask("small.tif"))["status"] == "successful"
        assert [running.job(each)["message"] for each in slow[:4]] == ["downloading the raster"] * 4
        began = time.monotonic()
        assert running.http.delete(f"/jobs/{slow[0]}").json()["status"] == "dismissed"
        wait_for(lambda: not (tmp_path / "jobs" / slow[0]).exists(), "its files stay")
        wait_for(lambda: running.job(slow[4])["status"] == "running", "its place is not free")
        assert time.monotonic() - began < 5
        listed = running.http.get("/jobs")
        assert f"http://{slow_host}/0.tif" in listed.text
        assert "5ec4e7" not in listed.text + running.http.get(f"/jobs/{slow[5]}").text
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        message = running.process.communicate(timeout=60)[0]
        assert time.monotonic() - began < 15
        assert "5ec4e7" not in message
    with run_service(service_project, settings) as again:  # downloads start again
        wait_for(lambda: [again.job(each)["status"] for each in slow[1:]].count("running") == 4, "not four are fetched")
        assert again.ended(again.ask("small.tif"))["status"] == "successful"


FORBIDDEN = [
    "s3://bucket/a.tif",
    "S3://bucket/a.tif",
    "s3://allowed/../a.tif",
    "https://elsewhere.example.org/a.tif",
    "https://data.example.org.evil.org/a.tif",
    "https://data.example.org:8443/a.tif",
    "https://data.example.org@evil.org/a.tif",
    "https://user:5ec4e7@data.example.org/a.tif",
    "https://169.254.169.254/latest/meta-data",
    "https://[::1]/a.tif",
    "https://2130706433/a.tif",
    "http://127.0.0.1:8080/a.tif",
    "http:///a.tif",
    "file:///etc/passwd",
    "ftp://data.example.org/a.tif",
    "gs://allowed/a.tif",
    "/vsis3/allowed/a.tif",
    "/vsicurl/https://data.example.org/a.tif",
    "vsicurl/../../a.tif",
    "/etc/passwd",
    "../a.tif",
    "HTTPS://elsewhere.example.org/a.tif?sig=5ec4e7",
    "vrt://https://user:5ec4e7@data.example.org/a.tif?sig=5ec4e7",
]


@pytest.fixture(scope="module")
def restricted_service(service_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Yield a service with one host and one bucket on its allow-list."""
    root = tmp_path_factory.mktemp("selective")
    allowed = json.dumps(["data.example.org", "s3://allowed"])
    with run_service(service_project, {"results": str(root), "allowed": allowed}) as running:
        yield running


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("href", FORBIDDEN)
def test_raster_reference_outside_allow_list_is_refused(
    href: str, asynchronous: bool, restricted_service: ServiceProcess
) -> None:
    headers = {"Prefer": "respond-async"} if asynchronous else {}
    answer = restricted_service.http.post(EXECUTION, json={"inputs": {"raster": {"href": href}}}, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    assert "5ec4e7" not in answer.text
    assert restricted_service.http.get("/jobs").json()["jobs"] == []


def test_callback_outside_allow_list_is_refused(restricted_service: ServiceProcess) -> None:
    body = {"inputs": {"raster": {"href": "small.tif"}}, "subscriber": {"successUri": "https://evil.org/?token=5ec4e7"}}
    answer = restricted_service.http.post(EXECUTION, json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 403
    assert "evil.org" in answer.text
    assert "5ec4e7" not in answer.text
    assert restricted_service.http.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize(("limit", "status"), [("jobs_per_key", 429), ("queue", 503)])
def test_jobs_over_the_limit_are_refused_until_one_ends(
    limit: str, status: int, service_project: Path, tmp_path: Path
) -> None:
    with run_service(service_project, {limit: "1", "results": str(tmp_path)}) as running:
        job = running.ask(**LARGE_REQUEST)
        body = {"inputs": {"raster": {"href": "small.tif"}}}
        assert running.http.post(EXECUTION, json=body, headers={"Prefer": "respond-async"}).status_code == status
        running.http.delete(f"/jobs/{job}")
        assert running.ended(running.ask("small.tif"))["status"] == "successful"


def test_ogc_pages_link_to_each_other(service: ServiceProcess) -> None:
    links = {link["rel"].rsplit("/", 1)[-1]: link["href"] for link in service.http.get("/").json()["links"]}
    assert (
        "http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/core"
        in service.http.get(links["conformance"]).json()["conformsTo"]
    )
    listed = service.http.get(links["processes"]).json()["processes"]
    described = service.http.get(listed[0]["links"][0]["href"]).json()
    assert sorted(described["inputs"]) == ["bands", "minimum_area", "model", "raster", "threshold"]
    assert described["jobControlOptions"] == ["sync-execute", "async-execute", "dismiss"]
    assert service.http.get(links["service-desc"]).json()["info"]["title"] == "talud"
    nothing = service.http.get("/jobs/7d9ce1f4-0000-4000-8000-000000000000")
    assert (nothing.status_code, nothing.json()["type"]) == (
        404,
        "http://www.opengis.net/def/exceptions/ogcapi-processes-1/1.0/no-such-job",
    )


def test_owslib_reads_processes_and_starts_job(service: ServiceProcess) -> None:
    from owslib.ogcapi.processes import Processes

    client = Processes(str(service.http.base_url))
    assert [each["id"] for each in client.processes()] == ["map-landslides"]
    assert client.process("map-landslides")["title"] == "Map landslides"
    job = client.execute("map-landslides", {"raster": {"href": "small.tif"}}, async_=True)
    assert service.ended(job["jobID"])["status"] == "successful"
    assert client.response_headers["Location"] == service.job(job["jobID"])["links"][0]["href"]
