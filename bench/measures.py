"""Measurements of inference; each function yields figures."""

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
from inputs import random_network, random_stack
from numpy.typing import NDArray
from tiler import Merger, Tiler

from talud.contract import variant_path
from talud.engine.runtime import Model
from talud.engine.session import open_session

REPEATS = 3
MAX_ATTEMPTS = 10  # repeats, including discarded ones
MIN_BUSY_CORES = 1.8  # repeats of Keras with fewer cores are discarded: its two threads sometimes share one
WORKER_TILE_PIXELS = 512  # small enough that two workers get many tiles
PATCH_PIXELS, BATCH_PATCHES = 256, 4  # of the comparisons, whose speed hardly depends on either

COMMAND = "from talud.cli.main import main; main()"
PRINT_FIRST_TILE_TIME = """
import sys, time
from talud.engine.runtime import Model
def print_time(*_):
    print(time.time(), flush=True)
    sys.exit()
Model.run_cores = print_time
"""
PRINT_PEAK_MEMORY = """
import atexit
from pathlib import Path
def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(line.split()[1])
atexit.register(peak)
"""


@dataclass(frozen=True)
class Figure:
    """Row of the table of results.

    Attributes:
        name: measured quantity.
        value: measured value.
        target: target value, such as "≤ 1.30".
        met: whether the value meets the target.
        unit: unit of the value.
        how: conditions of the measurement, on one line.
    """

    name: str
    value: float
    target: str
    met: bool
    unit: str
    how: str

    @classmethod
    def at_most(cls, name: str, value: float, limit: float, unit: str, how: str) -> Figure:
        """Return a figure with an upper limit."""
        return cls(name, round(value, 3), f"≤ {limit:g}", value <= limit, unit, how)

    @classmethod
    def at_least(cls, name: str, value: float, limit: float, unit: str, how: str) -> Figure:
        """Return a figure with a lower limit."""
        return cls(name, round(value, 3), f"≥ {limit:g}", value >= limit, unit, how)


@dataclass(frozen=True)
class Inputs:
    """Files of `inputs.py` in a folder, for rasters of `side` × `side` pixels."""

    folder: Path
    side: int

    @property
    def model_file(self) -> Path:
        """Path of the model."""
        return self.folder / "unet.onnx"

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        return Model.load(self.model_file)

    @cached_property
    def int8(self) -> Model:
        """The loaded int8 variant."""
        return Model.load(variant_path(self.model_file, "int8"))


class Stopwatch:
    """Wall times of repeated runs, and the number of cores that they used."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.busy: list[float] = []

    def run(self, work: Callable[[], object], at_least: float = 0) -> None:
        """Run `work` once; record its time if it used at least so many cores."""
        wall, busy = time.perf_counter(), _cpu_seconds()
        work()
        wall, busy = time.perf_counter() - wall, _cpu_seconds() - busy
        if busy >= at_least * wall:
            self.seconds.append(wall)
            self.busy.append(busy)

    @property
    def median(self) -> float:
        """Median wall time in seconds."""
        return statistics.median(self.seconds)


def cost_of_exactness(inputs: Inputs) -> Iterator[Figure]:
    """Compare the time per output pixel with that of the bare network.

    Each kind of tile is weighted by its number in the raster.
    """
    model, side = inputs.model, 2 * inputs.side
    tiling = model.tiling((side, side))
    window = random_stack(*tiling.window, seed=0)
    exact, bare, total = 0.0, 0.0, (Stopwatch(), Stopwatch())
    for edges, count in Counter(tile.edges for tile in tiling).items():
        tile = next(tile for tile in tiling if tile.edges == edges)
        patch = np.ascontiguousarray(
            window[np.newaxis, :, *tile.cell_slices((0, 0, 0, 0), model.contract.input.alignment)]
        )
        bare_run = partial(_session(inputs).run, None, {"stack": patch})
        ours, theirs = _alternate(partial(model.run_cores, [window], [tile]), bare_run)
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
        f"network, medians, weighted by their number; {busy_cores(*total)}",
    )


def end_to_end(inputs: Inputs) -> Iterator[Figure]:
    """Compare `talud predict` with ONNX Runtime on the same tiles from memory."""
    model, side = inputs.model, inputs.side
    tiling, session = model.tiling((side, side)), _session(inputs)
    window = random_stack(*tiling.window, seed=0)
    command, whole, cropped = _alternate(
        partial(_predict, inputs, "stack.tif"),
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
        yield Figure.at_least(name, ratio, 0.92, "×", f"{how}; {busy_cores(command, watch)}")


def against_blending(inputs: Inputs) -> Iterator[Figure]:
    """Compare exact tiling with blending of half-overlapping tiles."""
    model, side = inputs.model, inputs.side // 2
    stack, session = random_stack(side, side, seed=0), _session(inputs)
    ours, theirs = _alternate(partial(model.probability, stack), partial(_blend_tiles, session, stack))
    yield Figure.at_least(
        "speed against tiles that overlap by half, blended (tiler)",
        theirs.median / ours.median,
        2.7,
        "×",
        f"{side}² from memory to memory: {ours.median:.1f} s against {theirs.median:.1f} s in tiles of "
        f"{PATCH_PIXELS}², batches of {BATCH_PATCHES}; {len(ours.seconds)} runs in turn, medians; "
        f"{busy_cores(ours, theirs)}",
    )


def int8_against_float32(inputs: Inputs) -> Iterator[Figure]:
    """Compare int8 with float32: one pass, and a default tile of large rasters."""
    stack = random_stack(512, 512, seed=0)
    tiling = inputs.model.tiling((8192, 8192))
    tile = next(tile for tile in tiling if tile.edges is not None and not any(tile.edges))
    window = random_stack(*tiling.window, seed=0)
    for what, work in (
        ("one pass of 512²", lambda model: model.run(stack)),
        (f"the core of a default tile, {tiling.rows.core}²", lambda model: model.run_cores([window], [tile])),
    ):
        ours, theirs = _alternate(partial(work, inputs.int8), partial(work, inputs.model))
        yield Figure.at_least(
            f"int8 against float32, {what}",
            theirs.median / ours.median,
            2.8,
            "×",
            f"{ours.median:.2f} s against {theirs.median:.2f} s; {REPEATS} runs in turn, medians; "
            f"{busy_cores(ours, theirs)}",
        )


def int8_against_keras(inputs: Inputs) -> Iterator[Figure]:
    """Compare int8 with Keras predict over bare patches, and measure its seams."""
    side = inputs.side // 2
    stack, keras_model = random_stack(side, side, seed=0), random_network()
    patches = _cut_patches(stack)
    work = partial(keras_model.predict, patches, batch_size=BATCH_PATCHES, verbose=0)
    ours, theirs, attempts = Stopwatch(), Stopwatch(), 0
    inputs.int8.probability(stack)
    work()
    while len(theirs.seconds) < REPEATS and attempts < MAX_ATTEMPTS:
        attempts += 1
        ours.run(partial(inputs.int8.probability, stack))
        theirs.run(work, at_least=MIN_BUSY_CORES)
    seams = np.abs(_join_patches(work()) - inputs.model.probability(stack)).max()
    name = "int8 against Keras predict over bare patches (the study's way)"
    how = f"{side}² in memory, patches of {PATCH_PIXELS}²; {len(theirs.seconds)} of {attempts} Keras runs used"
    if not theirs.seconds:
        yield Figure.at_least(name, 0, 2.0, "×", f"{how}: it never had {MIN_BUSY_CORES} cores, so nothing was measured")
        return
    yield Figure.at_least(
        name,
        theirs.median / ours.median,
        2.0,
        "×",
        f"{how}; {ours.median:.1f} s against {theirs.median:.1f} s, medians; {busy_cores(ours, theirs)}; its seams err "
        f"by up to {seams:.2g}, ours by none",
    )


def peak_memory(inputs: Inputs) -> Iterator[Figure]:
    """Measure peak memory of `talud predict` on a small and a large raster."""
    small, large = (
        int(_predict(inputs, raster, PRINT_PEAK_MEMORY)) * 1024 / 1e9 for raster in ("half.tif", "double.vrt")
    )
    sides = f"{inputs.side // 2}² and {inputs.side * 2}²"
    how = f"`talud predict`, VmHWM: {small:.2f} GB and {large:.2f} GB for rasters of {sides}; one run each"
    yield Figure.at_most("peak memory, growth with the raster", abs(large / small - 1), 0.15, "of the smaller", how)
    yield Figure.at_most("peak memory", max(small, large), 3.0, "GB", how)


def start(inputs: Inputs) -> Iterator[Figure]:
    """Measure the time from the start of the command to the first tile."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.time()
        seconds.append(float(_predict(inputs, "half.tif", PRINT_FIRST_TILE_TIME)) - begun)
    yield Figure.at_most(
        "time from the start of the command to the first tile",
        statistics.median(seconds),
        3.0,
        "s",
        f"`talud predict` with an .onnx file on {inputs.side // 2}², {REPEATS} runs, median",
    )


def workers(inputs: Inputs) -> Iterator[Figure]:
    """Compare two single-threaded Dask workers, each on its own core, with one."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    busy: dict[int, list[float]] = {1: [], 2: []}
    for number in (1, 2) * REPEATS:
        with _cluster(inputs.folder, number) as (address, pids):
            before = sum(map(_process_seconds, pids))
            _predict(inputs, "stack.tif", "", "--tile", str(WORKER_TILE_PIXELS), "--scheduler", address)
            used = sum(map(_process_seconds, pids)) - before
        timings = json.loads((inputs.folder / "map/timings.json").read_text())
        seconds[number].append(timings["seconds"]["tiles"])
        busy[number].append(used / seconds[number][-1])
    one, two = (statistics.median(seconds[number]) for number in (1, 2))
    cores = " and ".join(f"{statistics.mean(busy[number]):.2f}" for number in (1, 2))
    yield Figure.at_least(
        "two Dask workers of one thread against one",
        one / two,
        1.8,
        "×",
        f"`talud predict --scheduler`, the seconds of the tiles (all {(inputs.side // WORKER_TILE_PIXELS) ** 2} of "
        f"{WORKER_TILE_PIXELS}²), workers started before: {one:.1f} s against {two:.1f} s; {REPEATS} runs in turn, "
        f"medians; CPU / wall of the workers {cores}",
    )


@contextmanager
def _cluster(folder: Path, number: int) -> Iterator[tuple[str, list[int]]]:
    """Run a scheduler and single-threaded workers; yield its address and their pids."""
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


def _predict(inputs: Inputs, raster: str, before: str = "", *options: str) -> str:
    """Run `talud predict` in a subprocess; return its last line of output."""
    command = [sys.executable, "-c", before + COMMAND, "predict", inputs.model_file, inputs.folder / raster]
    command += ["--out", inputs.folder / "map", *options]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return result.stdout.splitlines()[-1]


def _blend_tiles(session: Any, stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities from half-overlapping tiles, blended with a Hann window."""
    shapes = ((len(stack), *stack.shape[1:]), (1, *stack.shape[1:]))
    source, target = (
        Tiler(
            shape,
            (shape[0], PATCH_PIXELS, PATCH_PIXELS),
            overlap=(0, PATCH_PIXELS // 2, PATCH_PIXELS // 2),
            channel_dimension=0,
        )
        for shape in shapes
    )
    merger = Merger(target, window="hann")
    for number, batch in source(stack, batch_size=BATCH_PATCHES):
        merger.add_batch(number, BATCH_PATCHES, session.run(None, {"stack": batch})[0])
    merged: NDArray[np.float32] = merger.merge(dtype=np.float32)[0]
    return merged


def _cut_patches(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut a square stack into adjacent patches, (patches, height, width, bands)."""
    bands, count = len(stack), stack.shape[1] // PATCH_PIXELS
    cut = stack.reshape(bands, count, PATCH_PIXELS, count, PATCH_PIXELS).transpose(1, 3, 2, 4, 0)
    return np.ascontiguousarray(cut.reshape(-1, PATCH_PIXELS, PATCH_PIXELS, bands))


def _join_patches(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Join adjacent patches of one band, (height, width)."""
    count = int(len(patches) ** 0.5)
    return (
        patches.reshape(count, count, PATCH_PIXELS, PATCH_PIXELS)
        .transpose(0, 2, 1, 3)
        .reshape(count * PATCH_PIXELS, count * PATCH_PIXELS)
    )


def _session(inputs: Inputs) -> Any:
    """Return an ONNX Runtime session with talud's settings."""
    return open_session(inputs.model_file.read_bytes(), "cpu")


def _alternate(*works: Callable[[], object]) -> tuple[Stopwatch, ...]:
    """Run functions alternately after a warm-up; return a stopwatch of each."""
    watches = tuple(Stopwatch() for _ in works)
    for work in works:
        work()
    for _ in range(REPEATS):
        for watch, work in zip(watches, works, strict=True):
            watch.run(work)
    return watches


def _cpu_seconds() -> float:
    """Return the processor time of this process and its finished children."""
    return sum(os.times()[:4])


def busy_cores(*watches: Stopwatch) -> str:
    """Return the cores that each run used; unequal numbers make the ratio useless."""
    return "CPU / wall " + " and ".join(f"{sum(watch.busy) / sum(watch.seconds):.2f}" for watch in watches)
