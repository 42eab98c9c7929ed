"""Tests of the service's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service_process import run_service
from stack_files import noise, write_stack


@pytest.mark.slow
@pytest.mark.parametrize("style", ["text", "json"])
def test_log_reports_jobs_but_no_gdal_errors(style: str, service_project: Path, tmp_path: Path) -> None:
    broken = write_stack(service_project / "stacks" / "broken.tif", noise(120, 160))
    content = broken.read_bytes()
    with run_service(service_project, {"log": style, "results": str(tmp_path / "results")}) as service:
        job = service.ask("small.tif")
        assert service.ended(job)["status"] == "successful"
        service.http.delete(f"/jobs/{job}")
        broken.write_bytes(content[: len(content) // 2])
        for path in ("/rasters", "/jobs/none", "/rasters/tiles/optical/3/2/3.png?raster=broken.tif"):
            service.http.get(path)
        service.http.put("/uploads/a.tif", content=b"II*\0no raster")
        upload = service.http.put("/uploads/b.tif", content=(service_project / "stacks/small.tif").read_bytes())
        service.process.terminate()
        lines = service.process.communicate(timeout=60)[0].splitlines()
    broken.unlink()
    assert upload.status_code == 201
    assert not [line for line in lines if "GDAL" in line or "CPLE" in line or "Traceback" in line]
    job_lines = [line for line in lines if job in line]
    assert len(job_lines) == 4
    for line, message in zip(
        job_lines, ("accepted: small.tif", "started: small.tif", "landslides", "dismissed by"), strict=True
    ):
        assert message in line
    if style == "json":
        log = [json.loads(line) for line in lines if line.startswith("{")]
        found = [line for line in log if line.get("job") == job]
        assert [sorted(line) for line in found] == [["job", "key", "level", "message", "time"]] * 4
        assert {(line["level"], line["key"]) for line in found} == {("info", "local")}
        assert [line["message"] for line in log if line["message"].startswith("uploaded: uploads/")]
    else:
        assert all(f"INFO job {job}, key local: " in line for line in job_lines)


def test_log_escapes_line_breaks_of_clients() -> None:
    import logging

    from talud.serving.monitoring import JsonFormatter, TextFormatter

    record = logging.LogRecord(
        "talud.service", logging.INFO, "", 0, "GET %s", ("/a\r\n2026-01-01 INFO forged\u2028x",), None
    )
    for formatter in (TextFormatter("%(levelname)s %(message)s"), JsonFormatter()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert "forged" in line
