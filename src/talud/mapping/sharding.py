"""The tiles of a map found by several workers: processes of this machine, or those of a Dask cluster.

The missing tiles are cut in shards. A worker opens model and raster itself, once, and puts each tile of a shard into
the journal, as one process would; so what it had finished when it was killed is not lost, and nothing has to be merged.
Dask gives a lost worker's shard to another one, which passes over the tiles that are there.

What the workers share is a copy of the model in the journal's folder of the run: where the tiles are written it can be
read, and no worker that dies takes it along. While it lies there the run goes on.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

import onnxruntime

from talud.cluster import Workers, check_release, connected, host
from talud.engine.runtime import Model, Origin
from talud.engine.session import CUDA, Provider, physical_cores
from talud.engine.tiling import Tile
from talud.errors import ClusterError, SourceError, TaludError
from talud.files import md5, writing
from talud.mapping.journal import Journal, change
from talud.mapping.reader import StackReader, frugal, open_stack
from talud.mapping.tile_loop import Passes, finish_tiles

if TYPE_CHECKING:
    from distributed import Client

SHARD = 8 * 1024**2  # pixels, at most: about a minute of one core, which is what the loss of a worker may cost
ROUNDS = 4  # shards for each slot, at least, so that all end at about the same time


@dataclass(frozen=True)
class Shard:
    """Tiles that a worker finishes one after the other."""

    tiles: tuple[Tile, ...]

    def __str__(self) -> str:
        """Where it lies, for a reader."""
        cores = [tile.core for tile in self.tiles]
        return f"rows {cores[0].row_off} to {max(core.row_off + core.height for core in cores)}"


@dataclass(frozen=True)
class ModelFile:
    """A model, as workers find it.

    Attributes:
        path: of a copy that they all reach.
        digest: MD5 of the file, by which a worker knows it again.
        origin: its place in the registry.
        provider: to run on.
    """

    path: Path = field(compare=False)
    digest: str
    origin: Origin | None
    provider: Provider


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, beside its shard.

    Attributes:
        model: to run.
        raster: as `predict` was given it, as an absolute path where it is one.
        journal: of the map.
        passes: how the network is run.
        facts: what the tiles depend on, as the calling process has it (see `_facts`).
        slots: address of a machine → how many tiles its workers map at once.
    """

    model: ModelFile
    raster: str
    journal: Journal
    passes: Passes
    facts: Mapping[str, Any]
    slots: Mapping[str, int]


@dataclass(frozen=True)
class Opening:
    """A raster that a thread of a worker keeps open between the shards of a job.

    Attributes:
        job: that it was opened for.
        stack: the raster.
        held: what closes it, from any thread.
    """

    job: Job
    stack: StackReader
    held: ExitStack


_openings: dict[int, Opening] = {}  # thread → its own, for a GDAL dataset serves one at a time


def finish_shards(
    model: Model,
    raster: str | Path,
    stack: StackReader,
    tiles: Sequence[Tile],
    journal: Journal,
    passes: Passes,
    workers: Workers,
    tell: Callable[[int], object],
) -> None:
    """Finish tiles of a map by workers.

    Args:
        model: to run.
        raster: a path, or whatever else GDAL opens, that the workers reach under the same name.
        stack: the same, open.
        tiles: of its tiling, at least one.
        journal: of the map, on a disk that the workers reach under the same path.
        passes: how the network is run.
        workers: a number of processes on this machine, or the address of a Dask scheduler. A script must ask for
            processes under `if __name__ == "__main__":`, for each of them runs what stands outside of it.
        tell: told, after each shard, how many tiles are done.

    Raises:
        ParamsError: there is no such number of workers.
        ClusterError: Dask is not installed, the workers cannot be had, differ from this process, or are lost.
        SourceError: a worker cannot read the raster.
        ModelError: the network fails.
        OutputError: a tile cannot be kept.
    """
    with writing(journal.run):
        copy = Path(shutil.copy(model.path, journal.run / "model.onnx"))
    try:
        with connected(workers, journal.run) as client:
            _check(client, copy)
            slots = _slots(client)
            file = ModelFile(copy, md5(copy), model.origin, "cuda" if model.provider == CUDA else "cpu")
            place = str(Path(raster).absolute()) if Path(raster).exists() else str(raster)
            job = Job(file, place, journal, passes, _facts(model, stack), slots)
            _run(client, list(_shards(tiles, sum(slots.values()))), job, tell)
    finally:
        copy.unlink(missing_ok=True)


def _check(client: Client, copy: Path) -> None:
    """That the workers have the same release, and reach the disk. Asked by what any Python knows, talud or not.

    Raises:
        ClusterError: one has not, or does not.
    """
    check_release(client)
    for address, found in client.run(os.path.isfile, str(copy), on_error="ignore").items():
        if not found:
            raise ClusterError(
                f"worker {address} does not see {copy.parent}; the map's folder must lie on a disk that all workers "
                "reach under the same path"
            )


def _slots(client: Client) -> dict[str, int]:
    """Address of a machine → how many tiles its workers map at once: one for each of their threads."""
    slots: dict[str, int] = {}
    for address, threads in client.nthreads().items():
        machine = host(address)
        slots[machine] = slots.get(machine, 0) + threads
    return slots


def _shards(tiles: Sequence[Tile], slots: int) -> Iterator[Shard]:
    """Tiles in a row, as many as make a shard."""
    pixels = max(tile.core.width * tile.core.height for tile in tiles)
    length = max(min(SHARD // pixels, len(tiles) // (ROUNDS * slots)), 1)
    for start in range(0, len(tiles), length):
        yield Shard(tuple(tiles[start : start + length]))


def _run(client: Client, shards: Sequence[Shard], job: Job, tell: Callable[[int], object]) -> None:
    """Let the workers finish all shards.

    Raises:
        TaludError: what a worker raised first.
        ClusterError: workers or scheduler were lost.
    """
    from distributed import as_completed

    futures = client.map(_finish, shards, job=job, pure=False, key="talud-shard", batch_size=256)
    shard_of = dict(zip(futures, shards, strict=True))
    done = 0
    for future in as_completed(futures, loop=client.loop):
        with _lost(shard_of[future]):
            future.result()
        done += len(shard_of[future].tiles)
        tell(done)
    client.run(_close, job, on_error="ignore")


@contextmanager
def _lost(shard: Shard) -> Iterator[None]:
    """Tell of lost workers in one line."""
    from distributed import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers in turn died while they mapped {shard}; each needs up to 3 GB of "
            "memory"
        ) from error
    except ImportError as error:
        raise ClusterError(f"a worker lacks a package: {error}; give it the same installation") from error
    except CancelledError as error:
        raise ClusterError("the scheduler was lost, or another process has cancelled the work") from error


def _finish(shard: Shard, job: Job) -> None:
    """Finish a shard, in a worker."""
    try:
        _finish_here(shard, job)
    except TaludError as error:
        told = type(error)(str(error))
    else:
        return
    raise told  # alone: GDAL's exceptions, which an error remembers as its cause, do not survive the wire


def _finish_here(shard: Shard, job: Job) -> None:
    from distributed import get_worker

    worker = get_worker()
    slots = max(job.slots.get(host(worker.address), 1), worker.state.nthreads)
    try:
        model = _model(job.model, max(physical_cores() // slots, 1))
        stack = _stack(job, model)
    except TaludError as error:
        raise type(error)(f"worker {worker.address}: {error}") from error
    unfinished = (tile for tile in shard.tiles if job.journal.read(tile) is None)
    going_on = itertools.takewhile(lambda _: job.model.path.exists(), unfinished)
    finish_tiles(model, stack, going_on, job.journal, job.passes)


@lru_cache(maxsize=1)
def _model(file: ModelFile, threads: int) -> Model:
    """A worker's model, which stays open between shards."""
    if md5(file.path) != file.digest:
        raise ClusterError(f"{file.path}: is not the file that was put there; is the disk sound?")
    return Model.load(file.path, file.origin, file.provider, threads)


def _stack(job: Job, model: Model) -> StackReader:
    """The raster of this thread, which stays open between shards: a check may read all of it.

    Raises:
        SourceError: it cannot be read, twice.
        MismatchError: it does not fit the model.
        ClusterError: it, or something else that the tiles depend on, is not as in the calling process.
    """
    thread = get_ident()
    opening = _openings.get(thread)
    if opening is None or opening.job != job:
        if opening:  # of a run that failed
            _openings.pop(thread).held.close()
        opening = _openings[thread] = _open(job, model)
    return opening.stack


def _open(job: Job, model: Model) -> Opening:
    """Open a raster in a thread that is there for nothing else: where it was opened rasterio wants it closed."""
    with ExitStack() as held:
        thread, opened = held.enter_context(ThreadPoolExecutor(1)), ExitStack()
        held.callback(lambda: thread.submit(opened.close).result())
        thread.submit(opened.enter_context, frugal()).result()
        try:
            stack = thread.submit(opened.enter_context, open_stack(job.raster, model.contract)).result()
        except SourceError:  # a share may be away for a moment
            stack = thread.submit(opened.enter_context, open_stack(job.raster, model.contract)).result()
        _refuse_others(job.facts, _facts(model, stack))
        return Opening(job, stack, held.pop_all())


def _close(job: Job) -> None:
    """Let go, in a worker, of what stayed open for a job that is done; another run may use the worker too."""
    _model.cache_clear()
    for thread in [thread for thread, opening in list(_openings.items()) if opening.job == job]:
        _openings.pop(thread).held.close()


def _facts(model: Model, stack: StackReader) -> dict[str, Any]:
    """What tiles depend on that a worker may have otherwise, by name."""
    return {
        "talud": version("talud"),
        "ONNX Runtime": onnxruntime.__version__,
        "provider": model.provider,
        **model.rounding,
        **stack.identity,
    }


def _refuse_others(facts: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    changes = [change(name, found[name], facts[name], "here") for name in facts if found[name] != facts[name]]
    if changes:
        raise ClusterError(f"has {', '.join(changes)}; give it what is here")
