"""From a request to a map, as OGC API – Processes has it; and jobs that survive whatever ends the service."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service_process import EXECUTION, Serving, serving, wait_for
from talud.inference.prediction import predict
from talud.inference.runtime import Model, Origin

LARGE = {"raster": "large.tif", "model": "landslide-unet-3band"}


@pytest.fixture(scope="module")
def service(service_project: Path) -> Iterator[Serving]:
    with serving(service_project) as running:
        yield running


@pytest.fixture(scope="module")
def by_hand(service_project: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of the map of large.tif as `predict` makes it, by name."""
    out = tmp_path_factory.mktemp("by_hand") / "map"
    predict(Model.load(tiny_model, Origin("landslide-unet-3band", "1")), service_project / "stacks/large.tif", out)
    return digests({path.name: path.read_bytes() for path in out.iterdir()})


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def fetched(service: Serving, job: str) -> dict[str, str]:
    """The digests of a job's results."""
    results = service.http.get(f"/jobs/{job}/results").json()
    files = {one["href"].rsplit("/", 1)[1]: service.http.get(one["href"]).content for one in results.values()}
    return digests(files)


def same(found: dict[str, str], expected: dict[str, str]) -> None:
    assert len(found) == 6
    assert found == {name: expected[name] for name in found}


def test_a_small_raster_is_mapped_while_the_client_waits(service: Serving) -> None:
    answer = service.http.post(EXECUTION, json={"inputs": {"raster": {"href": "small.tif"}}})
    assert answer.status_code == 200, answer.text
    assert sorted(answer.json()) == ["landslides", "polygons", "probability", "quicklook", "record", "summary"]
    record = service.http.get(answer.json()["record"]["href"]).json()
    assert (record["model"]["name"], record["model"]["version"]) == ("landslide-unet-3band", "1")


def test_a_large_one_only_asynchronously_and_gives_the_bytes_of_predict(
    service: Serving, by_hand: dict[str, str]
) -> None:
    refused = service.http.post(EXECUTION, json={"inputs": {"raster": {"href": "large.tif"}}})
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    job = service.ask(**LARGE)
    assert service.ended(job)["status"] == "successful", service.job(job)
    same(fetched(service, job), by_hand)
