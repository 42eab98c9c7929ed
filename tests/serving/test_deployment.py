"""Tests of the container's files and of an installation as in the container."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fresh_clone import ROOT
from service_process import run_service

ABSENT = ("tensorflow", "keras", "dvc", "matplotlib", "onnxruntime_gpu", "skimage", "sklearn", "h5py", "jax")


def read_lock_file(path: Path) -> dict[str, set[str]]:
    """Return the versions of each package in a lock file."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        name, _, version = line.partition(" ;")[0].partition("==")
        found.setdefault(name, set()).add(version.strip())
    return found


def test_service_lock_file_is_subset_of_project_lock_file() -> None:
    service, everything = read_lock_file(ROOT / "serving/requirements.lock"), read_lock_file(ROOT / "requirements.lock")
    assert {name: everything.get(name) for name in service} == service
    assert not {"tensorflow", "keras", "dvc", "matplotlib"} & service.keys()
    assert {"fastapi", "onnxruntime-gpu", "rio-tiler", "mlflow-skinny"} <= service.keys()


def test_container_files_refer_to_existing_files() -> None:
    dockerfile = (ROOT / "serving/Dockerfile").read_text()
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for name in copied.split():
            assert (ROOT / name).exists(), name
    services = yaml.safe_load((ROOT / "serving/compose.yaml").read_text())["services"]
    assert sorted(services) == ["mlflow", "postgres", "scheduler", "service", "worker"]
    assert "USER talud" in dockerfile
    assert "HEALTHCHECK" in dockerfile


@pytest.mark.slow
def test_container_installation_maps_without_tensorflow(service_project: Path, tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(wheel, check=True, capture_output=True)
    environment = tmp_path / "talud"
    (made,) = tmp_path.glob("talud-*.whl")
    # Modules are compiled when the service imports them: pip would compile all of them, in half of the time.
    install = ["sh", ROOT / "serving/install", environment, "cpu", made]
    subprocess.run(install, check=True, capture_output=True, env=os.environ | {"PIP_COMPILE": "0"})
    present = {path.name for path in next(environment.glob("lib/python*/site-packages")).iterdir()}
    assert not present & set(ABSENT)
    assert {"talud", "onnxruntime"} <= present
    with run_service(service_project, {}, {"PYTHONPATH": ""}, [environment / "bin/talud"]) as service:
        job = service.ended(service.ask("small.tif"))
        assert job["status"] == "successful", job
        assert service.http.get("/health/ready").status_code == 200
