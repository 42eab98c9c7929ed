"""Executor on several workers.

Workers are processes of this machine, or those of a Dask cluster.

The missing tiles are divided into shards. A worker opens model and raster once, and stores each tile of a shard in the
journal, as a single process would; so the finished tiles of a killed worker are kept, and nothing has to be merged.
Dask gives a lost worker's shard to another worker, which skips the tiles that exist.

The workers share a copy of the model in the run's folder of the journal, which every worker can read and which survives
any of them. A worker computes only as long as the copy exists.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import onnxruntime

from talud import cluster
from talud.cluster import Cluster, LostTask, SendMessage, run_tasks
from talud.cluster_connection import Workers, machine_of
from talud.engine.runtime import Model, RegistryVersion
from talud.engine.session import CUDA_PROVIDER, Provider, physical_cores
from talud.engine.tiling import Tile
from talud.errors import ClusterError, SourceError, TaludError
from talud.files import md5, translate_write_errors
from talud.mapping.journal import Journal, describe_change
from talud.mapping.reader import StackReader, open_stack, small_gdal_cache
from talud.mapping.tiles import PassOptions, compute_tiles

if TYPE_CHECKING:
    from distributed import Client

MAX_SHARD_PIXELS = 8 * 1024**2  # about one minute on one core, the most that the loss of a worker may cost
MIN_SHARDS_PER_SLOT = 4  # so that all slots finish at about the same time


@dataclass(frozen=True)
class Shard:
    """Tiles that a worker computes one after the other."""

    tiles: tuple[Tile, ...]

    def __str__(self) -> str:
        """Return the rows that the shard covers."""
        cores = [tile.core for tile in self.tiles]
        return f"rows {cores[0].row_off} to {max(core.row_off + core.height for core in cores)}"


@dataclass(frozen=True)
class SharedModel:
    """Copy of the model that all workers can read.

    Attributes:
        path: path of the copy.
        digest: MD5 of the file.
        registered_as: name and version in the registry.
        provider: device to run on.
    """

    path: Path = field(compare=False)
    digest: str
    registered_as: RegistryVersion | None
    provider: Provider


@dataclass(frozen=True)
class ShardContext:
    """Context that a worker needs for its shards.

    Attributes:
        model: model to run.
        raster: raster as given to `predict`, as an absolute path if it is a path.
        journal: journal of the map.
        passes: options of the network's passes.
        environment: facts that the tiles depend on, as in the calling process (see `_environment`).
        slots: address of a machine → number of tiles that its workers compute at once.
    """

    model: SharedModel
    raster: str
    journal: Journal
    passes: PassOptions
    environment: Mapping[str, Any]
    slots: Mapping[str, int]


@dataclass(frozen=True)
class OpenRaster:
    """Raster that a worker's thread keeps open between shards.

    Attributes:
        job: context that it was opened for.
        stack: open raster.
        resources: resources to close, from any thread.
        busy: lock that the thread holds while it reads.
    """

    job: ShardContext
    stack: StackReader
    resources: ExitStack
    busy: Lock = field(default_factory=Lock, compare=False)


# Thread → its open raster; a GDAL dataset serves one thread at a time.
_open_rasters: dict[int, OpenRaster] = {}
# Held while a raster is opened, so that none is opened while those of an ended job are closed.
_opening_lock = Lock()


@dataclass(frozen=True)
class WorkerExecutor:
    """Executor that computes tiles on workers.

    Attributes:
        model: model to run.
        stack: open raster; the workers can open it under the same name.
        passes: options of the network's passes.
        workers: number of processes on this machine, or address of a Dask scheduler, whose workers can access the
            journal's disk under the same path.
    """

    model: Model
    stack: StackReader
    passes: PassOptions
    workers: Workers

    def run(self, tiles: Sequence[Tile], journal: Journal, report: Callable[[int], object]) -> None:
        """Compute tiles; as `Executor.run`.

        Raises:
            ParamsError: The number of workers is not valid.
            ClusterError: Dask is not installed, or the workers cannot be started, differ from this process, or are
                lost.
            SourceError: A worker cannot read the raster.
            ModelError: The network fails.
            OutputError: A tile cannot be stored.
        """
        if not tiles:
            return
        with translate_write_errors(journal.run):
            copy = Path(shutil.copy(self.model.path, journal.run / "model.onnx"))
        try:
            with cluster.open_cluster(self.workers, journal.run, {}, exclusive=False) as found:
                _check_shared_disk(found.client, copy)
                job = self._job(copy, journal, found.threads_by_machine())
                try:
                    _distribute(job, _cut_into_shards(tiles, sum(job.slots.values())), found, report)
                finally:
                    # Without the copy, running shards end after their current tile, and the rasters can be closed.
                    copy.unlink(missing_ok=True)
                    if found.client.status == "running":
                        found.client.run(_close_rasters, job, on_error="ignore")
        finally:
            copy.unlink(missing_ok=True)

    def _job(self, copy: Path, journal: Journal, slots: Mapping[str, int]) -> ShardContext:
        provider: Provider = "cuda" if self.model.provider == CUDA_PROVIDER else "cpu"
        file = SharedModel(copy, md5(copy), self.model.registered_as, provider)
        return ShardContext(
            file, self.stack.info.location, journal, self.passes, _environment(self.model, self.stack), slots
        )


def _distribute(job: ShardContext, shards: Sequence[Shard], found: Cluster, report: Callable[[int], object]) -> None:
    """Let workers compute all shards.

    Raises:
        TaludError: The first error of a worker.
        ClusterError: Workers or the scheduler were lost.
    """
    done = 0
    for shard, result in run_tasks(partial(_compute_shard, job), shards, found):
        if isinstance(result, LostTask):
            raise ClusterError(
                f"{result.deaths} workers died while they mapped {shard}; each needs up to 3 GB of memory"
            )
        done += len(shard.tiles)
        report(done)


def _check_shared_disk(client: Client, copy: Path) -> None:
    """Check that workers can access the journal's disk.

    Raises:
        ClusterError: A worker cannot.
    """
    for address, found in client.run(os.path.isfile, str(copy), on_error="ignore").items():
        if not found:
            raise ClusterError(
                f"worker {address} cannot access {copy.parent}; the map's folder must be on a disk that all workers "
                "can access under the same path"
            )


def _cut_into_shards(tiles: Sequence[Tile], slots: int) -> list[Shard]:
    """Divide tiles into shards, in their order."""
    pixels = max(tile.core.width * tile.core.height for tile in tiles)
    length = max(min(MAX_SHARD_PIXELS // pixels, len(tiles) // (MIN_SHARDS_PER_SLOT * slots)), 1)
    return [Shard(tuple(tiles[start : start + length])) for start in range(0, len(tiles), length)]


def _compute_shard(job: ShardContext, shard: Shard, _: SendMessage) -> None:
    """Compute a shard, in a worker."""
    from distributed import get_worker

    worker = get_worker()
    slots = max(job.slots.get(machine_of(worker.address), 1), worker.state.nthreads)
    try:
        model = _load_model(job.model, max(physical_cores() // slots, 1))
        opening = _thread_raster(job, model)
    except TaludError as error:
        raise type(error)(f"worker {worker.address}: {error}") from error
    unfinished = (tile for tile in shard.tiles if job.journal.read(tile) is None)
    wanted = itertools.takewhile(lambda _: job.model.path.exists(), unfinished)
    with opening.busy:
        compute_tiles(model, opening.stack, wanted, job.journal, job.passes)


@lru_cache(maxsize=1)
def _load_model(file: SharedModel, threads: int) -> Model:
    """Load a worker's model, which stays open between shards."""
    if md5(file.path) != file.digest:
        raise ClusterError(f"{file.path}: differs from the file that was written there; check the disk")
    return Model.load(file.path, file.registered_as, file.provider, threads)


def _thread_raster(job: ShardContext, model: Model) -> OpenRaster:
    """Return the open raster of this thread, which is kept between shards.

    Raises:
        SourceError: The raster cannot be read, even after a retry.
        MismatchError: The raster does not fit the model.
        ClusterError: The job has ended; or the raster, or another fact that the tiles depend on, differs from the
            calling process.
    """
    thread = get_ident()
    opening = _open_rasters.get(thread)
    if opening is None or opening.job != job:
        if opening:  # it belongs to a failed run
            _open_rasters.pop(thread).resources.close()
        with _opening_lock:
            if not job.model.path.exists():
                raise ClusterError("the task was cancelled")
            opening = _open_rasters[thread] = _open_raster(job, model)
    return opening


def _open_raster(job: ShardContext, model: Model) -> OpenRaster:
    """Open a raster in a thread of its own.

    rasterio requires that a dataset is closed in the thread that opened it.
    """
    with ExitStack() as held:
        thread, opened = held.enter_context(ThreadPoolExecutor(1)), ExitStack()
        held.callback(lambda: thread.submit(opened.close).result())
        thread.submit(opened.enter_context, small_gdal_cache()).result()
        try:
            stack = thread.submit(opened.enter_context, open_stack(job.raster, model.contract)).result()
        except SourceError:  # a network share may be unavailable for a moment
            stack = thread.submit(opened.enter_context, open_stack(job.raster, model.contract)).result()
        _check_environment(job.environment, _environment(model, stack))
        return OpenRaster(job, stack, held.pop_all())


def _close_rasters(job: ShardContext) -> None:
    """Close the files of a job in a worker."""
    _load_model.cache_clear()
    with _opening_lock:
        threads = [thread for thread, opening in _open_rasters.items() if opening.job == job]
        closing = [_open_rasters.pop(thread) for thread in threads]
    for opening in closing:
        with opening.busy:
            opening.resources.close()


def _environment(model: Model, stack: StackReader) -> dict[str, Any]:
    """Return facts that may differ on a worker.

    The tiles depend on them.
    """
    return {
        "talud": version("talud"),
        "ONNX Runtime": onnxruntime.__version__,
        "provider": model.provider,
        **model.numeric_environment,
        **stack.info.identity,
    }


def _check_environment(facts: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Check that a worker's environment is equal."""
    changes = [describe_change(name, found[name], facts[name], "here") for name in facts if found[name] != facts[name]]
    if changes:
        raise ClusterError(
            f"differs from this process: {', '.join(changes)}; install the same versions and use the same raster"
        )
