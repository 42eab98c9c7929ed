"""From a model and a raster to the tiles of a map: read ahead, run through the network, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from talud.errors import TaludError
from talud.inference import coverage, symmetry
from talud.inference.journal import Block, Journal
from talud.inference.reader import StackReader
from talud.inference.runtime import Model
from talud.inference.tiling import Tile, Tiling

Progress = Callable[[int, int], None]


def finish_tiles(
    model: Model,
    stack: StackReader,
    tiling: Tiling,
    journal: Journal,
    progress: Progress | None = None,
    *,
    tta: bool = False,
) -> int:
    """Finish the tiles of a map that are not; how many were.

    Args:
        model: to run.
        stack: the raster, open.
        tiling: of the raster.
        journal: of the map; what is found for each tile is kept there.
        progress: told, after each tile, how many are done and how many there are.
        tta: test-time augmentation, see `symmetry`.

    Raises:
        SourceError: the raster cannot be read.
        ModelError: the network fails.
        OutputError: a tile cannot be kept.
    """
    missing = [tile for tile in tiling if journal.read(tile) is None]
    taken_over = len(tiling) - len(missing)
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        for done, (tile, window) in enumerate(_read_ahead(stack, missing, reader), start=taken_over + 1):
            block = _block_at_second_try(model, stack, tile, window, reader, tta)
            if written:
                written.result()
            written = writer.submit(journal.write, tile, block)
            if progress:
                progress(done, len(tiling))
        if written:
            written.result()
    return taken_over


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
    model: Model, stack: StackReader, tile: Tile, window: Future[NDArray[np.float32]], reader: Executor, tta: bool
) -> Block:
    """What is found for a tile. A network share, or a GPU that others use, may fail once: then all is done again."""
    try:
        return _block(model, tile, window.result(), tta)
    except TaludError:
        again = reader.submit(stack.read, tile.window)
    try:
        return _block(model, tile, again.result(), tta)
    except TaludError as error:
        core = tile.core
        rows, columns = core.row_off + core.height, core.col_off + core.width
        raise type(error)(
            f"{error} (twice, at rows {core.row_off} to {rows} and columns {core.col_off} to {columns})"
        ) from error


def _block(model: Model, tile: Tile, window: NDArray[np.float32], tta: bool) -> Block:
    blocked = coverage.blocked(window, model.contract)[tile.inner]
    if blocked.all():
        nothing = np.full(blocked.shape, np.nan, np.float32)
        return Block(nothing, blocked, nothing if tta else None)
    if not tta:
        return Block(model.core(window, tile), blocked)
    probability, disagreement = symmetry.averaged(model, window, tile)
    return Block(probability, blocked, disagreement)
