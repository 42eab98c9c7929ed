"""What a service counts and measures, for Prometheus."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from talud.serving.jobs import JobStore
from talud.serving.tables import UNFINISHED

FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)  # seconds; what is asked for often stays below 0.05


@dataclass(frozen=True)
class Metrics:
    """The figures of one service.

    Attributes:
        requests: seconds that each answer took, by route, method and status.
        jobs: that ended, by status.
        tiles: of the maps that were made.
        seconds: that the making of each map took, by what the network ran on.
    """

    _registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Histogram = field(init=False)
    jobs: Counter = field(init=False)
    tiles: Counter = field(init=False)
    seconds: Histogram = field(init=False)

    def __post_init__(self) -> None:
        made = {
            "requests": Histogram(
                "talud_request_seconds", "Time to an answer", ("route", "method", "status"), buckets=FAST,
                registry=self._registry,
            ),
            "jobs": Counter("talud_jobs_ended", "Jobs that ended", ("status",), registry=self._registry),
            "tiles": Counter("talud_tiles_mapped", "Tiles of the maps that were made", registry=self._registry),
            "seconds": Histogram(
                "talud_map_seconds", "Time that the making of a map took, by what the network ran on", ("provider",),
                buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400), registry=self._registry,
            ),
        }  # fmt: skip
        for name, metric in made.items():
            object.__setattr__(self, name, metric)

    def watch(self, jobs: JobStore, results: Path) -> None:
        """Tell of the jobs that wait or run, and of the room on the disk, whenever somebody asks."""
        self._registry.register(_Now(jobs, results))

    def text(self) -> bytes:
        """All of it, in Prometheus's format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class _Now:
    """What is looked at when it is asked for."""

    jobs: JobStore
    results: Path

    def collect(self) -> Iterable[Metric]:
        """The figures of this moment."""
        waiting = GaugeMetricFamily("talud_jobs", "Jobs that wait or run", labels=("status",))
        for status in UNFINISHED:
            waiting.add_metric((status,), self.jobs.count((status,)))
        yield waiting
        disk = shutil.disk_usage(self.results)
        yield GaugeMetricFamily("talud_results_free_bytes", "Room on the disk of the results", value=disk.free)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is there is known when it is asked for."""
        return ()
