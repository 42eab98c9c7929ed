"""Tests of the HTTP interface with documented, generated and parallel requests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyogrio
import pytest

from doc_blocks import run_by
from service_process import ServiceProcess, run_service, wait_for

pytestmark = pytest.mark.slow  # the tests share a service process


@pytest.fixture(scope="module")
def service(service_project: Path) -> Iterator[ServiceProcess]:
    with run_service(service_project) as running:
        yield running


def documented(service: ServiceProcess) -> list[str]:
    """Return the Python clients in the documentation, adapted to this service."""
    address = str(service.http.base_url).rstrip("/")
    changes = {"http://127.0.0.1:8080": address, "synthetic_liboriana.tif": "small.tif", "…": ""}
    codes = [block.code for block in run_by("tests/serving/test_interface.py::documented")]
    for before, after in changes.items():
        codes = [code.replace(before, after) for code in codes]
    return codes


def test_documented_client_downloads_polygons(service: ServiceProcess, tmp_path: Path) -> None:
    client, _ = documented(service)
    assert len(client.split("with httpx")[1].splitlines()) <= 10
    subprocess.run([sys.executable, "-c", client], cwd=tmp_path, check=True, capture_output=True)
    newest = service.http.get("/jobs?limit=1").json()["jobs"][0]["jobID"]
    record = service.http.get(f"/jobs/{newest}/files/prediction.json").json()
    landslides = pyogrio.read_info(tmp_path / "landslides.gpkg", layer="landslides")["features"]
    assert landslides == record["landslides"]
    assert record["minimum_area_m2"] == 2000
    assert record["left_out"] > 0


def test_documented_owslib_client_works(service: ServiceProcess, tmp_path: Path) -> None:
    _, client = documented(service)
    done = subprocess.run([sys.executable, "-c", client], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("accepted http://127.0.0.1")


def test_no_generated_request_causes_server_error(service: ServiceProcess, tmp_path: Path) -> None:
    wait_for(lambda: service.http.get("/health/ready").status_code == 200, "no worker is there")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{service.http.base_url}/api", "--checks",
        "not_a_server_error", "--max-examples", "8", "--seed", "1", "--workers", "1", "--generation-database", "none",
        "--request-timeout", "60",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[done.stdout.find("FAILURES") :][:3000] + done.stdout[-1000:]


def test_fifty_parallel_clients_lose_no_job(service: ServiceProcess) -> None:
    def client(number: int) -> tuple[str, set[int]]:
        job = service.ask("small.tif") if number % 5 == 0 else ""
        path = f"/jobs/{job}" if job else "/jobs?limit=20"
        return job, {service.http.get(path).status_code for _ in range(15)}

    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(client, range(50)))
    assert set().union(*(statuses for _, statuses in found)) == {200}
    assert [service.ended(job)["status"] for job, _ in found if job] == ["successful"] * 10


def test_metrics_count_jobs_and_tiles(service: ServiceProcess) -> None:
    def figure(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", service.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0

    jobs, tiles = 'talud_jobs_ended_total{status="successful"}', "talud_tiles_mapped_total"
    waiting = [f'talud_jobs{{status="{status}"}}' for status in ("accepted", "running")]
    wait_for(lambda: not any(map(figure, waiting)), "earlier jobs do not end")
    before = figure(jobs), figure(tiles)
    made = service.ask("large.tif")
    assert service.ended(made)["status"] == "successful"
    of_it = service.http.get(f"/jobs/{made}/files/prediction.json").json()["tiles"]
    assert of_it > 1
    wait_for(lambda: (figure(jobs), figure(tiles)) == (before[0] + 1, before[1] + of_it), "it was not counted")


def test_every_response_has_security_headers(service: ServiceProcess) -> None:
    for path in ("/", "/jobs/none", "/api", "/page/"):
        headers = service.http.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "server" not in headers


def test_model_list_contains_contracts(service: ServiceProcess) -> None:
    (model,) = service.http.get("/models").json()["models"]
    assert (model["name"], model["aliases"]) == ("landslide-unet-3band", ["champion"])
    assert [band["name"] for band in model["contract"]["bands"]] == ["red", "green", "blue"]


def test_cog_is_read_in_parts_over_http(service: ServiceProcess, tmp_path: Path) -> None:
    job = service.ask("small.tif")
    service.ended(job)
    address = f"/vsicurl/{service.http.base_url}/jobs/{job}/files/probability.tif"
    code = f"import rasterio; print(rasterio.open({address!r}).read(1, window=((0, 4), (0, 4))).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(4, 4)"
    part = service.http.get(f"/jobs/{job}/files/probability.tif", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content[:2]) == (206, b"II")
