"""A service over a small data folder, and a finished job with a real map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient

from talud.inference.prediction import predict
from talud.inference.runtime import Model
from talud.serving.app import create_app
from talud.serving.jobs import Request
from talud.serving.service import Service
from talud.serving.settings import Settings


def settings_of(root: Path, **others: object) -> Settings:
    """The settings of an agency whose folders lie below `root`."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    return Settings(data=root / "data", results=root / "results", **others)


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[TestClient, Service]]:
    """A service that runs, to which whoever asks is the administrator."""
    app = create_app(settings, open_to_all=True)
    with TestClient(app) as client:
        yield client, app.state.service


def finished_job(
    service: Service, model: Path, raster: Path, threshold: float = 0.5, status: str = "successful"
) -> str:
    """The id of a job whose map lies in its folder."""
    job = service.jobs.create("local", Request(raster=raster.name, path=str(raster), model="tiny", version="1"))
    predict(Model.load(model), raster, service.settings.results / "jobs" / job.id / "map", threshold)
    service.jobs.end(job.id, status, "done")
    return job.id
