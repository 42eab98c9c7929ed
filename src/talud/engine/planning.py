"""Choice of tiles by memory and arithmetic."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache, cached_property, lru_cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import onnx

from talud.contract import PassMemory
from talud.engine.costs import PassCost, bare_pass, cropped_pass
from talud.engine.cropping import CroppedSessions
from talud.engine.margins import Margin, NetworkGeometry, receptive_field
from talud.engine.tiling import Axis, Tiling, round_up
from talud.errors import ModelError

# Memory that a map may take, and the share of the machine's memory where that is less.
DEFAULT_MEMORY_BYTES = 2 * 10**9
MACHINE_SHARE = 0.5
# Longest side of a core if a raster needs several tiles.
MAX_CORE_PIXELS = 2048
# Side of the core at which a contract states the memory of a pass.
STATED_CORE_PIXELS = 1024
# Memory of a pass against the bytes of the tensors that are alive at once. Measured in fresh processes (ONNX Runtime
# 1.31, U-Nets of 4 to 32 filters and U-Nets with EfficientNet-Lite0): 1.2 to 1.7 for a plain pass, 1.4 to 1.7 for the
# nine kinds of cropped tiles, which share the arena. The rest is its fragments.
PLAIN_FACTOR, CROPPED_FACTOR = 2.0, 2.0
# Raster and memory for which a network must have tiles that are all cropped.
REQUIRED_SIDE_PIXELS, REQUIRED_BYTES = 4096, 2 * 10**9
# Range of factors that a contract may imply; beyond it the file is damaged.
_LEAST_FACTOR, _MOST_FACTOR = 0.25, 10.0
# Sides of cores to choose from, for each doubling of the side.
_SIDES_PER_DOUBLING = 6

_Ends = tuple[bool, bool] | None


class _Passes(NamedTuple):
    """Passes over tiles of one kind.

    Attributes:
        cost: cost of a pass.
        height: height of the core, or of the window of the plain network.
        width: width of the core or window.
        tiles: number of tiles.
        cropped: whether the network is cropped.
    """

    cost: PassCost
    height: int
    width: int
    tiles: int
    cropped: bool


class TilePlanner:
    """Planner of the tiles of rasters for a network.

    Attributes:
        network: geometry of the graph.
        stated: memory of a pass as stated in the contract; None if it states none.
        held_bytes: memory that does not depend on the tiles, for the weights.
    """

    def __init__(self, network: NetworkGeometry, stated: PassMemory | None, held_bytes: int) -> None:
        self.network, self.stated, self.held_bytes = network, stated, held_bytes
        self._cropped_pass = lru_cache(maxsize=64)(self._derive_cropped_pass)

    @classmethod
    def of(cls, sessions: CroppedSessions, stated: PassMemory | None) -> TilePlanner:
        """Return the planner of a network.

        ONNX Runtime holds the weights once as they are, twice in the plain session, and once in each cropped session.
        """
        return cls(sessions.network, stated, (3 + sessions.cache_size) * sessions.weight_bytes)

    def choose(self, shape: tuple[int, int], halo: int, alignment: int, budget: int) -> Tiling:
        """Cut a raster into the cheapest tiles that fit into memory.

        If none fit, the core is as long as the halo.

        Args:
            shape: (height, width) of the raster.
            halo: pixels of context on each side, a multiple of the alignment.
            alignment: step of the lattice in pixels.
            budget: memory in bytes.
        """
        tilings = {Tiling.of(shape, side, halo, alignment): None for side in _sides(max(shape), alignment)}
        fitting = [tiling for tiling in tilings if self.memory_bytes(tiling) <= budget]
        # The first of equals has the fewest tiles.
        return min(fitting, key=self.arithmetic, default=self.least(shape, halo, alignment))

    def least(self, shape: tuple[int, int], halo: int, alignment: int) -> Tiling:
        """Cut a raster into tiles as long as the halo.

        Smaller ones save hardly any memory, since the halo dominates their windows.
        """
        return Tiling.of(shape, max(halo, alignment), halo, alignment)

    def memory_bytes(self, tiling: Tiling, batch: int = 1) -> int:
        """Return an upper bound of the memory of a pass, with the weights."""
        passes = max(
            each.cost.peak_bytes(each.height, each.width) * self._factors[each.cropped] for each in self._passes(tiling)
        )
        return self.held_bytes + round(passes) * min(batch, len(tiling))

    def arithmetic(self, tiling: Tiling) -> float:
        """Return the multiply-adds of all tiles."""
        return sum(each.tiles * each.cost.arithmetic(each.height, each.width) for each in self._passes(tiling))

    def overhead(self, tiling: Tiling) -> float:
        """Return the multiply-adds of all tiles, against those of one pass."""
        whole = self._bare.arithmetic(*tiling.padded)
        return self.arithmetic(tiling) / whole if whole else 1.0

    def is_cropped(self, tiling: Tiling) -> bool:
        """Check if all tiles can be cropped."""
        return all(each.cropped for each in self._passes(tiling))

    @cached_property
    def derived(self) -> PassMemory:
        """Memory of a pass as derived from the graph, in whole bytes."""
        plain, cropped = self._live_bytes
        return PassMemory(plain=ceil(plain * PLAIN_FACTOR), cropped=ceil(cropped * CROPPED_FACTOR))

    @cached_property
    def _bare(self) -> PassCost:
        return bare_pass(self.network)

    @cached_property
    def _live_bytes(self) -> tuple[float, float]:
        """Bytes of live tensors per pixel of the window of a large core.

        They are those of the plain network and of the cropped one.
        """
        side = STATED_CORE_PIXELS
        plain = self._bare.peak_bytes(side, side) / side**2
        halo = self.exact_halo
        inside = None if halo is None else self._cropped_pass((False, False), (False, False), halo)
        return plain, inside.peak_bytes(side, side) / (side + 2 * halo) ** 2 if inside and halo is not None else plain

    @cached_property
    def exact_halo(self) -> int | None:
        """Halo that the graph needs; None if the reach of an operator is not known."""
        try:
            return receptive_field(self.network.model).halo
        except ModelError:
            return None

    @cached_property
    def _factors(self) -> tuple[float, float]:
        """Memory of plain and of cropped passes, against their live bytes."""
        if self.stated is None:
            return PLAIN_FACTOR, CROPPED_FACTOR
        stated = self.stated.plain, self.stated.cropped
        implied = (bytes_ / max(live, 1) for bytes_, live in zip(stated, self._live_bytes, strict=True))
        plain, cropped = (min(max(factor, _LEAST_FACTOR), _MOST_FACTOR) for factor in implied)
        return plain, cropped

    def _passes(self, tiling: Tiling) -> Iterator[_Passes]:
        """Yield the passes over all kinds of tiles."""
        height, width = tiling.window
        halo = tiling.rows.halo
        for (rows, core_height), count in _kinds(tiling.rows).items():
            for (columns, core_width), times in _kinds(tiling.columns).items():
                whole = rows == columns == (True, True)
                cost = None if rows is None or columns is None or whole else self._cropped_pass(rows, columns, halo)
                if cost is None:
                    yield _Passes(self._bare, height, width, count * times, cropped=False)
                else:
                    yield _Passes(cost, core_height, core_width, count * times, cropped=True)

    def _derive_cropped_pass(self, rows: tuple[bool, bool], columns: tuple[bool, bool], halo: int) -> PassCost | None:
        """Return the cost of a cropped tile; None if the network cannot be cropped."""
        limits = [Margin(*(0 if end else halo for end in ends)) for ends in (rows, columns)]
        try:
            return cropped_pass(self.network, *map(self.network.cropped_axis, limits))
        except ModelError:
            return None


def pass_memory(graph: onnx.ModelProto) -> PassMemory:
    """Return the memory of a network's passes.

    Args:
        graph: graph of a network.

    Raises:
        ModelError: The network cannot map 4096² pixels within 2 GB in cropped tiles.
    """
    field, sessions = receptive_field(graph), CroppedSessions(graph, "cpu", 1)
    planner = TilePlanner.of(sessions, None)
    shape = REQUIRED_SIDE_PIXELS, REQUIRED_SIDE_PIXELS
    tiling = planner.choose(shape, field.halo, field.alignment, REQUIRED_BYTES)
    needed = planner.memory_bytes(tiling)
    if needed > REQUIRED_BYTES or not (len(tiling) == 1 or planner.is_cropped(tiling)):
        smallest = planner.least(shape, field.halo, field.alignment)
        least_memory, overhead = planner.memory_bytes(smallest) / 1e9, planner.overhead(smallest)
        raise ModelError(
            f"the network cannot map {REQUIRED_SIDE_PIXELS} × {REQUIRED_SIDE_PIXELS} pixels within "
            f"{REQUIRED_BYTES / 1e9:g} GB: its halo is {field.halo} pixels, and tiles of {smallest.rows.core} pixels "
            f"take {least_memory:.1f} GB and {overhead:.1f} times the arithmetic of one pass; use fewer filters or "
            "fewer levels"
        )
    return planner.derived


def default_budget() -> int:
    """Return the memory that a map may take if no other is given, in bytes.

    It is fixed for a machine, so that the tiles do not depend on the free memory of the moment.
    """
    return min(DEFAULT_MEMORY_BYTES, int(machine_memory() * MACHINE_SHARE))


@cache
def machine_memory() -> int:
    """Return the memory of the machine in bytes.

    It is that of the control group of this process if that is less.
    """
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    for folder in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                found.append(int((folder / name).read_text()))
    return min(found, default=2 * DEFAULT_MEMORY_BYTES)


def _control_groups(listed: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups.

    They are those of both versions of control groups, with all groups around them.
    """
    yield from (root, root / "memory")
    with contextlib.suppress(OSError):
        for line in listed.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                group = root / controllers / path.lstrip("/")
                yield from (group, *(each for each in group.parents if root in each.parents))


def _kinds(axis: Axis) -> Counter[tuple[_Ends, int]]:
    """Count the cores of an axis by the edges that they touch, and their length."""
    starts = range(0, axis.length, axis.core)
    near = axis.halo // axis.core + 2  # cores at each end that may have the edge within their halo
    ends = starts if len(starts) <= 2 * near else (*starts[:near], *starts[-near:])
    cores = (range(start, min(start + axis.core, axis.length)) for start in ends)
    counts = Counter((axis.touched_edges(core), round_up(len(core), axis.alignment)) for core in cores)
    if len(starts) > len(ends):
        counts[(False, False), axis.core] += len(starts) - len(ends)
    return counts


def _sides(longest: int, alignment: int) -> Iterator[int]:
    """Yield sides of cores, longest first: one tile, then sides in equal ratios."""
    yield longest
    number = 0
    while (side := int(MAX_CORE_PIXELS / 2 ** (number / _SIDES_PER_DOUBLING))) > alignment:
        yield side
        number += 1
    yield alignment
