"""Measurements of `run.py`: each function returns one figure or more."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from material import network, values
from numpy.typing import NDArray
from tiler import Merger, Tiler

from talud.contract import variant_path
from talud.engine.runtime import Model
from talud.engine.session import open_session

REPEATS = 3
ATTEMPTS = 10  # at repeats that count
BUSY = 1.8  # cores that Keras must have had in a repeat that counts: its two threads sometimes share one
WORKER_TILE = 512  # so that there are enough tiles for two
PATCH, BATCH = 256, 4  # of the usual way, whose speed hardly depends on either

COMMAND = "from talud.cli.main import main; main()"
NOTE_START = """
import sys, time
from talud.engine.runtime import Model
def cores(*_):
    print(time.time(), flush=True)
    sys.exit()
Model.cores = cores
"""
NOTE_PEAK = """
import atexit
from pathlib import Path
def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(line.split()[1])
atexit.register(peak)
"""


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: what is measured.
        value: the figure.
        target: what it should reach, such as "≤ 1.30".
        met: whether it does.
        unit: of the value.
        how: in a line, how it was measured, and on what.
    """

    name: str
    value: float
    target: str
    met: bool
    unit: str
    how: str

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, unit: str, how: str) -> Figure:
        """A figure that should be small."""
        return cls(name, round(value, 3), f"≤ {limit:g}", value <= limit, unit, how)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, unit: str, how: str) -> Figure:
        """A figure that should be large."""
        return cls(name, round(value, 3), f"≥ {limit:g}", value >= limit, unit, how)


@dataclass(frozen=True)
class Material:
    """The files of `material.py` in a folder, for rasters of `side` pixels."""

    folder: Path
    side: int

    @property
    def model_file(self) -> Path:
        """The network."""
        return self.folder / "unet.onnx"

    @cached_property
    def model(self) -> Model:
        """The same, loaded."""
        return Model.load(self.model_file)

    @cached_property
    def int8(self) -> Model:
        """Its 8-bit variant, loaded."""
        return Model.load(variant_path(self.model_file, "int8"))


class Watch:
    """The wall times of repeated runs, and how many cores they kept busy."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.busy: list[float] = []

    def run(self, work: Callable[[], object], at_least: float = 0) -> None:
        """Run something once and note its time, if it kept as many cores busy."""
        wall, busy = time.perf_counter(), _cpu_seconds()
        work()
        wall, busy = time.perf_counter() - wall, _cpu_seconds() - busy
        if busy >= at_least * wall:
            self.seconds.append(wall)
            self.busy.append(busy)

    @property
    def median(self) -> float:
        """Summary of wall times, in seconds."""
        return statistics.median(self.seconds)


def cost_of_exactness(material: Material) -> Iterator[Figure]:
    """Time per output pixel against the bare network, each kind of tile counted as often as the raster has it."""
    model, side = material.model, 2 * material.side
    tiling = model.tiling((side, side))
    window = values(*tiling.window, seed=0)
    exact, bare, total = 0.0, 0.0, (Watch(), Watch())
    for edges, count in Counter(tile.edges for tile in tiling).items():
        tile = next(tile for tile in tiling if tile.edges == edges)
        patch = np.ascontiguousarray(
            window[np.newaxis, :, *tile.cell_slices((0, 0, 0, 0), model.contract.input.alignment)]
        )
        bare_run = partial(_session(material).run, None, {"stack": patch})
        ours, theirs = _in_turn(partial(model.run_cores, [window], [tile]), bare_run)
        exact, bare = exact + count * ours.median, bare + count * theirs.median
        for whole, part in zip(total, (ours, theirs), strict=True):
            whole.seconds += part.seconds
            whole.busy += part.busy
    core = f"{tiling.rows.core}²"
    yield Figure.at_most(
        "time per output pixel against the bare network on the core alone",
        exact / bare,
        1.30,
        "×",
        f"raster of {side}², default tile {core}, depth 4; every kind of tile, {REPEATS} runs in turn with the bare "
        f"network, medians, weighted by their number; {_cores(*total)}",
    )


def end_to_end(material: Material) -> Iterator[Figure]:
    """`talud predict` against ONNX Runtime alone, fed the same tiles from memory: as the file is, and cropped."""
    model, side = material.model, material.side
    tiling, session = model.tiling((side, side)), _session(material)
    window = values(*tiling.window, seed=0)
    command, whole, cropped = _in_turn(
        partial(_predict, material, "stack.tif"),
        lambda: [session.run(None, {"stack": window[np.newaxis]}) for _ in tiling],
        lambda: [model.run_cores([window], [tile])[0] for tile in tiling],
    )
    runs = f"{len(command.seconds)} runs in turn"
    ours = f"`talud predict` on a COG of {side}², all products, {command.median:.1f} s; {runs}"
    for name, watch, what in (
        ("end to end against a bare session fed the same tiles from memory, halo included", whole, "the model's file"),
        ("end to end against the cropped networks alone, fed the same tiles from memory", cropped, "cropped networks"),
    ):
        ratio, how = watch.median / command.median, f"{ours}, medians; {what} {watch.median:.1f} s"
        yield Figure.at_least(name, ratio, 0.92, "×", f"{how}; {_cores(command, watch)}")


def against_blending(material: Material) -> Iterator[Figure]:
    """Exact tiles against the usual way: tiles that overlap by half, blended."""
    model, side = material.model, material.side // 2
    stack, session = values(side, side, seed=0), _session(material)
    ours, theirs = _in_turn(partial(model.probability, stack), partial(_blended, session, stack))
    yield Figure.at_least(
        "speed against tiles that overlap by half, blended (tiler)",
        theirs.median / ours.median,
        2.7,
        "×",
        f"{side}² from memory to memory: {ours.median:.1f} s against {theirs.median:.1f} s in tiles of {PATCH}², "
        f"batches of {BATCH}; {len(ours.seconds)} runs in turn, medians; {_cores(ours, theirs)}",
    )


def int8_against_float32(material: Material) -> Iterator[Figure]:
    """The 8-bit variant against the model itself: one pass, and the tiles that large rasters are made of."""
    stack = values(512, 512, seed=0)
    tiling = material.model.tiling((8192, 8192))
    tile = next(tile for tile in tiling if tile.edges is not None and not any(tile.edges))
    window = values(*tiling.window, seed=0)
    for what, work in (
        ("one pass of 512²", lambda model: model.run(stack)),
        (f"the core of a default tile, {tiling.rows.core}²", lambda model: model.run_cores([window], [tile])),
    ):
        ours, theirs = _in_turn(partial(work, material.int8), partial(work, material.model))
        yield Figure.at_least(
            f"int8 against float32, {what}",
            theirs.median / ours.median,
            2.8,
            "×",
            f"{ours.median:.2f} s against {theirs.median:.2f} s; {REPEATS} runs in turn, medians; "
            f"{_cores(ours, theirs)}",
        )


def int8_against_keras(material: Material) -> Iterator[Figure]:
    """The 8-bit variant, exact, against Keras's predict over bare patches, and the seams that those leave."""
    side = material.side // 2
    stack, keras_model = values(side, side, seed=0), network()
    patches = _patches(stack)
    work = partial(keras_model.predict, patches, batch_size=BATCH, verbose=0)
    ours, theirs, attempts = Watch(), Watch(), 0
    material.int8.probability(stack)
    work()
    while len(theirs.seconds) < REPEATS and attempts < ATTEMPTS:
        attempts += 1
        ours.run(partial(material.int8.probability, stack))
        theirs.run(work, at_least=BUSY)
    seams = np.abs(_joined(work()) - material.model.probability(stack)).max()
    name = "int8 against Keras predict over bare patches (the study's way)"
    how = f"{side}² from memory to memory, patches of {PATCH}²; {len(theirs.seconds)} of {attempts} runs of Keras count"
    if not theirs.seconds:
        yield Figure.at_least(name, 0, 2.0, "×", f"{how}: it never had {BUSY} cores, so nothing was measured")
        return
    yield Figure.at_least(
        name,
        theirs.median / ours.median,
        2.0,
        "×",
        f"{how}; {ours.median:.1f} s against {theirs.median:.1f} s, medians; {_cores(ours, theirs)}; its seams err "
        f"by up to {seams:.2g}, ours by none",
    )


def peak_memory(material: Material) -> Iterator[Figure]:
    """Peak memory of `talud predict`, on a small and on a large raster."""
    small, large = (int(_predict(material, raster, NOTE_PEAK)) * 1024 / 1e9 for raster in ("half.tif", "double.vrt"))
    sides = f"{material.side // 2}² and {material.side * 2}²"
    how = f"`talud predict`, VmHWM: {small:.2f} GB and {large:.2f} GB for rasters of {sides}; one run each"
    yield Figure.at_most("peak memory, growth with the raster", abs(large / small - 1), 0.15, "of the smaller", how)
    yield Figure.at_most("peak memory", max(small, large), 3.0, "GB", how)


def start(material: Material) -> Iterator[Figure]:
    """From the start of the command to the start of the first tile's computation."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.time()
        seconds.append(float(_predict(material, "half.tif", NOTE_START)) - begun)
    yield Figure.at_most(
        "time from the start of the command to the first tile",
        statistics.median(seconds),
        3.0,
        "s",
        f"`talud predict` with an .onnx file on {material.side // 2}², {REPEATS} runs, median",
    )


def workers(material: Material) -> Iterator[Figure]:
    """Two Dask workers of one thread, each on a core of its own, against one."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    for number in (1, 2) * REPEATS:
        with _cluster(material.folder, number) as (address, pids):
            before = sum(map(_process_seconds, pids))
            _predict(material, "stack.tif", "", "--tile", str(WORKER_TILE), "--scheduler", address)
            used = sum(map(_process_seconds, pids)) - before
        timings = json.loads((material.folder / "map/timings.json").read_text())
        seconds[number].append(timings["seconds"]["tiles"])
        busy[number].append(used / seconds[number][-1])
    one, two = (statistics.median(seconds[number]) for number in (1, 2))
    cores = " and ".join(f"{statistics.mean(busy[number]):.2f}" for number in (1, 2))
    yield Figure.at_least(
        "two Dask workers of one thread against one",
        one / two,
        1.8,
        "×",
        f"`talud predict --scheduler`, the seconds of the tiles (all {(material.side // WORKER_TILE) ** 2} of "
        f"{WORKER_TILE}²), workers started before: {one:.1f} s against {two:.1f} s; {REPEATS} runs in turn, medians; "
        f"CPU / wall of the workers {cores}",
    )


@contextmanager
def _cluster(folder: Path, number: int) -> Iterator[tuple[str, list[int]]]:
    """A scheduler with so many workers of one thread, each bound to a core of its own; its address, their pids."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    dask = [sys.executable, "-m"]
    scheduler = [*dask, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    scheduler += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
    silent: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(scheduler, **silent)]
    try:
        while not file.exists():
            time.sleep(0.02)
        address = json.loads(file.read_text())["address"]
        for core in sorted(os.sched_getaffinity(0))[:number]:
            worker = ["taskset", "--cpu-list", str(core), *dask, "distributed.cli.dask_worker", address]
            worker += ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
            started.append(subprocess.Popen([*worker, "--local-directory", str(folder)], **silent))
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(number, timeout=30)
        yield address, [process.pid for process in started[1:]]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _process_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _predict(material: Material, raster: str, before: str = "", *options: str) -> str:
    """Run `talud predict` in a process of its own; the last line that it prints."""
    command = [sys.executable, "-c", before + COMMAND, "predict", material.model_file, material.folder / raster]
    command += ["--out", material.folder / "map", *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return result.stdout.splitlines()[-1]


def _blended(session: Any, stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """The usual way: tiles that overlap by half, blended with a Hann window."""
    shapes = ((len(stack), *stack.shape[1:]), (1, *stack.shape[1:]))
    source, target = (
        Tiler(shape, (shape[0], PATCH, PATCH), overlap=(0, PATCH // 2, PATCH // 2), channel_dimension=0)
        for shape in shapes
    )
    merger = Merger(target, window="hann")
    for number, batch in source(stack, batch_size=BATCH):
        merger.add_batch(number, BATCH, session.run(None, {"stack": batch})[0])
    merged: NDArray[np.float32] = merger.merge(dtype=np.float32)[0]
    return merged


def _patches(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """A square stack, its side a multiple of the patch's, cut into bare patches (patches, height, width, bands)."""
    bands, count = len(stack), stack.shape[1] // PATCH
    cut = stack.reshape(bands, count, PATCH, count, PATCH).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(cut.reshape(-1, PATCH, PATCH, bands))


def _joined(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Patches of one band put together again, (height, width)."""
    count = int(len(patches) ** 0.5)
    return patches.reshape(count, count, PATCH, PATCH).transpose(0, 2, 1, 3).reshape(count * PATCH, count * PATCH)


def _session(material: Material) -> Any:
    """A bare session, set up as talud's own."""
    return open_session(material.model_file.read_bytes(), "cpu")


def _in_turn(*works: Callable[[], object]) -> tuple[Watch, ...]:
    """All of them, run in turn after a first time that does not count."""
    watches = tuple(Watch() for _ in works)
    for work in works:
        work()
    for _ in range(REPEATS):
        for watch, work in zip(watches, works, strict=True):
            watch.run(work)
    return watches


def _cpu_seconds() -> float:
    """Return the processor time of this process and its finished children."""
    return sum(os.times()[:4])


def _cores(*watches: Watch) -> str:
    """Return the cores that each had; unequal ones make the ratio useless."""
    return "CPU / wall " + " and ".join(f"{sum(watch.busy) / sum(watch.seconds):.2f}" for watch in watches)
