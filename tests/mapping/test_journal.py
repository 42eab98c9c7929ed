"""Tests of interrupted and resumed maps."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.engine.tiling import Tile, Tiling
from talud.errors import ModelError, OutputError, SourceError
from talud.mapping import tiles as mapping
from talud.mapping.journal import Journal, TileResult
from talud.mapping.options import MapOptions
from talud.mapping.reader import StackReader
from talud.products import prediction
from talud.progress import Progress

TILES = Tiling.of((100, 140), 64, 8, 4)
BLOCKS = mapping._compute_batch


def products(folder: Path) -> dict[str, bytes]:
    """Return the files of a map except the one with its timings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timings.json"}


def working(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def predict(
    model: Model, stack: Path, out: Path, progress: Progress | None = None, **options: Any
) -> prediction.Prediction:
    return prediction.predict(model, stack, out, MapOptions(**{"tile": 32, **options}), progress)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a stack of six tiles of at most 32 pixels a side."""
    values = noise(60, 90)
    values[1, 10:20, 30:50] = np.nan
    return write_stack(tmp_path_factory.mktemp("stack") / "stack.tif", values)


@pytest.fixture(scope="module")
def expected_map(model: Model, stack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected_map") / "map"
    assert predict(model, stack, out).tiles == 6
    assert not working(out).exists()
    return products(out)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let chosen tiles fail, and count the attempts on each tile."""

    def fail(*numbers: int, error: type[BaseException] = KeyboardInterrupt) -> list[int]:
        tried: list[int] = []

        def blocks(model: Model, tiles: list[Tile], batch: list[mapping.TileInput], tta: bool) -> list[TileResult]:
            tried.append(len(tried) + 1)
            if tried[-1] in numbers:
                raise error("the network fails")
            return BLOCKS(model, tiles, batch, tta)

        monkeypatch.setattr(mapping, "_compute_batch", blocks)
        return tried

    return fail


def make_interrupted_map(
    model: Model, stack: Path, out: Path, attempts: Callable[..., list[int]], **options: Any
) -> None:
    """Make a map that is interrupted after four tiles."""
    attempts(5)
    with pytest.raises(KeyboardInterrupt):
        predict(model, stack, out, **options)
    attempts()


def test_resumed_map_recomputes_no_tile_and_is_identical(
    model: Model, stack: Path, expected_map: dict[str, bytes], attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    make_interrupted_map(model, stack, tmp_path / "map", attempts)
    assert not (tmp_path / "map").exists()
    tried, told = attempts(), []
    outcome = predict(model, stack, tmp_path / "map", progress=lambda done, total: told.append((done, total)))
    assert (len(tried), outcome.taken_over) == (2, 4)
    assert told == [(5, 6), (6, 6)]
    assert products(tmp_path / "map") == expected_map
    assert json.loads((tmp_path / "map/timings.json").read_text())["tiles_taken_over"] == 4
    assert not working(tmp_path / "map").exists()


def test_map_is_resumed_with_another_memory_if_its_tiles_fit(
    model: Model, stack: Path, expected_map: dict[str, bytes], attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Its tiles are kept if they fit, so that another machine or --memory resumes it."""
    make_interrupted_map(model, stack, tmp_path / "map", attempts)
    tried = attempts()
    outcome = predict(model, stack, tmp_path / "map", tile=None, memory="1GB")
    assert (len(tried), outcome.taken_over, outcome.tile) == (2, 4, (32, 32))
    assert products(tmp_path / "map") == expected_map


def test_tile_that_fails_once_is_retried(
    model: Model, stack: Path, expected_map: dict[str, bytes], attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    tried = attempts(3, error=ModelError)
    predict(model, stack, tmp_path / "map")
    assert len(tried) == 7
    assert products(tmp_path / "map") == expected_map


def test_read_that_fails_once_is_retried(
    model: Model, stack: Path, expected_map: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, reads = StackReader.read, []

    def sometimes(self: StackReader, window: Any) -> np.ndarray:
        reads.append(window)
        if len(reads) == 4:
            raise SourceError("the share is away")
        return read(self, window)

    monkeypatch.setattr(StackReader, "read", sometimes)
    predict(model, stack, tmp_path / "map")
    assert len(reads) == 7
    assert products(tmp_path / "map") == expected_map


def test_tile_that_fails_twice_stops_the_run_with_its_location(
    model: Model, stack: Path, expected_map: dict[str, bytes], attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    attempts(5, 6, error=ModelError)
    with pytest.raises(ModelError) as caught:
        predict(model, stack, tmp_path / "map")
    message = str(caught.value)
    assert "the network fails (twice, at rows 32 to 60 and columns 32 to 64)" in message
    assert "4 finished tiles are kept, run the same command to resume" in message
    assert "\n" not in message
    assert not (tmp_path / "map").exists()
    assert len(attempts()) == 0
    assert predict(model, stack, tmp_path / "map").taken_over == 4
    assert products(tmp_path / "map") == expected_map


# In 60 × 240 pixels with tiles of 24, nine tiles in a row have the same key and no edge within their halo.
ROW = {"tile": 24, "batch": 3}


@pytest.mark.slow
def test_failed_batch_is_retried_tile_by_tile(model: Model, attempts: Callable[..., list[int]], tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "stack.tif", noise(60, 240))
    predict(model, stack, tmp_path / "expected_map", tile=24)
    tried = attempts(1, error=ModelError)
    predict(model, stack, tmp_path / "once", **ROW)
    assert products(tmp_path / "once") == products(tmp_path / "expected_map")
    passes = len(tried) - 4  # without the failing pass and those of its three tiles
    attempts(2, 4, error=ModelError)
    with pytest.raises(ModelError, match=r"twice, at rows \d+ to \d+ and columns \d+ to \d+") as caught:
        predict(model, stack, tmp_path / "map", **ROW)
    assert "the network fails (twice, at rows 0 to 20 and columns 144 to 168)" in str(caught.value)
    assert 0 < passes < predict(model, stack, tmp_path / "again", tile=24).tiles
    attempts()
    assert predict(model, stack, tmp_path / "map", **ROW | {"batch": 2}).taken_over == 3
    assert products(tmp_path / "map") == products(tmp_path / "expected_map")


@pytest.mark.slow
def test_batch_skips_tiles_without_a_pixel_to_map(model: Model, tmp_path: Path) -> None:
    values = noise(60, 240)
    values[:, :, 100:170] = np.nan
    stack = write_stack(tmp_path / "stack.tif", values)
    outcomes = [predict(model, stack, tmp_path / str(batch), tile=24, batch=batch) for batch in (1, 3)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].skipped > 0
    assert products(tmp_path / "1") == products(tmp_path / "3")


def test_journal_without_a_finished_tile_is_deleted(
    model: Model, stack: Path, attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    attempts(1, 2, error=ModelError)
    with pytest.raises(ModelError) as caught:
        predict(model, stack, tmp_path / "map")
    assert "kept" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"threshold": 0.4}, "threshold 0.5 (now 0.4)"),
        ({"tile": 20}, "tile 32 × 32 (now 20 × 20)"),
        ({"halo": 8}, "halo 28 (now 8)"),
        ({"minimum_area": 900.0}, "minimum area 0 m² (now 900 m²)"),
        ({"smooth": True}, "outlines along the pixels (now smoothed)"),
        ({"geojson": True}, "GeoJSON no (now yes)"),
        ({"tta": True}, "test-time augmentation no (now yes)"),
    ],
)
def test_map_started_with_other_options_is_refused(
    model: Model, stack: Path, attempts: Callable[..., list[int]], tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    out = tmp_path / "map"
    make_interrupted_map(model, stack, out, attempts)
    before = {path: path.stat() for path in working(out).rglob("*.npz")}
    with pytest.raises(OutputError) as caught:
        predict(model, stack, out, **options)
    assert f"4 finished tiles of a map that was started with {named};" in str(caught.value)
    assert f"{working(out)}: " in str(caught.value)
    assert "delete that folder to start over" in str(caught.value)
    assert {path: path.stat() for path in working(out).rglob("*.npz")} == before
    shutil.rmtree(working(out))
    assert predict(model, stack, out, **options).taken_over == 0


def test_map_started_with_another_raster_is_refused(
    model: Model, stack: Path, attempts: Callable[..., list[int]], tmp_path: Path
) -> None:
    own, out = tmp_path / "stack.tif", tmp_path / "map"
    shutil.copy2(stack, own)
    make_interrupted_map(model, own, out, attempts)

    def said() -> str:
        with pytest.raises(OutputError, match="started with") as caught:
            predict(model, own, out)
        return str(caught.value)

    os.utime(own, ns=(0, 1))
    assert "started with different size and time of change;" in said()
    values = noise(60, 90)
    write_stack(own, values)
    assert "different pixels, different size" in said()
    write_stack(own, values[:, :50])
    assert "grid 90 columns × 60 rows at (400000.0, 12.5, 0.0, 650000.0, 0.0, -12.5) in EPSG:32618 (now " in said()
    write_stack(own, noise(60, 90), tags={"TALUD_EVENT": "2015-05-18"})
    assert "different bands and tags" in said()
    shutil.copy2(stack, own)
    assert predict(model, own, out).taken_over == 4


def test_map_started_with_another_model_or_release_is_refused(
    model: Model, unets: dict[int, Model], stack: Path, attempts: Callable[..., list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make_interrupted_map(model, stack, tmp_path / "map", attempts)
    with pytest.raises(OutputError, match="started with different model file"):
        predict(unets[2], stack, tmp_path / "map")
    monkeypatch.setattr("talud.products.prediction.version", lambda _: "99")
    with pytest.raises(OutputError, match=r"started with talud .* \(now 99\)"):
        predict(model, stack, tmp_path / "map")


def test_run_resumes_with_a_moved_raster(
    model: Model, stack: Path, attempts: Callable[..., list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_interrupted_map(model, stack, tmp_path / "map", attempts)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy2(stack, tmp_path / "elsewhere" / stack.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert predict(model, Path(stack.name), tmp_path / "map").taken_over == 4


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_damaged_tile_is_computed_again(
    model: Model,
    stack: Path,
    expected_map: dict[str, bytes],
    attempts: Callable[..., list[int]],
    tmp_path: Path,
    harm: str,
) -> None:
    out = tmp_path / "map"
    make_interrupted_map(model, stack, out, attempts)
    tile = sorted(working(out).rglob("*.npz"))[1]
    content = bytearray(tile.read_bytes())
    content[len(content) // 2] ^= 1
    tile.write_bytes({"cut": content[:2000], "flipped": content, "empty": b""}[harm])
    assert predict(model, stack, out).taken_over == 3
    assert products(out) == expected_map


@pytest.mark.slow
def test_second_process_on_one_map_is_refused(model: Model, stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    code = f"""
import sys
from pathlib import Path
from talud.mapping.journal import Journal
with Journal.open(Path({str(out)!r}), {{}}):
    print("open", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(OutputError, match="another process is making this map"):
            predict(model, stack, out)
        assert working(out).exists()
        other.kill()
    assert predict(model, stack, out).tiles == 6


@pytest.mark.slow
def test_new_map_removes_the_files_of_an_earlier_one(model: Model, stack: Path, tmp_path: Path) -> None:
    predict(model, stack, tmp_path / "map", geojson=True)
    (tmp_path / "map/probability.tif.aux.xml").write_text("statistics that a GIS kept")
    (tmp_path / "map/notes.txt").write_text("a user's own")
    assert (tmp_path / "map/landslides.geojson").exists()
    predict(model, stack, tmp_path / "map")
    assert not (tmp_path / "map/landslides.geojson").exists()
    assert not (tmp_path / "map/probability.tif.aux.xml").exists()
    assert (tmp_path / "map/notes.txt").exists()


def test_working_folder_is_inside_if_the_parent_is_read_only(
    model: Model, stack: Path, expected_map: dict[str, bytes], attempts: Callable[..., list[int]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "map"
    out.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and may(path, mode))
    make_interrupted_map(model, stack, out, attempts)
    assert [path.name for path in out.iterdir()] == [".partial"]
    assert predict(model, stack, out).taken_over == 4
    assert products(out) == expected_map


def test_journal_returns_tile_results_unchanged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = {}
    with Journal.open(tmp_path / "map", {"a": 1}) as journal:
        for tile in TILES:
            shape = tile.core.height, tile.core.width
            blocks[tile] = TileResult(rng.random(shape, np.float32), rng.integers(0, 900, shape, np.uint16))
            assert journal.read(tile) is None
            journal.write(tile, blocks[tile])
        assert len(journal) == len(TILES)
        for tile, block in blocks.items():
            found = journal.read(tile)
            assert found is not None
            assert np.array_equal(found.probability, block.probability)
            assert np.array_equal(found.unmapped, block.unmapped)
    assert list(tmp_path.iterdir()) == []


# Runs that are killed, in separate processes.

KILLED_AT = """
import os, pathlib, signal, sys
calls = last = 0

def counted(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

import geopandas, rasterio, scipy.ndimage  # imported once for all runs
from talud.cli.main import main
for owner, name in ((pathlib.Path, "replace"), (pathlib.Path, "unlink"), (os, "rmdir")):
    setattr(owner, name, counted(getattr(owner, name)))
for line in sys.stdin:
    last = int(line)
    if (run := os.fork()) == 0:
        os.dup2(2, 1)
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]), flush=True)
"""


@contextmanager
def killed_at(*arguments: object) -> Iterator[Callable[[int], int]]:
    """Return a function that runs `talud` and kills it before the given rename.

    It returns the exit code. Each run is forked from a process that has imported most libraries, since importing takes
    longer than the run. ONNX Runtime is not among them: at its exit it waits for threads that a fork does not copy.
    """
    command = [sys.executable, "-c", KILLED_AT, *map(str, arguments)]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) as attempts:
        assert attempts.stdin
        assert attempts.stdout

        def run(last: int) -> int:
            print(last, file=attempts.stdin, flush=True)
            return int(attempts.stdout.readline())

        yield run


@pytest.mark.slow
def test_run_killed_at_any_rename_resumes(tiny_model: Path, model: Model, tmp_path: Path) -> None:
    """Each run is killed one rename later than the previous one."""
    stack, earlier_stack = tmp_path / "stack.tif", tmp_path / "earlier.tif"
    write_stack(stack, noise(40, 40))
    write_stack(earlier_stack, noise(40, 40, seed=1))
    predict(model, stack, tmp_path / "expected_map", tile=None)
    predict(model, earlier_stack, tmp_path / "map", tile=None, geojson=True)
    earlier, wanted = products(tmp_path / "map"), products(tmp_path / "expected_map")
    with killed_at("predict", tiny_model, stack, "--out", tmp_path / "map") as run:
        for last in range(1, 200):
            code = run(last)
            found = products(tmp_path / "map")
            for name, content in found.items():
                assert content in (earlier.get(name), wanted.get(name)), (last, name)
            if "prediction.json" in found:
                assert found in (earlier, wanted), last
            if code == 0:
                break
            assert code == -signal.SIGKILL
    assert last > 20
    assert found == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"stack.tif", "earlier.tif", "expected_map", "map"}


@pytest.mark.slow
def test_run_killed_at_random_times_makes_identical_files(exporter: Callable[..., Path], tmp_path: Path) -> None:
    model, seed = exporter(4), random.randrange(10**6)
    chance = random.Random(seed)
    values = noise(500, 700)
    values[0, 100:300, 200:600] = np.nan
    command = [
        *(sys.executable, "-m", "talud.cli.main", "predict", model, write_stack(tmp_path / "stack.tif", values)),
        *("--tile", "32", "--geojson", "--minimum-area", "400", "--provider", "cpu", "--out"),
    ]
    subprocess.run([*command, tmp_path / "expected_map"], check=True, capture_output=True)
    out, kills, finished = tmp_path / "map", 0, {}
    total = json.loads((tmp_path / "expected_map/prediction.json").read_text())["tiles"]
    assert total > 300
    for target in [*sorted(chance.sample(range(1, total), 3)), total]:
        run = subprocess.Popen([*command, out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and len(tiles(out)) < target:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3 if target == total else 0.03))
        run.kill()
        kills += run.wait() == -signal.SIGKILL
        if not working(out).exists():
            break  # the run was complete
        now = tiles(out)
        assert finished.items() <= now.items(), seed  # not written again
        finished = now
        assert not out.exists() or set(products(out)) <= set(products(tmp_path / "expected_map"))
    result = subprocess.run([*command, out], check=True, capture_output=True, text=True)
    assert kills >= 3, seed
    if finished:
        assert f"resumed with {len(finished)} of {total} tiles" in result.stdout, seed
    assert products(out) == products(tmp_path / "expected_map"), seed
    assert not working(out).exists()


def tiles(out: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and modification time of each finished tile's file."""
    try:
        return {
            entry.name: (entry.stat().st_ino, entry.stat().st_mtime_ns)
            for entry in os.scandir(working(out) / "tiles")
            if entry.name.endswith(".npz")
        }
    except FileNotFoundError:
        return {}


# Runs on a full disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("within", [True, False], ids=["folder on the disk", "the disk itself"])
def test_run_resumes_after_a_full_disk(model: Model, small_disk: Path, tmp_path: Path, within: bool) -> None:
    stack, out = write_stack(tmp_path / "stack.tif", noise(500, 500)), small_disk / "map" if within else small_disk
    predict(model, stack, tmp_path / "expected_map", tile=100)
    others = small_disk / "others.bin"
    others.write_bytes(bytes((4096 - 1480) * 1024))
    with pytest.raises(OutputError, match=r"finished tiles are kept, run the same command to resume") as caught:
        predict(model, stack, out, tile=100)
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists() or {path.name for path in out.iterdir()} == {".partial", others.name}
    # There is room for the tiles, but not for the rasters.
    others.write_bytes(bytes((4096 - 2500) * 1024))
    with pytest.raises(OutputError, match=r"25 finished tiles are kept, run the same command to resume"):
        predict(model, stack, out, tile=100)
    others.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert predict(model, stack, out, tile=100).taken_over == 25
    assert products(out) == products(tmp_path / "expected_map")


def test_working_folder_is_on_the_disk_of_the_map(model: Model, stack: Path, small_disk: Path) -> None:
    """A link to another disk is followed, since renaming works on one disk only."""
    link = small_disk.with_name("link")
    link.symlink_to(small_disk / "map")
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    predict(model, stack, link)
    with rasterio.open(small_disk / "map/probability.tif") as dataset:
        assert dataset.shape == (60, 90)
