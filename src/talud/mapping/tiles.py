"""Computation of the tiles of a map.

Tiles are computed by an executor, kept in a journal, and sent to a sink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.engine import coverage, symmetry
from talud.engine.runtime import Model
from talud.engine.tiling import Tile, Tiling, batch_tiles
from talud.errors import OutputError, TaludError
from talud.mapping.journal import Journal, TileResult
from talud.mapping.reader import StackReader
from talud.progress import Progress


class TileInput(NamedTuple):
    """Window of a tile, and codes of missing data."""

    window: NDArray[np.float32]
    unmapped: NDArray[np.uint16]
    partial: NDArray[np.uint16] | None


@dataclass(frozen=True)
class PassOptions:
    """Options of the network's passes over tiles.

    Attributes:
        batch: number of tiles of equal key in a pass.
        tta: whether to use test-time augmentation (see `talud.engine.symmetry`); tiles are then run one by one.
    """

    batch: int = 1
    tta: bool = False


class TileSink(Protocol):
    """Receiver of the finished tiles of a map."""

    def write(self, tile: Tile, block: TileResult) -> None:
        """Receive a tile.

        Each tile is sent once, in the order of the tiling.
        """


class Executor(Protocol):
    """Way to compute the tiles of a map.

    It uses this process or workers.
    """

    def run(self, tiles: Sequence[Tile], journal: Journal, report: Callable[[int], object]) -> None:
        """Compute tiles, and store each in the journal.

        Args:
            tiles: tiles of the raster's tiling.
            journal: journal of the map.
            report: callback that receives the number of finished tiles from time to time.
        """


@dataclass(frozen=True)
class InProcessExecutor:
    """Executor that computes tiles in this process.

    Attributes:
        model: model to run.
        stack: open raster.
        passes: options of the network's passes.
    """

    model: Model
    stack: StackReader
    passes: PassOptions

    def run(self, tiles: Sequence[Tile], journal: Journal, report: Callable[[int], object]) -> None:
        """Compute tiles; as `Executor.run`."""
        compute_tiles(self.model, self.stack, tiles, journal, self.passes, report)
        self.model.release_memory()


def compute_missing_tiles(tiling: Tiling, journal: Journal, executor: Executor, progress: Progress | None) -> int:
    """Compute the missing tiles of a map.

    Returns the number of tiles that existed already.

    Args:
        tiling: tiling of the raster.
        journal: journal of the map.
        executor: executor that computes the tiles.
        progress: callback that receives the number of finished tiles and that of all tiles.

    Raises:
        TaludError: As raised by the executor.
    """
    missing = journal.missing(tiling)
    resumed = len(tiling) - len(missing)

    def report(done: int) -> None:
        if progress:
            progress(resumed + done, len(tiling))

    executor.run(missing, journal, report)
    return resumed


def send_to_sink(tiling: Tiling, journal: Journal, sink: TileSink) -> None:
    """Send all finished tiles to a sink.

    The order is that of the tiling.

    Raises:
        OutputError: A tile is damaged or missing.
    """
    for tile in tiling:
        block = journal.read(tile)
        if block is None:
            raise OutputError(f"{journal.folder}: a finished tile is damaged or missing; check the disk")
        sink.write(tile, block)


def mapped_probability(model: Model, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability, NaN where unmapped.

    Args:
        model: model to run.
        values: bands (bands, height, width) in contract order and physical units, NaN where invalid.

    Raises:
        ModelError: The network fails.
    """
    mapped = coverage.unmapped_codes(values, model.contract) == 0
    return np.where(mapped, model.probability(values), np.float32(np.nan))


def compute_tiles(
    model: Model,
    stack: StackReader,
    tiles: Iterable[Tile],
    journal: Journal,
    passes: PassOptions,
    report: Callable[[int], object] = lambda _: None,
) -> None:
    """Compute tiles, and store them in the journal.

    While the network runs, the next batch is read and the last one is written.

    Args:
        model: model to run.
        stack: open raster.
        tiles: tiles of the raster's tiling.
        journal: journal of the map.
        passes: options of the network's passes.
        report: callback that receives the number of finished tiles after each batch.

    Raises:
        SourceError: The raster is damaged.
        ModelError: The network fails.
        OutputError: A tile cannot be stored.
    """
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        done = 0
        for batch, coming in _read_ahead(stack, batch_tiles(tiles, passes.batch), reader):
            blocks = _compute_with_retry(model, stack, batch, coming, reader, passes.tta)
            if written:
                written.result()
            written = writer.submit(_write, journal, batch, blocks)
            done += len(batch)
            report(done)
        if written:
            written.result()


def _read_ahead(
    stack: StackReader, batches: Iterable[list[Tile]], reader: ThreadPoolExecutor
) -> Iterator[tuple[list[Tile], list[Future[TileInput]]]]:
    """Yield batches with pixels, read in advance.

    A batch is read while the previous one is computed.

    The reader has one thread, since a GDAL dataset serves one thread at a time.
    """
    ahead = None
    for tiles in batches:
        coming = tiles, [reader.submit(_read, stack, tile) for tile in tiles]
        if ahead:
            yield ahead
        ahead = coming
    if ahead:
        yield ahead


def _read(stack: StackReader, tile: Tile) -> TileInput:
    window = stack.read(Window(*tile.window))
    shades = stack.occlusion_masks(Window(*tile.core))
    return TileInput(window, *coverage.compute_coverage(window[:, *tile.core_slices], stack.contract, shades))


def _compute_with_retry(
    model: Model,
    stack: StackReader,
    tiles: list[Tile],
    coming: list[Future[TileInput]],
    reader: ThreadPoolExecutor,
    tta: bool,
) -> list[TileResult]:
    """Compute a batch, and retry once if it fails.

    A network share or a shared GPU may fail for a moment. The retry computes tile by tile, so that an error is that of
    one tile, and a batch that needs too much memory may succeed.
    """
    try:
        return _compute_batch(model, tiles, [pixels.result() for pixels in coming], tta)
    except TaludError:
        again = [reader.submit(_read, stack, tile) for tile in tiles]
    return [_compute_with_location(model, tile, pixels, tta) for tile, pixels in zip(tiles, again, strict=True)]


def _compute_with_location(model: Model, tile: Tile, pixels: Future[TileInput], tta: bool) -> TileResult:
    """Compute a tile; add its location to an error."""
    try:
        return _compute_batch(model, [tile], [pixels.result()], tta)[0]
    except TaludError as error:
        core = tile.core
        rows, columns = core.row_off + core.height, core.col_off + core.width
        raise type(error)(
            f"{error} (twice, at rows {core.row_off} to {rows} and columns {core.col_off} to {columns})"
        ) from error


def _compute_batch(model: Model, tiles: list[Tile], batch: list[TileInput], tta: bool) -> list[TileResult]:
    """Compute a batch of tiles.

    The network is skipped for tiles without a pixel to map.

    A batch that is incomplete for that reason is computed tile by tile, since ONNX Runtime would plan its memory again.
    """
    if not (tta or any(pixels.unmapped.all() for pixels in batch)):
        cores = model.run_cores([pixels.window for pixels in batch], tiles)
        return [
            TileResult(core, pixels.unmapped, None, pixels.partial) for core, pixels in zip(cores, batch, strict=True)
        ]
    return [_compute_tile(model, tile, pixels, tta) for tile, pixels in zip(tiles, batch, strict=True)]


def _compute_tile(model: Model, tile: Tile, pixels: TileInput, tta: bool) -> TileResult:
    if pixels.unmapped.all():
        nothing = np.full(pixels.unmapped.shape, np.nan, np.float32)
        return TileResult(nothing, pixels.unmapped, nothing if tta else None, pixels.partial)
    if not tta:
        return TileResult(model.run_cores([pixels.window], [tile])[0], pixels.unmapped, None, pixels.partial)
    probability, disagreement = symmetry.average_symmetries(model, pixels.window, tile)
    return TileResult(probability, pixels.unmapped, disagreement, pixels.partial)


def _write(journal: Journal, tiles: list[Tile], blocks: list[TileResult]) -> None:
    for tile, block in zip(tiles, blocks, strict=True):
        journal.write(tile, block)
