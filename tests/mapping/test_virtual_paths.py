"""Tests of rasters on a server, in an archive and in a VRT."""

from __future__ import annotations

import json
import socket
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.vrt import WarpedVRT

import talud
from range_server import run_range_server
from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.errors import OutputError, SourceError
from talud.mapping.options import MapOptions
from talud.products.prediction import predict
from talud.raster import NETWORK_TIMEOUTS, open_raster


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("stack") / "stack.tif", noise(700, 600))


@pytest.fixture(scope="module")
def local(model: Model, stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "map"
    predict(model, stack, out, MapOptions(tile=256))
    return out


def same(first: Path, second: Path) -> bool:
    names = {path.name for path in first.iterdir()} - {"timings.json"}
    assert names == {path.name for path in second.iterdir()} - {"timings.json"}
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["/vsicurl/{}", "{}", "/vsicurl/{}?signature=secret"])
def test_raster_on_a_server_gives_an_identical_map(
    model: Model, stack: Path, local: Path, tmp_path: Path, form: str
) -> None:
    with run_range_server(stack, tmp_path / "control") as server:
        predict(model, form.format(server.address), tmp_path / "map", MapOptions(tile=256))
        assert len(server.parts.read_text().splitlines()) >= 2
    assert same(local, tmp_path / "map")
    assert "secret" not in (tmp_path / "map/prediction.json").read_text()


@pytest.mark.slow
def test_python_api_accepts_urls(tiny_model: Path, stack: Path, tmp_path: Path) -> None:
    with run_range_server(stack, tmp_path / "control") as server:
        outcome = talud.predict(tiny_model, f"/vsicurl/{server.address}", tmp_path / "map")
    assert outcome.raster == "stack.tif"


@pytest.mark.slow
def test_request_to_an_overloaded_server_is_retried(model: Model, stack: Path, local: Path, tmp_path: Path) -> None:
    with run_range_server(stack, tmp_path / "control") as server:
        server.overloaded.write_text("1")
        predict(model, f"/vsicurl/{server.address}", tmp_path / "map", MapOptions(tile=256))
        assert not server.overloaded.exists()
    assert same(local, tmp_path / "map")


@pytest.mark.slow
def test_lost_server_keeps_the_finished_tiles(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The raster is too large to be fetched completely by the check of its values."""
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    stack = write_stack(tmp_path / "stack.tif", noise(2100, 2100) // 64 * 64)
    with run_range_server(stack, tmp_path / "control") as server:

        def away(done: int, total: int) -> None:
            if done == 2:
                server.overloaded.touch()

        with pytest.raises(SourceError, match=r"twice, at rows \d+ to .* finished tiles are kept") as caught:
            predict(
                model,
                f"/vsicurl/{server.address}",
                tmp_path / "map",
                MapOptions(tile=600, threshold=0.999999),
                progress=away,
            )
        assert "\n" not in str(caught.value)
        server.overloaded.unlink()
        assert (
            predict(
                model, f"/vsicurl/{server.address}", tmp_path / "map", MapOptions(tile=600, threshold=0.999999)
            ).taken_over
            >= 2
        )
    predict(model, stack, tmp_path / "local", MapOptions(tile=600, threshold=0.999999))
    assert same(tmp_path / "local", tmp_path / "map")


@pytest.mark.slow
def test_changed_content_at_the_same_url_is_refused(model: Model, stack: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with run_range_server(stack, tmp_path / "control") as server:
        address = f"/vsicurl/{server.address}"
        with pytest.raises(KeyboardInterrupt):
            predict(model, address, tmp_path / "map", MapOptions(tile=256), progress=stop)
    changed = noise(700, 600)
    changed[:, 200:260, 100:180] += 40
    write_stack(tmp_path / "changed.tif", changed)
    with (
        run_range_server(tmp_path / "changed.tif", tmp_path / "control") as server,
        pytest.raises(OutputError, match="different pixels"),
    ):
        predict(model, f"/vsicurl/{server.address}", tmp_path / "map", MapOptions(tile=256))


@pytest.mark.slow
def test_raster_in_an_archive_gives_an_identical_map(model: Model, stack: Path, local: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(stack, "basin/stack.tif")
    predict(model, f"/vsizip/{tmp_path}/archive.zip/basin/stack.tif", tmp_path / "map", MapOptions(tile=256))
    assert same(local, tmp_path / "map")


@pytest.mark.slow
def test_vrt_gives_an_identical_map_and_notices_changes(model: Model, stack: Path, local: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.tif"
    source.write_bytes(stack.read_bytes())
    with rasterio.open(source) as dataset, WarpedVRT(dataset) as warped:
        rasterio.shutil.copy(warped, tmp_path / "stack.vrt", driver="VRT")
    predict(model, tmp_path / "stack.vrt", tmp_path / "map", MapOptions(tile=256))
    with rasterio.open(local / "probability.tif") as one, rasterio.open(tmp_path / "map/probability.tif") as other:
        assert np.array_equal(one.read(), other.read())

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, tmp_path / "stack.vrt", tmp_path / "again", MapOptions(tile=256), progress=stop)
    source.touch()
    with pytest.raises(OutputError, match="different size and time of change"):
        predict(model, tmp_path / "stack.vrt", tmp_path / "again", MapOptions(tile=256))


@pytest.mark.parametrize(
    "address",
    [
        "/vsicurl/http://127.0.0.1:{closed}/stack.tif",
        "http://127.0.0.1:{closed}/stack.tif",
        "/vsicurl/http://nowhere.invalid/stack.tif",
        "/vsicurl/{server}/../missing.tif",
        "/vsizip/missing.zip/stack.tif",
        "/vsizip/",
        "/vsinothing/stack.tif",
        "",
    ],
)
def test_unreachable_raster_is_reported_in_one_line(model: Model, tmp_path: Path, address: str) -> None:
    with socket.socket() as closed, run_range_server(Path(__file__), tmp_path / "control") as server:
        closed.bind(("127.0.0.1", 0))
        address = address.format(closed=closed.getsockname()[1], server=server.address)
        began = time.monotonic()
        with pytest.raises(SourceError, match="cannot be read") as caught:
            predict(model, address, tmp_path / "map")
        assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"control"}


@pytest.mark.slow
def test_silent_server_is_abandoned_after_the_user_timeout(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LOW_SPEED_TIME": "1", "MAX_RETRY": "0"}.items():
        monkeypatch.setenv(f"GDAL_HTTP_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(SourceError, match="cannot be read"):
            predict(model, f"/vsicurl/http://127.0.0.1:{silent.getsockname()[1]}/stack.tif", tmp_path / "map")
        assert time.monotonic() - began < 10


def test_gdal_settings_of_the_user_are_kept(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "77")
    found: dict[str, object] = {}

    def look() -> None:  # in another thread, like the reading of tiles
        found.update({name: rasterio.env.get_gdal_config(name) for name in NETWORK_TIMEOUTS})

    with rasterio.Env(GDAL_HTTP_MAX_RETRY="9"), open_raster(stack):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    expected = NETWORK_TIMEOUTS | {"GDAL_HTTP_LOW_SPEED_TIME": "77", "GDAL_HTTP_MAX_RETRY": "9"}
    assert json.loads(json.dumps(found)) == {name: int(value) for name, value in expected.items()}
