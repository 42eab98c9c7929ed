"""Tests of maps that several workers make."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from dask_cluster import run_dask_cluster
from range_server import run_range_server
from stack_files import noise, write_stack
from talud import cluster_connection, errors
from talud.engine.runtime import Model
from talud.engine.tiling import Tiling
from talud.errors import ClusterError, OutputError, ParamsError, SourceError, TaludError
from talud.files import md5
from talud.mapping import workers
from talud.mapping.journal import Journal
from talud.mapping.options import MapOptions
from talud.mapping.reader import open_stack
from talud.mapping.tiles import PassOptions, compute_tiles
from talud.products.prediction import predict

COMMAND = (sys.executable, "-m", "talud.cli.main", "predict")


def products(folder: Path) -> dict[str, bytes]:
    """Return the files of a map except the one with its timings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timings.json"}


def working(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def tiles(out: Path) -> dict[str, int]:
    """Return the inode of each finished tile's file, which changes if rewritten."""
    try:
        return {entry.name: entry.inode() for entry in os.scandir(working(out) / "tiles")}
    except FileNotFoundError:
        return {}


def finished(out: Path, number: int, run: subprocess.Popen[str]) -> None:
    """Wait until a number of tiles is finished."""
    while run.poll() is None and len(tiles(out)) < number:
        time.sleep(0.005)
    assert run.poll() is None, run.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a run."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def beside_progress(said: str) -> list[str]:
    """Return the lines of stderr that are not progress."""
    return [line for line in said.splitlines() if not re.fullmatch(r"mapping: \d+ of \d+ tiles", line)]


@contextmanager
def starting(model: Path, stack: Path, out: Path, *options: object) -> Iterator[subprocess.Popen[str]]:
    command = [*COMMAND, model, stack, "--out", out, "--tile", "32", "--provider", "cpu", *options]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        try:
            yield run
        finally:
            run.kill()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a stack of 48 tiles of at most 32 pixels a side."""
    values = noise(180, 250)
    values[1, 40:90, 30:150] = np.nan
    return write_stack(tmp_path_factory.mktemp("stack") / "stack.tif", values)


@pytest.fixture(scope="module")
def expected_map(model: Model, stack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected_map") / "map"
    assert predict(model, stack, out, MapOptions(tile=32)).tiles == 48
    return products(out)


class LargeRaster(NamedTuple):
    """A raster of 361 tiles, and the files that one process makes of it."""

    stack: Path
    expected_map: dict[str, bytes]


@pytest.fixture(scope="module")
def large_raster(model: Model, tmp_path_factory: pytest.TempPathFactory) -> LargeRaster:
    folder = tmp_path_factory.mktemp("large_raster")
    stack = folder / "stack.tif"
    stack.symlink_to(write_stack(folder / "3f2a.tif", noise(600, 600)))  # like a link of DVC into its cache
    assert predict(model, stack, folder / "map", MapOptions(tile=32)).tiles == 361
    return LargeRaster(stack, products(folder / "map"))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 32, 64]), st.integers(1, 9), st.integers(0, 10))
def test_shards_contain_each_tile_once(height: int, width: int, tile: int, slots: int, finished: int) -> None:
    missing = list(Tiling.of((height, width), tile, 8, 4))[finished:]
    shards = list(workers._cut_into_shards(missing, slots)) if missing else []
    assert [each for shard in shards for each in shard.tiles] == missing
    assert len(shards) >= min(len(missing), workers.MIN_SHARDS_PER_SLOT * slots)
    largest = max((sum(t.core.width * t.core.height for t in shard.tiles) for shard in shards), default=0)
    assert largest <= workers.MAX_SHARD_PIXELS


@pytest.mark.parametrize("kind", [error for error in vars(errors).values() if isinstance(error, type)])
def test_errors_survive_pickling(kind: type[TaludError]) -> None:
    sent = pickle.loads(pickle.dumps(kind("what was found, what was expected")))
    assert (type(sent), str(sent)) == (kind, "what was found, what was expected")


@pytest.mark.slow
def test_workers_make_identical_files(
    model: Model, stack: Path, expected_map: dict[str, bytes], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    outcome = predict(
        model, stack, tmp_path / "map", MapOptions(tile=32, workers=3), progress=lambda *now: told.append(now)
    )
    assert products(tmp_path / "map") == expected_map
    assert told == sorted(told)
    assert (told[-1], len(told), outcome.taken_over) == ((48, 48), 12, 0)
    assert json.loads((tmp_path / "map/timings.json").read_text())["workers"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


@pytest.mark.slow
def test_worker_opens_the_raster_once_for_all_shards(
    model: Model, stack: Path, expected_map: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The raster is on a server, and GDAL's cache is dropped when it is closed.

    Each opening therefore fetches the header again.
    """
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/")
    told: list[int] = []
    with run_range_server(stack, tmp_path / "control") as server:
        address = f"/vsicurl/{server.address}"
        predict(
            model, address, tmp_path / "map", MapOptions(tile=32, workers=2), progress=lambda done, _: told.append(done)
        )
        headers = [part for part in server.parts.read_text().splitlines() if part.startswith("0 ")]
    assert len(told) == 8  # shards
    assert len(headers) == 3  # one by this process and one by each worker
    rasters = {"probability.tif", "landslides.tif"}
    found = products(tmp_path / "map")
    assert all(found[name] == expected_map[name] for name in rasters)


def test_worker_retries_opening_the_raster_and_closes_it(
    model: Model, stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("CPL_VSIL_CURL_NON_CACHED", "/vsicurl/")
    file = workers.SharedModel(model.path, "", None, "cpu")
    with run_range_server(stack, tmp_path / "control") as server:
        raster = f"/vsicurl/{server.address}"
        with open_stack(raster, model.contract) as reader:
            facts = workers._environment(model, reader)
        job = workers.ShardContext(file, raster, Journal(tmp_path, tmp_path), PassOptions(), facts, {})
        server.overloaded.write_text("1")
        opened = workers._thread_raster(job, model)
        assert not server.overloaded.exists()  # the first attempt has failed
        assert workers._thread_raster(job, model) is opened
        with ThreadPoolExecutor(1) as dask:  # which opens it in another thread
            dask.submit(workers._close_rasters, job).result()
    assert opened.stack._dataset.closed


@pytest.mark.slow
def test_script_without_a_main_guard_gets_an_explanation(tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom talud import load_model\nfrom talud.errors import ClusterError\n"
        "from talud import MapOptions, predict\n"
        "try:\n    predict(load_model(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), MapOptions(workers=2))\n"
        "except ClusterError as error:\n    print(error)\n"
    )
    command = [sys.executable, script, tiny_model, stack, tmp_path / "map"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    (said,) = result.stdout.splitlines()
    assert said.startswith("the worker processes (workers=2) did not start: ")
    assert "a script must start them under if __name__ == '__main__':" in said
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
def test_number_of_threads_changes_no_bit(
    tiny_model: Path, stack: Path, expected_map: dict[str, bytes], tmp_path: Path
) -> None:
    for threads in (1, 3):
        model = Model.load(tiny_model, threads=threads)
        assert model._session.get_session_options().intra_op_num_threads == threads
        predict(model, stack, tmp_path / "map", MapOptions(tile=32))
        assert products(tmp_path / "map") == expected_map


@pytest.mark.slow
def test_map_resumes_with_another_number_of_workers(
    model: Model, stack: Path, expected_map: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(done: int, total: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "map"
    with pytest.raises(KeyboardInterrupt):
        predict(model, stack, out, MapOptions(tile=32, workers=2), progress=stopped)
    first = tiles(out)
    assert 0 < len(first) < 48

    def stopped_later(done: int, total: int) -> None:
        if done > len(first) + 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, stack, out, MapOptions(tile=32), progress=stopped_later)
    second = tiles(out)
    assert first.items() < second.items()
    assert predict(model, stack, out, MapOptions(tile=32, workers=1)).taken_over == len(second)
    assert products(out) == expected_map


def test_orphaned_worker_finishes_no_tile_of_the_next_run(model: Model, stack: Path, tmp_path: Path) -> None:
    out, tiling = tmp_path / "map", model.tiling((180, 250), 32)
    first, second, *_ = tiling
    with open_stack(stack, model.contract) as reader:
        with suppress(KeyboardInterrupt), Journal.open(out, {"model": 1}) as old:
            compute_tiles(model, reader, [first], old, PassOptions())
            raise KeyboardInterrupt
        with Journal.open(out, {"model": 1}) as new:
            assert len(new) == 1
            with pytest.raises(OutputError):
                compute_tiles(model, reader, [second], old, PassOptions())
            assert len(new) == 1
            compute_tiles(model, reader, [second], new, PassOptions())
            assert len(new) == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
def test_damaged_raster_stops_the_run_with_its_location(model: Model, tmp_path: Path, workers: int | None) -> None:
    """One block of one band is damaged; header and overviews are not."""
    raster = write_stack(tmp_path / "damaged.tif", noise(2100, 2100))
    with rasterio.open(raster) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_3_3", "TIFF", bidx=1))
    content = bytearray(raster.read_bytes())
    content[offset : offset + 2000] = bytes(2000)
    raster.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        predict(model, raster, tmp_path / "map", MapOptions(tile=700, workers=workers))
    said = str(caught.value)
    assert "\n" not in said
    assert f"{raster}: cannot be read as a raster" in said
    assert "(twice, at rows 1400 to 2100 and columns 1400 to 2100)" in said
    assert "8 finished tiles are kept" in said or workers
    assert not (tmp_path / "map").exists()


def test_invalid_number_of_workers_is_refused(model: Model, stack: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="the number of workers is 0; it must be at least 1"):
        predict(model, stack, tmp_path / "map", MapOptions(workers=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_dask_is_one_line_that_names_the_extra(tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['distributed'] = None; from talud.cli.main import main; main()"
    command = [sys.executable, "-c", code, "predict", tiny_model, stack, "--out", tmp_path / "map", "--workers", "2"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "talud: workers need Dask, which is not installed: pip install 'talud[cluster]'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_worker_loses_only_unfinished_tiles(tiny_model: Path, large_raster: LargeRaster, tmp_path: Path) -> None:
    out, kills = tmp_path / "map", 0
    seen: dict[str, int] = {}
    with starting(tiny_model, large_raster.stack, out, "--workers", 2) as run:
        finished(out, 50, run)
        while run.poll() is None:
            now = tiles(out)
            assert all(seen[name] == now[name] for name in seen.keys() & now.keys())  # no tile was written again
            if kills < 2 and len(now) > 50 + 100 * kills:
                os.kill(workers_of(run.pid)[0], signal.SIGKILL)
                kills += 1
            seen = now
            time.sleep(0.01)
        complained = beside_progress(run.communicate()[1])
    assert (run.returncode, complained, kills) == (0, [], 2)
    assert products(out) == large_raster.expected_map
    assert not working(out).exists()


@pytest.mark.slow
def test_workers_end_with_their_parent_and_the_run_resumes(
    tiny_model: Path, large_raster: LargeRaster, tmp_path: Path
) -> None:
    out = tmp_path / "map"
    with starting(tiny_model, large_raster.stack, out, "--workers", 2) as run:
        finished(out, 60, run)
        workers = workers_of(run.pid)
        assert len(workers) == 2
        run.kill()
        run.wait()
        limit = time.monotonic() + 10
        while any(map(alive, workers)):
            assert time.monotonic() < limit
            time.sleep(0.05)
    kept = len(tiles(out))
    with starting(tiny_model, large_raster.stack, out) as run:
        said, complained = run.communicate()
    assert (run.returncode, beside_progress(complained)) == (0, [])
    assert f"resumed with {kept} of " in said
    assert products(out) == large_raster.expected_map


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_quietly(tiny_model: Path, large_raster: LargeRaster, tmp_path: Path) -> None:
    """A terminal sends the signal to all processes of the group."""
    out = tmp_path / "map"
    with starting(tiny_model, large_raster.stack, out, "--workers", 2) as run:
        finished(out, 10, run)
        workers = workers_of(run.pid)
        os.killpg(run.pid, signal.SIGINT)
        said, complained = run.communicate(timeout=30)
    assert (run.returncode, said.strip(), "".join(beside_progress(complained))) == (130, "", "")
    assert len(workers) == 2
    assert not any(map(alive, workers))
    assert len(tiles(out)) >= 10


def test_raster_opened_while_its_job_ends_is_closed(
    tiny_model: Path, large_raster: LargeRaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(tiny_model, tmp_path / "model.onnx"))
    shared, model = workers.SharedModel(copy, md5(copy), None, "cpu"), Model.load(copy)
    job = workers.ShardContext(shared, str(large_raster.stack), None, None, {}, {})
    started, permitted = Event(), Event()

    @contextmanager
    def open_slowly(*arguments: object) -> Iterator[object]:
        started.set()
        permitted.wait(30)
        with open_stack(*arguments) as stack:
            yield stack

    monkeypatch.setattr(workers, "open_stack", open_slowly)
    with ThreadPoolExecutor(2) as pool:
        opening = pool.submit(workers._thread_raster, job, model)
        assert started.wait(30)
        copy.unlink()
        closing = pool.submit(workers._close_rasters, job)
        time.sleep(0.2)
        permitted.set()
        opening.result()
        closing.result()
        assert workers._open_rasters == {}
        with pytest.raises(ClusterError, match="cancelled"):
            pool.submit(workers._thread_raster, job, model).result()


# Runs on an existing cluster.


@pytest.mark.slow
def test_cluster_that_loses_a_worker_makes_identical_files(
    tiny_model: Path, large_raster: LargeRaster, tmp_path: Path
) -> None:
    out = tmp_path / "map"
    place = os.path.relpath(large_raster.stack)  # relative to this process; the workers run elsewhere
    with run_dask_cluster(tmp_path / "cluster", {}, {}) as (address, pids):
        with starting(tiny_model, Path(place), out, "--scheduler", address) as run:
            finished(out, 100, run)
            os.kill(pids[1], signal.SIGKILL)
            assert (beside_progress(run.communicate()[1]), run.returncode) == ([], 0)
        assert products(out) == large_raster.expected_map


@pytest.mark.slow
def test_lost_scheduler_is_one_line_and_tiles_are_kept(
    tiny_model: Path, large_raster: LargeRaster, tmp_path: Path
) -> None:
    out = tmp_path / "map"
    with (
        run_dask_cluster(tmp_path / "cluster", {}) as (address, pids),
        starting(tiny_model, large_raster.stack, out, "--scheduler", address) as run,
    ):
        finished(out, 50, run)
        os.kill(pids[0], signal.SIGKILL)
        said, complained = run.communicate(timeout=60)
    assert (run.returncode, said) == (1, "")
    (line,) = beside_progress(complained)
    assert "the scheduler was lost" in line
    assert "finished tiles are kept, run the same command to resume" in line


@pytest.mark.slow
def test_worker_of_another_release_is_refused(model: Model, stack: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "other/talud-99.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: talud\nVersion: 99\n")
    path = os.pathsep.join([str(metadata.parent), *sys.path])
    with (
        run_dask_cluster(tmp_path / "cluster", {"PYTHONPATH": path}) as (address, _),
        pytest.raises(
            ClusterError, match=r"worker tcp://127\.0\.0\.1:\d+ has talud 99, but this process has "
        ) as caught,
    ):
        predict(model, stack, tmp_path / "map", MapOptions(tile=32, workers=address))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "map").exists()
    assert not working(tmp_path / "map").exists()


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["nobody", "another", "no workers"])
def test_unusable_scheduler_is_reported_in_seconds(
    model: Model, stack: Path, tmp_path: Path, answers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_connection, "CONNECT_TIMEOUT_SECONDS", 2)
    begun = time.monotonic()

    def said(address: str) -> str:
        with pytest.raises(ClusterError) as caught:
            predict(model, stack, tmp_path / "map", MapOptions(workers=address))
        return str(caught.value)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        if answers == "no workers":
            with run_dask_cluster(tmp_path / "cluster") as (address, _):
                assert (
                    said(address) == f"{address}: the scheduler has no workers; start one with: dask worker {address}"
                )
        else:
            if answers == "another":
                other.listen()
            assert (
                said(address)
                == f"{address}: no Dask scheduler of this Dask release answers within 2 s; check that it runs"
            )
    assert time.monotonic() - begun < 20
    assert not working(tmp_path / "map").exists()


@pytest.mark.slow
def test_disk_that_workers_do_not_share_is_named(model: Model, stack: Path, tmp_path: Path) -> None:
    """The worker sees another, empty disk at the location of the map's folder."""
    out = tmp_path / "disk/map"
    out.parent.mkdir()
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {out.parent} && exec "$@"', "sh")
    if os.geteuid() != 0 or subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be hidden from a process here: that takes root")
    with (
        run_dask_cluster(tmp_path / "cluster", {}, prefix=hide) as (address, _),
        pytest.raises(ClusterError, match=r"cannot access .*; the map's folder must be on a disk that all workers"),
    ):
        predict(model, stack, out, MapOptions(tile=32, workers=address))
    assert list(out.parent.iterdir()) == []
