"""Logging and metrics of the service."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from talud.serving.jobs import JobStore
from talud.serving.tables import UNFINISHED, Job, MapRequest

LogStyle = Literal["text", "json"]
log = logging.getLogger("talud.service")
_LIBRARY_LEVELS = {  # logger of a library → lowest level that is useful to an operator
    "distributed": logging.CRITICAL,  # talud itself logs the loss of workers
    "httpx": logging.CRITICAL,
    "alembic": logging.WARNING,
    "rasterio": logging.WARNING,  # GDAL's errors are in the message of the failed job or request
    "pyogrio": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure_logging(style: LogStyle) -> None:
    """Configure logging to stderr, with one line for each event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def job_fields(job: Job) -> dict[str, Any]:
    """Return the extra log fields of a job."""
    return {"job": job.id, "key": job.key}


def raster_reference(request: MapRequest) -> str:
    """Return a request's raster without the query of its URL."""
    return request.raster.partition("?")[0]


class TextFormatter(logging.Formatter):
    """Formatter of human-readable log lines, followed by tracebacks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Format the message in one line, after the job and the key."""
        known = [f"{name} {value}" for name in ("job", "key") if (value := getattr(record, name, None))]
        record.message = _escape_line_breaks(f"{', '.join(known)}: {record.message}" if known else record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Formatter of log lines as JSON objects, with tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a JSON object."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "job": getattr(record, "job", None),
            "key": getattr(record, "key", None),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


def _escape_line_breaks(message: str) -> str:
    """Escape characters with which clients could forge log lines.

    These are all characters that are not printable.
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)


# Frequent requests take less than 0.05 s.
REQUEST_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


@dataclass(frozen=True)
class Metrics:
    """Prometheus metrics of a service.

    Attributes:
        request_seconds: duration of each request, by route, method and status code.
        jobs_ended: number of ended jobs, by status.
        tiles_mapped: number of mapped tiles.
        map_seconds: duration of each map, by execution provider.
    """

    _registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    request_seconds: Histogram = field(init=False)
    jobs_ended: Counter = field(init=False)
    tiles_mapped: Counter = field(init=False)
    map_seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        made = {
            "request_seconds": Histogram(
                "talud_request_seconds", "Duration of requests", ("route", "method", "status"),
                buckets=REQUEST_BUCKETS_SECONDS, registry=self._registry,
            ),
            "jobs_ended": Counter("talud_jobs_ended", "Ended jobs", ("status",), registry=self._registry),
            "tiles_mapped": Counter("talud_tiles_mapped", "Mapped tiles", registry=self._registry),
            "map_seconds": Histogram(
                "talud_map_seconds", "Duration of maps, by execution provider", ("provider",),
                buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400), registry=self._registry,
            ),
        }  # fmt: skip
        for name, metric in made.items():
            object.__setattr__(self, name, metric)

    def add_live_gauges(self, jobs: JobStore, results: Path) -> None:
        """Add gauges of unfinished jobs and free disk space."""
        self._registry.register(_LiveGauges(jobs, results))

    def render(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class _LiveGauges:
    """Collector of metrics that are measured on request."""

    jobs: JobStore
    results: Path

    def collect(self) -> Iterable[Metric]:
        """Yield the current values."""
        waiting = GaugeMetricFamily("talud_jobs", "Waiting and running jobs", labels=("status",))
        for status in UNFINISHED:
            waiting.add_metric((status,), self.jobs.count((status,)))
        yield waiting
        disk = shutil.disk_usage(self.results)
        yield GaugeMetricFamily("talud_results_free_bytes", "Free space on the disk of the results", value=disk.free)

    def describe(self) -> Iterable[Metric]:
        """Return no description, because collecting needs the database."""
        return ()
