"""Tests of the geometry of tiles."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from talud.engine.tiling import Tiling, batch_tiles, round_up

lengths = st.integers(1, 90)
cases = st.tuples(
    st.tuples(lengths, lengths), st.integers(1, 120), st.integers(0, 60), st.sampled_from([1, 2, 4, 8, 16])
)


@settings(deadline=None)
@given(cases)
@example(((1, 1), 1, 0, 1))
@example(((7, 4000), 512, 112, 16))
@example(((4000, 7), 1, 28, 4))
def test_tiles_write_every_pixel_once(case: tuple[tuple[int, int], int, int, int]) -> None:
    shape, *rest = case
    written = np.zeros(shape, np.int32)
    tiling = Tiling.of(shape, *rest)
    for tile in tiling:
        written[tile.core.toslices()] += 1
        assert 0 < tile.core.height <= tiling.rows.core
        assert 0 < tile.core.width <= tiling.columns.core
    assert (written == 1).all()
    assert len(list(tiling)) == len(tiling)


@settings(deadline=None)
@given(cases)
@example(((1, 1), 1, 0, 1))
@example(((7, 4000), 512, 112, 16))
def test_windows_are_aligned_and_of_one_shape(
    case: tuple[tuple[int, int], int, int, int],
) -> None:
    shape, size, halo, alignment = case
    tiling = Tiling.of(shape, size, halo, alignment)
    height, width = tiling.padded
    assert (height, width) == tuple(round_up(side, alignment) for side in shape)
    for tile in tiling:
        window = tile.window
        assert (window.height, window.width) == tiling.window
        assert window.row_off % alignment == window.col_off % alignment == 0
        assert window.height % alignment == window.width % alignment == 0
        assert 0 <= window.row_off <= height - window.height
        assert 0 <= window.col_off <= width - window.width


@settings(deadline=None)
@given(cases)
@example(((1, 1), 1, 0, 1))
@example(((7, 4000), 512, 112, 16))
def test_window_contains_the_core_and_its_halo(
    case: tuple[tuple[int, int], int, int, int],
) -> None:
    shape, size, halo, alignment = case
    tiling = Tiling.of(shape, size, halo, alignment)
    height, width = tiling.padded
    for tile in tiling:
        core, window = tile.core, tile.window
        assert window.row_off <= max(core.row_off - halo, 0)
        assert window.col_off <= max(core.col_off - halo, 0)
        assert window.row_off + window.height >= min(core.row_off + core.height + halo, height)
        assert window.col_off + window.width >= min(core.col_off + core.width + halo, width)
        rows, columns = tile.core_slices
        assert (rows.start, columns.start) == (core.row_off - window.row_off, core.col_off - window.col_off)
        assert (rows.stop - rows.start, columns.stop - columns.start) == (core.height, core.width)


@settings(deadline=None)
@given(cases, st.integers(1, 7))
@example(((9, 200), 8, 4, 4), 3)
def test_batches_contain_each_tile_once(case: tuple[tuple[int, int], int, int, int], size: int) -> None:
    tiling = Tiling.of(case[0], *case[1:])
    batches = list(batch_tiles(tiling, size))
    assert sorted(tile.core.toslices() for tiles in batches for tile in tiles) == sorted(
        tile.core.toslices() for tile in tiling
    )
    kinds = [{tile.batch_key for tile in tiles} for tiles in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert {len(tiles) for tiles in batches} <= {1, size}
    if size > 1:  # as few single tiles as possible
        single = Counter(tiles[0].batch_key for tiles in batches if len(tiles) == 1)
        assert all(count < size for count in single.values())
    if size == 1:
        assert [tiles[0] for tiles in batches] == list(tiling)


@given(cases)
@example(((1, 1), 1, 0, 1))
@example(((7, 4000), 512, 112, 16))
@example(((130, 4000), 64, 112, 16))
def test_tile_sides_are_on_the_edge_or_have_their_halo(case: tuple[tuple[int, int], int, int, int]) -> None:
    shape, size, halo, alignment = case
    tiling = Tiling.of(shape, size, halo, alignment)
    height, width = tiling.padded
    for tile in tiling:
        core = tile.core
        last_row, last_column = (
            round_up(stop, alignment) for stop in (core.row_off + core.height, core.col_off + core.width)
        )
        room = (core.row_off, core.col_off, height - last_row, width - last_column)
        if tile.edges is None:
            assert any(0 < side < halo for side in room)
            continue
        assert tile.edges == tuple(side == 0 for side in room)
        assert all(side == 0 or side >= halo for side in room)
        margins = tuple(0 if at_rim else halo for at_rim in tile.edges)
        rows, columns = tile.cell_slices(margins, alignment)
        assert 0 <= rows.start <= rows.stop <= tile.window.height
        assert 0 <= columns.start <= columns.stop <= tile.window.width
        assert rows.stop - rows.start == last_row - core.row_off + margins[0] + margins[2]


def test_cores_of_an_axis_are_even() -> None:
    cut = Tiling.of((900, 900), 864, 112, 16)  # not 864 and 36, for which all windows would be 912
    assert (cut.rows.core, cut.window) == (464, (688, 688))
