"""Tests of a service whose disk becomes full during a job."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service_process import EXECUTION, ServiceProcess, run_service, wait_for

REQUEST = {"inputs": {"raster": {"href": "small.tif"}}}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Fill the remaining space of a disk."""
    with path.open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def job_ids(service: ServiceProcess, status: str) -> list[str]:
    return [job["jobID"] for job in service.http.get(f"/jobs?status={status}").json()["jobs"]]


@pytest.mark.slow
def test_job_fails_on_full_disk_and_next_job_succeeds(service_project: Path, small_disk: Path) -> None:
    """The end of the job is stored on the same disk."""
    with run_service(service_project, {"results": str(small_disk)}) as service:
        job, waiting = service.ask("large.tif"), service.ask("small.tif")
        tiles = small_disk / "jobs" / job / ".map.partial/tiles"
        wait_for(lambda: len(list(tiles.glob("*.npz"))) >= 2, "no tile is finished")
        fill(small_disk / "others.bin")
        ended = service.ended(job)
        assert ended["status"] == "failed"
        assert ended["message"].endswith("cannot be written: No space left on device")
        assert str(small_disk) not in ended["message"]
        wait_for(lambda: not tiles.parent.parent.exists(), "its files stay")
        assert service.ended(waiting)["status"] == "successful"
        fill(small_disk / "others.bin")
        jobs = {path.name for path in (small_disk / "jobs").iterdir()}
        refused = service.http.post(EXECUTION, json=REQUEST, headers={"Prefer": "respond-async"})
        assert refused.status_code in (503, 507), refused.text
        assert str(small_disk) not in refused.text
        assert {path.name for path in (small_disk / "jobs").iterdir()} == jobs
        (small_disk / "others.bin").unlink()
        asked = wait_for(lambda: service.http.post(EXECUTION, json=REQUEST).status_code == 200, "no job is taken again")
        assert asked
        assert job_ids(service, "failed") == [job]
