"""Tiles of a map: computed by an executor, kept in a journal, delivered to a sink."""

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
    """Input of the network for the window of a tile, and codes of what its core lacks."""

    window: NDArray[np.float32]
    unmapped: NDArray[np.uint16]
    partial: NDArray[np.uint16] | None


@dataclass(frozen=True)
class PassOptions:
    """Passes of the network over tiles.

    Attributes:
        batch: number of tiles of one kind in a pass.
        tta: test-time augmentation, see `symmetry`; tiles then run one by one.
    """

    batch: int = 1
    tta: bool = False


class TileSink(Protocol):
    """Receiver of the finished tiles of a map."""

    def write(self, tile: Tile, block: TileResult) -> None:
        """Take a tile; each comes once, in the order of the tiling."""


class Executor(Protocol):
    """Way to compute the tiles of a map: in this process or on workers."""

    def run(self, tiles: Sequence[Tile], journal: Journal, report: Callable[[int], object]) -> None:
        """Compute tiles and keep each in the journal.

        Args:
            tiles: tiles of the raster's tiling.
            journal: journal of the map.
            report: callback that gets, now and then, the number of tiles that are done.
        """


@dataclass(frozen=True)
class InProcessExecutor:
    """Executor that computes tiles in this process.

    Attributes:
        model: model to run.
        stack: the raster, open.
        passes: how the network is run.
    """

    model: Model
    stack: StackReader
    passes: PassOptions

    def run(self, tiles: Sequence[Tile], journal: Journal, report: Callable[[int], object]) -> None:
        """Compute tiles; as `Executor.run`."""
        compute_tiles(self.model, self.stack, tiles, journal, self.passes, report)
        self.model.release_memory()


def compute_missing_tiles(tiling: Tiling, journal: Journal, executor: Executor, progress: Progress | None) -> int:
    """Finish the missing tiles of a map; return how many were there already.

    Args:
        tiling: tiling of the raster.
        journal: journal of the map.
        executor: computes the tiles.
        progress: callback that gets how many tiles are done and how many there are.

    Raises:
        TaludError: As the executor.
    """
    missing = journal.missing(tiling)
    resumed = len(tiling) - len(missing)

    def report(done: int) -> None:
        if progress:
            progress(resumed + done, len(tiling))

    executor.run(missing, journal, report)
    return resumed


def send_to_sink(tiling: Tiling, journal: Journal, sink: TileSink) -> None:
    """Give all finished tiles to a sink, in the order of the tiling.

    Raises:
        OutputError: A tile is damaged or gone.
    """
    for tile in tiling:
        block = journal.read(tile)
        if block is None:
            raise OutputError(f"{journal.folder}: a finished tile is damaged or gone; is the disk sound?")
        sink.write(tile, block)


def mapped_probability(model: Model, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probability over an array of pixels; NaN where it is not mapped.

    Args:
        model: model to run.
        values: (bands, height, width) in contract order and physical units, NaN where invalid.

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
    """Compute tiles of a map in this process and keep them in the journal.

    Args:
        model: model to run.
        stack: the raster, open.
        tiles: tiles of the raster's tiling.
        journal: journal of the map.
        passes: how the network is run.
        report: callback that gets, after each pass, how many tiles are done.

    Raises:
        SourceError: The raster cannot be read.
        ModelError: The network fails.
        OutputError: A tile cannot be kept.
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
    """Yield batches with their pixels, read while the network runs on the one before.

    The reader has one thread, for a GDAL dataset serves one at a time.
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
    """Compute a batch; try again once, for a network share or a shared GPU may fail.

    The second time goes tile by tile, so that an error is that of one tile, and a batch that takes too much memory may
    yet pass.
    """
    try:
        return _compute_batch(model, tiles, [pixels.result() for pixels in coming], tta)
    except TaludError:
        again = [reader.submit(_read, stack, tile) for tile in tiles]
    return [_compute_with_location(model, tile, pixels, tta) for tile, pixels in zip(tiles, again, strict=True)]


def _compute_with_location(model: Model, tile: Tile, pixels: Future[TileInput], tta: bool) -> TileResult:
    """Compute a tile; an error says where it is."""
    try:
        return _compute_batch(model, [tile], [pixels.result()], tta)[0]
    except TaludError as error:
        core = tile.core
        rows, columns = core.row_off + core.height, core.col_off + core.width
        raise type(error)(
            f"{error} (twice, at rows {core.row_off} to {rows} and columns {core.col_off} to {columns})"
        ) from error


def _compute_batch(model: Model, tiles: list[Tile], batch: list[TileInput], tta: bool) -> list[TileResult]:
    """Compute a batch; the network does not run on a tile without a pixel to map.

    A batch that such tiles leave incomplete runs tile by tile, for ONNX Runtime would plan its memory anew.
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
