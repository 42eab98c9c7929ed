"""From a model and a raster to the tiles of a map: read ahead, run through the network, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from talud.errors import TaludError
from talud.inference import coverage
from talud.inference.journal import Block, Journal
from talud.inference.reader import StackReader
from talud.inference.runtime import Model
from talud.inference.tiling import Tile


def finish_tiles(
    model: Model,
    stack: StackReader,
    tiles: Iterable[Tile],
    journal: Journal,
    tell: Callable[[int], object] = lambda _: None,
) -> None:
    """Finish tiles of a map.

    Args:
        model: to run.
        stack: the raster, open.
        tiles: of the raster's tiling.
        journal: of the map; what is found for each tile is kept there.
        tell: told, after each tile, how many are done.

    Raises:
        SourceError: the raster cannot be read.
        ModelError: the network fails.
        OutputError: a tile cannot be kept.
    """
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        for done, (tile, window) in enumerate(_read_ahead(stack, tiles, reader), start=1):
            block = _block_at_second_try(model, stack, tile, window, reader)
            if written:
                written.result()
            written = writer.submit(journal.write, tile, block)
            tell(done)
        if written:
            written.result()


def _read_ahead(
    stack: StackReader, tiles: Iterable[Tile], reader: Executor
) -> Iterator[tuple[Tile, Future[NDArray[np.float32]]]]:
    """Each tile and its window, which is read while the network runs on the one before.

    The reader has one thread, for a GDAL dataset serves one at a time.
    """
    ahead = None
    for tile in tiles:
        coming = tile, reader.submit(stack.read, tile.window)
        if ahead:
            yield ahead
        ahead = coming
    if ahead:
        yield ahead


def _block_at_second_try(
    model: Model, stack: StackReader, tile: Tile, window: Future[NDArray[np.float32]], reader: Executor
) -> Block:
    """What is found for a tile. A network share, or a GPU that others use, may fail once: then all is done again."""
    try:
        return _block(model, tile, window.result())
    except TaludError:
        again = reader.submit(stack.read, tile.window)
    try:
        return _block(model, tile, again.result())
    except TaludError as error:
        core = tile.core
        rows, columns = core.row_off + core.height, core.col_off + core.width
        raise type(error)(
            f"{error} (twice, at rows {core.row_off} to {rows} and columns {core.col_off} to {columns})"
        ) from error


def _block(model: Model, tile: Tile, window: NDArray[np.float32]) -> Block:
    blocked = coverage.blocked(window, model.contract)[tile.inner]
    if blocked.all():
        return Block(np.full(blocked.shape, np.nan, np.float32), blocked)
    return Block(model.core(window, tile), blocked)
