"""Tests of the choice of tiles by memory and arithmetic."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_writer import to_onnx
from operator_networks import lite0_unet
from talud.contract import PassMemory
from talud.engine import planning
from talud.engine.cropping import CroppedSessions
from talud.engine.margins import receptive_field
from talud.engine.planning import TilePlanner, pass_memory
from talud.engine.tiling import Tiling
from talud.errors import ModelError
from talud.networks import unet


def unet_graph(filters: int, depth: int = 4) -> onnx.ModelProto:
    return to_onnx(unet.build(filters, depth, np.zeros(7, np.float32), np.ones(7, np.float32), seed=1))


def planner(graph: onnx.ModelProto, stated: PassMemory | None = None) -> TilePlanner:
    return TilePlanner.of(CroppedSessions(graph, "cpu", 1), stated)


@pytest.fixture(scope="module")
def described() -> TilePlanner:
    return planner(unet_graph(32))


@pytest.fixture(scope="module")
def lite0() -> TilePlanner:
    return planner(lite0_unet())


@pytest.mark.parametrize("shape", [(20_000, 30_000), (700, 90_000), (1100, 1000), (9, 9), (4096, 4096)])
@pytest.mark.parametrize("memory", [10**9, 2 * 10**9, 8 * 10**9])
def test_chosen_tiles_fit_into_memory_and_cost_least(
    described: TilePlanner, shape: tuple[int, int], memory: int
) -> None:
    """Chosen tiles are compared with those of all other sides."""
    chosen = described.choose(shape, 112, 16, memory)
    assert described.memory_bytes(chosen) <= memory
    assert len(chosen) == 1 or max(chosen.rows.core, chosen.columns.core) <= 2048
    assert len(chosen) == 1 or described.is_cropped(chosen)
    others = (Tiling.of(shape, side, 112, 16) for side in range(112, 2049, 48))
    best = min(described.arithmetic(tiling) for tiling in others if described.memory_bytes(tiling) <= memory)
    assert described.arithmetic(chosen) <= 1.03 * best


def test_large_raster_is_cut_in_milliseconds(described: TilePlanner) -> None:
    described.choose((500, 500), 112, 16, 10**9)
    start = time.process_time()
    described.choose((20_000, 20_000), 112, 16, 2 * 10**9)
    assert time.process_time() - start < 0.2


def test_cores_grow_with_the_memory(described: TilePlanner, lite0: TilePlanner) -> None:
    for each, halo, alignment in ((described, 112, 16), (lite0, 512, 32)):
        tilings = [each.choose((20_000, 20_000), halo, alignment, memory * 10**9) for memory in (1, 2, 4, 8)]
        costs = [each.overhead(tiling) for tiling in tilings]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] < 1.2
        assert tilings[-1].rows.core > 1900


def test_deep_network_is_tiled_within_2_gb(lite0: TilePlanner) -> None:
    """Cores chosen by memory per pixel of an unknown network would be 32 pixels long, 16,384 tiles."""
    tiling = lite0.choose((4096, 4096), 512, 32, 2 * 10**9)
    assert lite0.is_cropped(tiling)
    assert len(tiling) <= 16
    assert lite0.overhead(tiling) < 1.4


def test_tiles_as_long_as_the_halo_are_used_if_none_fit(lite0: TilePlanner) -> None:
    assert lite0.choose((4096, 4096), 512, 32, 10**6).rows.core == 512


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 700), st.integers(0, 7))
@settings(deadline=None, max_examples=50)
def test_kinds_of_tiles_are_counted_exactly(
    described: TilePlanner, height: int, width: int, side: int, cells: int
) -> None:
    """The counts are compared with those of all tiles one by one."""
    tiling = Tiling.of((height, width), side, 16 * cells, 16)
    if len(tiling) > 3000:
        return
    passes = list(described._passes(tiling))
    assert sum(each.tiles for each in passes) == len(tiling)
    plain = sum(1 for tile in tiling if tile.edges is None or all(tile.edges))
    assert sum(each.tiles for each in passes if not each.cropped) == plain


def test_stated_memory_counts_within_limits(described: TilePlanner) -> None:
    """A damaged file neither fills the memory nor makes tiles of a few pixels."""
    tiling = Tiling.of((4096, 4096), 704, 112, 16)
    derived = described.derived
    doubled = PassMemory(plain=2 * derived.plain, cropped=2 * derived.cropped)
    usual, twice, tiny, huge = (
        planner(described.network.model, stated).memory_bytes(tiling)
        for stated in (derived, doubled, PassMemory(plain=1e-3, cropped=1e-3), PassMemory(plain=1e6, cropped=1e6))
    )
    held = planner(described.network.model).held_bytes
    assert usual == pytest.approx(described.memory_bytes(tiling) - described.held_bytes + held, rel=0.01)
    assert twice - held == pytest.approx(2 * (usual - held), rel=1e-6)
    assert (usual - held) / 10 < tiny - held < usual - held < huge - held < 10 * (usual - held)


def test_network_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message states the halo, the memory and the arithmetic."""
    graph = lite0_unet()
    assert pass_memory(graph).plain > 500
    monkeypatch.setattr(planning, "REQUIRED_BYTES", 10**9)
    with pytest.raises(
        ModelError, match=r"within 1 GB: its halo is 512 pixels, .* 512 pixels take 1\.1 GB and 1\.8 times"
    ):
        pass_memory(graph)


def test_memory_of_a_small_machine_limits_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "machine_memory", lambda: 10**9)
    assert planning.default_budget() == 5 * 10**8
    monkeypatch.setattr(planning, "machine_memory", lambda: 10**12)
    assert planning.default_budget() == 2 * 10**9
    listed, root = tmp_path / "cgroup", tmp_path / "root"
    listed.write_text("4:memory:/job/step\n0::/slice/job\n")
    assert set(planning._control_groups(listed, root)) >= {
        root / "memory/job/step", root / "memory/job", root / "slice/job", root / "slice", root, root / "memory",
    }  # fmt: skip


_MEASURE = """
import sys
import numpy as np, onnx
from talud.engine.cropping import CroppedSessions, Sides
from talud.engine.tiling import Tiling
def resident():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
graph, halo, alignment, core = onnx.load(sys.argv[1]), *map(int, sys.argv[2:])
sessions = CroppedSessions(graph, "cpu", 1)
margin = sessions.margin(halo)
tiling = Tiling.of((3 * core, 3 * core), core, halo, alignment)
tiles = {tile.edges: tile for tile in tiling}.values()
for tile in tiles:
    sessions.session(tile.edges, halo)
before = resident()
for _ in range(2):
    for tile in tiles:
        around = Sides.of(margin, margin).without_edges(tile.edges)
        sides = core + around.top + around.bottom, core + around.left + around.right
        sessions.session(tile.edges, halo).run(None, {"stack": np.zeros((1, 7, *sides), np.float32)})
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", ["unet 8", "unet 32", "lite0 cut"])
def test_stated_memory_is_that_of_a_fresh_process(network: str, tmp_path: Path) -> None:
    """All nine kinds of tiles are run twice; the arena keeps what they have taken."""
    graph = lite0_unet(cut=True) if network == "lite0 cut" else unet_graph(int(network.split()[1]), 3)
    onnx.save(graph, tmp_path / "network.onnx")
    field = receptive_field(graph)
    core = max(192, field.halo)
    arguments = [tmp_path / "network.onnx", *map(str, (field.halo, field.alignment, core))]
    ran = subprocess.run([sys.executable, "-c", _MEASURE, *arguments], capture_output=True, text=True, check=True)
    each = planner(graph)
    stated = each.memory_bytes(Tiling.of((3 * core, 3 * core), core, field.halo, field.alignment)) - each.held_bytes
    assert 0.35 * stated < int(ran.stdout) <= stated
