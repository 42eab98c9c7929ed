"""Checks of jobs during faults: `python bench/service.py faults`.

Set-up: a model with 4 filters and random weights, a raster of 2500² pixels of noise, one worker, SQLite, all on the
loopback interface. The service, and then a worker, are killed during a job, and the map is compared byte by byte with
that of an undisturbed job; the disk of the results fills up (mounting it needs root); 100 jobs are queued at once. The
times depend on other load of the machine.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import inputs

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from service_process import ServiceProcess, add_champion, run_service, wait_for  # noqa: E402

SIDE = 2500
JOBS = 100
DISK_SIZE = "120m"  # a map of SIDE² pixels needs at least 81 MB


def main() -> None:
    """Run all checks and print a table; exit with 1 if one of them fails."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = make_project(folder / "project")
        expected = run_undisturbed(project, folder / "undisturbed")
        checks = {
            "kill -9 of the service": lambda: check_kill(project, folder / "a", expected, "service"),
            "kill -9 of a worker": lambda: check_kill(project, folder / "b", expected, "worker"),
            "full disk": lambda: check_full_disk(project, folder / "disk"),
            f"{JOBS} queued jobs": lambda: check_queue(project, folder / "c"),
        }
        for check, run in checks.items():
            began = time.monotonic()
            rows.append((check, run(), time.monotonic() - began))
            print(f"{rows[-1][0]:24} {rows[-1][1]:60} {rows[-1][2]:6.1f}", flush=True)
    sys.exit(any(result.startswith("FAILED") for _, result, _ in rows))


def make_project(root: Path) -> Path:
    """Return a project with a champion, a large raster and one of a single tile."""
    (root / "stacks").mkdir(parents=True)
    (root / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    inputs.FILTERS, inputs.DEPTH = 4, 2
    inputs.write_model(root / "unet.onnx")
    inputs.write_stack(root / "stacks/large.tif", SIDE)
    inputs.write_stack(root / "stacks/small.tif", 128)
    add_champion(root, "7band", root / "unet.onnx")
    return root


def digests(map_folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a map except timings.json."""
    files = [path for path in map_folder.iterdir() if path.name != "timings.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_undisturbed(project: Path, results: Path) -> dict[str, str]:
    """Return the checksums of a map from an undisturbed job."""
    with run_service(project, {"results": str(results)}) as service:
        job = service.ask("large.tif")
        assert service.ended(job)["status"] == "successful", service.job(job)
    return digests(results / "jobs" / job / "map")


def start_job(service: ServiceProcess, results: Path) -> str:
    """Start a job; return its id once some tiles are finished."""
    job = service.ask("large.tif")
    tiles = results / "jobs" / job / ".map.partial/tiles"
    wait_for(lambda: len(list(tiles.glob("*.npz"))) >= 2, "no tile is finished")
    return job


def check_kill(project: Path, results: Path, expected: dict[str, str], what: str) -> str:
    """Kill the service or its worker during a job, and compare the map."""
    with run_service(project, {"results": str(results)}) as service:
        job = start_job(service, results)
        if what == "service":
            service.kill()
        else:
            os.kill(service.workers()[0], signal.SIGKILL)
            service.ended(job)
    with run_service(project, {"results": str(results)}) as service:
        status = service.ended(job)["status"]
    if status != "successful":
        return f"FAILED: the job is {status}"
    same = digests(results / "jobs" / job / "map") == expected
    return f"resumes; {len(expected)} identical files" if same else "FAILED: the bytes differ"


def check_full_disk(project: Path, disk: Path) -> str:
    """Fill the disk of the results during a job while another job is queued."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        return "skipped: mounting a small disk needs root"
    try:
        with run_service(project, {"results": str(disk)}) as service:
            job, waiting = start_job(service, disk), service.ask("small.tif")
            try:
                with (disk / "others.bin").open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
            except OSError:
                pass
            ended, after = service.ended(job), service.ended(waiting)["status"]
            wait_for(lambda: not (disk / "jobs" / job).exists(), "the files of the job stay")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    if (ended["status"], after) != ("failed", "successful") or "No space left" not in ended["message"]:
        return f"FAILED: the job is {ended['status']}, the next one {after}"
    return "the job fails, its files are removed, the next succeeds"


def check_queue(project: Path, results: Path) -> str:
    """Submit many jobs at once; check that all succeed in order."""
    settings = {"results": str(results), "jobs_per_key": str(JOBS), "queue": str(JOBS)}
    with run_service(project, settings) as service:
        jobs = [service.ask("small.tif") for _ in range(JOBS)]
        ended = [service.ended(job) for job in jobs]
    lost = sum(job["status"] != "successful" for job in ended)
    started = [job["started"] for job in ended]
    if lost or started != sorted(started):
        return f"FAILED: {lost} of {JOBS} jobs do not succeed" if lost else "FAILED: the order is not kept"
    return f"{JOBS} of {JOBS} succeed, in the order of submission"
