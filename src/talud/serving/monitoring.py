"""Log and metrics of the service."""

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
_LIBRARY_LEVELS = {  # logger of a library → the least level that an operator has use for
    "distributed": logging.CRITICAL,  # talud itself says when workers are lost
    "httpx": logging.CRITICAL,
    "alembic": logging.WARNING,
    "rasterio": logging.WARNING,  # what GDAL signals is in the message of the job or the answer that fails of it
    "pyogrio": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure_logging(style: LogStyle) -> None:
    """Configure the log: one line on stderr for each event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)


def job_fields(job: Job) -> dict[str, Any]:
    """Return the extra fields of a line about a job: its id and its key's name."""
    return {"job": job.id, "key": job.key}


def raster_reference(request: MapRequest) -> str:
    """Return a request's raster without query, which may hold a signature."""
    return request.raster.partition("?")[0]


class TextFormatter(logging.Formatter):
    """Log lines for people, each followed by its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Format the message on one line, with the job and the key before it."""
        known = [f"{name} {value}" for name in ("job", "key") if (value := getattr(record, name, None))]
        record.message = _escape_line_breaks(f"{', '.join(known)}: {record.message}" if known else record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Log lines as JSON objects that include the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as JSON."""
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
    """Escape characters of a message that would start a new line.

    The text of a client may contain them.
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)


REQUEST_BUCKETS_SECONDS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    10,
)  # seconds; what is asked for often stays below 0.05


@dataclass(frozen=True)
class Metrics:
    """The figures of one service.

    Attributes:
        request_seconds: seconds that each answer took, by route, method and status.
        jobs_ended: that ended, by status.
        tiles_mapped: of the maps that were made.
        map_seconds: that the making of each map took, by what the network ran on.
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
            "jobs_ended": Counter("talud_jobs_ended", "Jobs that ended", ("status",), registry=self._registry),
            "tiles_mapped": Counter("talud_tiles_mapped", "Tiles of the maps that were made", registry=self._registry),
            "map_seconds": Histogram(
                "talud_map_seconds", "Time that the making of a map took, by what the network ran on", ("provider",),
                buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400), registry=self._registry,
            ),
        }  # fmt: skip
        for name, metric in made.items():
            object.__setattr__(self, name, metric)

    def add_live_gauges(self, jobs: JobStore, results: Path) -> None:
        """Add the waiting and running jobs and the free disk space to the figures."""
        self._registry.register(_LiveGauges(jobs, results))

    def render(self) -> bytes:
        """Return all figures in Prometheus's format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class _LiveGauges:
    """Figures that are read when they are requested."""

    jobs: JobStore
    results: Path

    def collect(self) -> Iterable[Metric]:
        """Return the present figures."""
        waiting = GaugeMetricFamily("talud_jobs", "Jobs that wait or run", labels=("status",))
        for status in UNFINISHED:
            waiting.add_metric((status,), self.jobs.count((status,)))
        yield waiting
        disk = shutil.disk_usage(self.results)
        yield GaugeMetricFamily("talud_results_free_bytes", "Room on the disk of the results", value=disk.free)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the figures are known when they are collected."""
        return ()
