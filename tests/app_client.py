"""Service application in the process of a test, with jobs and maps."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from talud.engine.runtime import Model
from talud.mapping.options import MapOptions
from talud.products.prediction import predict
from talud.serving.app import create_app
from talud.serving.database import utc_now
from talud.serving.service import Service
from talud.serving.settings import Settings
from talud.serving.tables import Job, MapRequest


def make_settings(root: Path, **others: object) -> Settings:
    """Return settings of a service with its folders below `root`."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    return Settings(data=root / "data", results=root / "results", **others)


@contextmanager
def run_app(settings: Settings) -> Iterator[tuple[TestClient, Service]]:
    """Run a service in which each client is an administrator; yield a client."""
    app = create_app(settings, open_to_all=True)
    with TestClient(app, base_url="http://localhost") as client:
        yield client, app.state.service


def add_job(service: Service, raster: str, status: str) -> str:
    """Add a job with a given status to the database; return its id."""
    request, moment = MapRequest(raster=raster, model="tiny", version="1"), utc_now()
    row = Job(
        id=str(uuid.uuid4()), key="local", status=status, message="", progress=0, request=request,
        created=moment, updated=moment,
    )  # fmt: skip
    with Session(service.database.engine, expire_on_commit=False) as session, session.begin():
        session.add(row)
    return row.id


def add_finished_job(service: Service, model: Path, raster: Path, threshold: float = 0.5) -> str:
    """Add a finished job with a real map; return its id."""
    job = add_job(service, str(raster.relative_to(service.settings.data)), "successful")
    predict(Model.load(model), raster, service.job_folders.map_folder(job), MapOptions(threshold=threshold))
    return job
