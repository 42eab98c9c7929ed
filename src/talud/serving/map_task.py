"""Task of a worker: the map of a job, resumed where a worker left it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from talud.cluster import SendMessage
from talud.engine.runtime import Model, RegistryVersion
from talud.errors import BusyError, TaludError
from talud.mapping.options import MapOptions
from talud.products import prediction
from talud.products.rasters import Products
from talud.text import counted

WORKER_NICENESS = 10  # of a worker beside its service: who asks how a job fares is answered before the next tile
BUSY_TIMEOUT_SECONDS = (
    120  # seconds; a worker whose service was killed is done with its tile, and so with its map, by then
)


@dataclass(frozen=True)
class MapTask:
    """A map to be made.

    Attributes:
        raster: a file that the worker reaches under the same path.
        model: likewise; a copy of the job's own.
        origin: of the model in the registry.
        out: folder of the map.
        options: of the map.
        threads: of one pass; None: the physical cores.
        nice: by how much the worker steps back behind other processes.
    """

    raster: Path
    model: Path
    origin: RegistryVersion
    out: Path
    options: MapOptions
    threads: int | None
    nice: int


@dataclass(frozen=True)
class MapResult:
    """Result of a job in its worker.

    Attributes:
        message: one line for a person.
        provider: that the network ran on.
        seconds: that this worker took.
        tiles: that it mapped; not those that an earlier worker had finished.
    """

    message: str
    provider: str
    seconds: float
    tiles: int


def map_landslides(task: MapTask, report: SendMessage) -> MapResult:
    """Make the map; of its tiles [done, all] is told.

    A map that an earlier worker finished, before the service could note it, is taken as it is.
    """
    os.nice(max(task.nice - os.nice(0), 0))
    report([0, 0])
    began = time.monotonic()
    if found := _read_record(task.out):
        return MapResult(_summary(found), found["provider"], time.monotonic() - began, 0)
    model = Model.load(task.model, task.origin, threads=task.threads)
    while True:
        try:
            result = prediction.predict(
                model,
                task.raster,
                task.out,
                task.options,
                lambda done, tiles: report([done, tiles]),
            )
        except BusyError:
            if time.monotonic() - began > BUSY_TIMEOUT_SECONDS:
                raise
            report([0, 0])
            time.sleep(1)
        except TaludError as error:
            # The journal's hint to repeat a command is of no use to a client, whose job's files are removed.
            if isinstance(error.__cause__, TaludError):
                raise error.__cause__ from None
            raise
        else:
            message = _summary(asdict(result) | {"share_not_mapped": result.share_not_mapped})
            return MapResult(message, result.provider, time.monotonic() - began, result.tiles - result.taken_over)


def _read_record(out: Path) -> dict[str, Any] | None:
    """Return the record of a finished map.

    A folder with a record holds a complete map.
    """
    try:
        found: dict[str, Any] = json.loads(Products.within(out).record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _summary(facts: Mapping[str, Any]) -> str:
    """Return a one-line summary of a map from its record."""
    found = f"{counted(facts['landslides'], 'landslide')}, {facts['landslide_area_m2'] / 10_000:,.1f} ha"
    return f"{found}; {facts['share_not_mapped']:.1%} of the raster is not mapped"
