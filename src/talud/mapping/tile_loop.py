"""From a model and a raster to the tiles of a map: read ahead, run through the network, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from talud.engine import coverage, symmetry
from talud.engine.runtime import Model
from talud.engine.tiling import Tile, batched
from talud.errors import TaludError
from talud.mapping.journal import Block, Journal
from talud.mapping.reader import StackReader


class Pixels(NamedTuple):
    """What the network is given for a tile, (bands, height, width) of its window, and what is wanting in its core."""

    window: NDArray[np.float32]
    blocked: NDArray[np.uint16]
    reduced: NDArray[np.uint16] | None


@dataclass(frozen=True)
class Passes:
    """How the network is run on tiles.

    Attributes:
        batch: how many tiles of one kind one pass takes.
        tta: test-time augmentation, see `symmetry`; tiles then run one by one.
    """

    batch: int = 1
    tta: bool = False


def finish_tiles(
    model: Model,
    stack: StackReader,
    tiles: Iterable[Tile],
    journal: Journal,
    passes: Passes,
    tell: Callable[[int], object] = lambda _: None,
) -> None:
    """Finish tiles of a map.

    Args:
        model: to run.
        stack: the raster, open.
        tiles: of the raster's tiling.
        journal: of the map; what is found for each tile is kept there.
        passes: how the network is run.
        tell: told, after each pass, how many tiles are done.

    Raises:
        SourceError: the raster cannot be read.
        ModelError: the network fails.
        OutputError: a tile cannot be kept.
    """
    with ThreadPoolExecutor(max_workers=1) as reader, ThreadPoolExecutor(max_workers=1) as writer:
        written: Future[None] | None = None
        done = 0
        for batch, coming in _read_ahead(stack, batched(tiles, passes.batch), reader):
            blocks = _blocks_at_second_try(model, stack, batch, coming, reader, passes.tta)
            if written:
                written.result()
            written = writer.submit(_write, journal, batch, blocks)
            done += len(batch)
            tell(done)
        if written:
            written.result()


def _read_ahead(
    stack: StackReader, batches: Iterable[list[Tile]], reader: Executor
) -> Iterator[tuple[list[Tile], list[Future[Pixels]]]]:
    """Each batch and its pixels, which are read while the network runs on the one before.

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


def _read(stack: StackReader, tile: Tile) -> Pixels:
    window = stack.read(Window(*tile.window))
    shades = stack.shades(Window(*tile.core))
    return Pixels(window, *coverage.coverage(window[:, *tile.inner], stack.contract, shades))


def _blocks_at_second_try(
    model: Model, stack: StackReader, tiles: list[Tile], coming: list[Future[Pixels]], reader: Executor, tta: bool
) -> list[Block]:
    """What is found for a batch. A network share, or a GPU that others use, may fail once: then all is done again.

    The second time tile by tile, so that an error is that of one tile, and a batch that takes too much memory may yet
    pass.
    """
    try:
        return _blocks(model, tiles, [pixels.result() for pixels in coming], tta)
    except TaludError:
        again = [reader.submit(_read, stack, tile) for tile in tiles]
    return [_block_or_where(model, tile, pixels, tta) for tile, pixels in zip(tiles, again, strict=True)]


def _block_or_where(model: Model, tile: Tile, pixels: Future[Pixels], tta: bool) -> Block:
    """What is found for a tile; an error says where it is."""
    try:
        return _blocks(model, [tile], [pixels.result()], tta)[0]
    except TaludError as error:
        core = tile.core
        rows, columns = core.row_off + core.height, core.col_off + core.width
        raise type(error)(
            f"{error} (twice, at rows {core.row_off} to {rows} and columns {core.col_off} to {columns})"
        ) from error


def _blocks(model: Model, tiles: list[Tile], batch: list[Pixels], tta: bool) -> list[Block]:
    """What is found for a batch; the network does not run on a tile without a pixel to map.

    A batch that such tiles leave incomplete runs tile by tile, for ONNX Runtime would plan its memory anew.
    """
    if not (tta or any(pixels.blocked.all() for pixels in batch)):
        cores = model.cores([pixels.window for pixels in batch], tiles)
        return [Block(core, pixels.blocked, None, pixels.reduced) for core, pixels in zip(cores, batch, strict=True)]
    return [_block(model, tile, pixels, tta) for tile, pixels in zip(tiles, batch, strict=True)]


def _block(model: Model, tile: Tile, pixels: Pixels, tta: bool) -> Block:
    if pixels.blocked.all():
        nothing = np.full(pixels.blocked.shape, np.nan, np.float32)
        return Block(nothing, pixels.blocked, nothing if tta else None, pixels.reduced)
    if not tta:
        return Block(model.cores([pixels.window], [tile])[0], pixels.blocked, None, pixels.reduced)
    probability, disagreement = symmetry.averaged(model, pixels.window, tile)
    return Block(probability, pixels.blocked, disagreement, pixels.reduced)


def _write(journal: Journal, tiles: list[Tile], blocks: list[Block]) -> None:
    for tile, block in zip(tiles, blocks, strict=True):
        journal.write(tile, block)
