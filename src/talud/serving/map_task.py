"""Task of a worker: map the raster of a job."""

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

WORKER_NICENESS = 10  # of workers on the machine of the service, so that requests are answered quickly
BUSY_TIMEOUT_SECONDS = 120  # by then, a worker of a killed service has finished its tile and released the map


@dataclass(frozen=True)
class MapTask:
    """Inputs, options and output folder of a map.

    Attributes:
        raster: path of the raster, readable by the worker.
        model: path of the job's copy of the model, readable by the worker.
        origin: name and version of the model in the registry.
        out: output folder of the map.
        options: options of the map.
        threads: number of threads of the network; None: the physical cores.
        nice: niceness of the worker process.
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
    """Result of a map task.

    Attributes:
        message: one-line summary for users.
        provider: execution provider of ONNX Runtime.
        seconds: duration in this worker.
        tiles: number of tiles that this worker mapped, without those of earlier workers.
    """

    message: str
    provider: str
    seconds: float
    tiles: int


def map_landslides(task: MapTask, report: SendMessage) -> MapResult:
    """Map a raster, resuming from the tiles of an earlier worker.

    A complete map of an earlier worker, which the service did not record, is not made again.

    Args:
        task: raster, model, options and output folder.
        report: callback that receives [finished tiles, all tiles].
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
            # Drop the journal's advice to repeat the command: the files of a failed job are removed.
            if isinstance(error.__cause__, TaludError):
                raise error.__cause__ from None
            raise
        else:
            message = _summary(asdict(result) | {"share_not_mapped": result.share_not_mapped})
            return MapResult(message, result.provider, time.monotonic() - began, result.tiles - result.taken_over)


def _read_record(out: Path) -> dict[str, Any] | None:
    """Return the record of a finished map, or None."""
    try:
        found: dict[str, Any] = json.loads(Products.within(out).record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _summary(facts: Mapping[str, Any]) -> str:
    """Return a one-line summary of a map from its record."""
    found = f"{counted(facts['landslides'], 'landslide')}, {facts['landslide_area_m2'] / 10_000:,.1f} ha"
    return f"{found}; {facts['share_not_mapped']:.1%} of the raster is not mapped"
