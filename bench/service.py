"""Response times of the service.

    python bench/service.py [SECONDS]

Set-up: a model with 7 bands, 32 filters and random weights, a raster of 4096² pixels of noise, two workers, SQLite,
all on the loopback interface. While two jobs run, one client requests the status of a job ten times a second; then 50
clients request, list and start jobs for SECONDS (default: 60). Writes `bench/service.json`. The machine must be idle
otherwise. `python bench/service.py faults` runs the checks of `service_faults.py` instead.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import service_faults
from inputs import BANDS, random_stack

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from service_process import EXECUTION, ServiceProcess, add_champion, run_service, wait_for  # noqa: E402
from stack_files import write_stack  # noqa: E402

CLIENTS = 50
SIDE = 4096
ASYNCHRONOUS = {"Prefer": "respond-async"}


def main() -> None:
    """Run the measurements, print and write the figures."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        settings = {"workers": "2", "queue": "100000", "jobs_per_key": "100000"}
        began = time.monotonic()
        with run_service(project, settings) as service:
            wait_for(lambda: service.http.get("/health/ready").status_code == 200, "not ready")
            figures = {"seconds to ready": round(time.monotonic() - began, 1)} | measure_memory(service)
            figures |= measure_while_computing(service)
            print(figures, flush=True)
            figures |= asyncio.run(measure_load(str(service.http.base_url), seconds))
            figures |= count_final_states(service)
    print(json.dumps(figures, indent=2))
    (HERE / "service.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def make_project(root: Path) -> Path:
    """Return a project with a champion, a small and a large stack."""
    (root / "stacks").mkdir(parents=True)
    (root / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    subprocess.run([sys.executable, HERE / "inputs.py", root, str(SIDE)], check=True)
    (root / "stack.tif").rename(root / "stacks/large.tif")
    write_stack(root / "stacks/small.tif", random_stack(128, 128, 3), BANDS)
    add_champion(root, "7band", root / "unet.onnx")
    return root


def measure_memory(service: ServiceProcess) -> dict[str, float]:
    """Return the resident memory of the idle processes in MB."""
    process = psutil.Process(service.process.pid)
    workers = [child.memory_info().rss for child in process.children(recursive=True)]
    return {"MB at rest: service": process.memory_info().rss // 10**6, "MB at rest: two workers": sum(workers) // 10**6}


def measure_while_computing(service: ServiceProcess) -> dict[str, float]:
    """Measure the response time of job status requests while two jobs run."""
    jobs = [service.ask("large.tif") for _ in range(2)]
    wait_for(lambda: all(service.job(job)["progress"] > 0 for job in jobs), "no tile is finished")
    took = []
    while len(took) < 600 and all(service.job(job)["status"] == "running" for job in jobs):
        began = time.perf_counter()
        service.http.get(f"/jobs/{jobs[0]}").raise_for_status()
        took.append(time.perf_counter() - began)
        time.sleep(0.1)
    for job in jobs:
        service.http.delete(f"/jobs/{job}")
    return {"answers while two jobs compute": len(took)} | milliseconds("GET /jobs/ID while two jobs compute", took)


def milliseconds(what: str, took: list[float]) -> dict[str, float]:
    """Return median and 95th percentile in milliseconds."""
    ranks = statistics.quantiles(took, n=20)
    return {f"ms, {what}: median": round(1000 * ranks[9], 1), f"ms, {what}: p95": round(1000 * ranks[18], 1)}


async def measure_load(address: str, seconds: float) -> dict[str, float]:
    """Measure responses to concurrent clients; one in 500 requests starts a job."""
    took: list[float] = []
    answers: Counter[int] = Counter()
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        chance = np.random.default_rng(number)
        async with httpx.AsyncClient(base_url=address, timeout=60) as http:
            job = ""
            while time.monotonic() < until:
                began = time.perf_counter()
                if not job or chance.random() < 0.002:
                    body = {"inputs": {"raster": {"href": "small.tif"}, "model": "landslide-unet-7band"}}
                    answer = await http.post(EXECUTION, json=body, headers=ASYNCHRONOUS)
                    job = answer.json()["jobID"] if answer.status_code == 201 else job
                else:
                    answer = await http.get(f"/jobs/{job}" if chance.random() < 0.8 else "/jobs?limit=20")
                took.append(time.perf_counter() - began)
                answers[answer.status_code] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    found = {f"answers {status}": count for status, count in sorted(answers.items())}
    return {"clients": CLIENTS, "seconds of load": seconds} | found | milliseconds("under load", took)


def count_final_states(service: ServiceProcess) -> dict[str, float]:
    """Wait for all jobs, and count them by final status."""
    while unfinished_jobs(service):
        time.sleep(1)
    ended = Counter(job["status"] for job in list_jobs(service, ""))
    return {f"jobs {status}": count for status, count in sorted(ended.items())}


def unfinished_jobs(service: ServiceProcess) -> list[dict[str, str]]:
    """Return the jobs that are queued or running."""
    return list_jobs(service, "status=accepted&status=running&")


def list_jobs(service: ServiceProcess, query: str) -> list[dict[str, str]]:
    """Return all jobs that match a query."""
    found, page = [], 1000
    while batch := service.http.get(f"/jobs?{query}limit={page}&offset={len(found)}").json()["jobs"]:
        found += batch
    return found


if __name__ == "__main__":
    service_faults.main() if sys.argv[1:] == ["faults"] else main()
