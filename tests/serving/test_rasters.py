"""Tests of the raster list, uploads and map tiles."""

from __future__ import annotations

import io
import json
import subprocess
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import anyio
import numpy as np
import pytest
import rasterio
import shapely
from morecantile import Tile
from PIL import Image
from pyproj import Transformer
from rasterio.crs import CRS
from rio_tiler.constants import WEB_MERCATOR_TMS

from app_client import add_job, make_settings, run_app
from source_files import write_raster
from stack_files import grid_of, noise, write_stack
from talud.engine.runtime import Model
from talud.errors import SourceError
from talud.mapping.reader import find_mismatch
from talud.serving import rasters, tiles
from talud.serving.problems import Problem
from talud.serving.raster_paths import check_directories
from talud.serving.rasters import read_header
from talud.serving.storage import remove_unfinished_uploads, safe_name
from tiff_writer import write_tiff

BANDS = ("red", "green", "blue", "slope", "elevation", "vv_pre", "vv_post")
INCOMPRESSIBLE_BYTES = np.random.default_rng(1).bytes(80_000)


def stack_values(height: int = 160, width: int = 200) -> np.ndarray:
    values = noise(height, width, len(BANDS))
    values[3] /= 250 / 60
    values[5] = values[5] / 25 - 20
    values[6] = values[5] + 4
    values[:3, :40, :60] = np.nan
    return values


@pytest.fixture(scope="module")
def raster_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Yield a service with a stack, its mask, and files that are not listed."""
    root = tmp_path_factory.mktemp("agency")
    settings = make_settings(root, upload_bytes=2_000_000, pixels=100_000)
    data = settings.data
    (data / "basins").mkdir()
    (data / ".hidden").mkdir()
    stack = write_stack(data / "basins/a.tif", stack_values(), BANDS, tags={"TALUD_SYNTHETIC": "yes"})
    mask = np.random.default_rng(2).choice([0, 1, 255], (160, 200)).astype(np.uint8)
    write_raster(data / "basins/a.mask.tif", mask, corner=(400_000, 650_000))
    write_stack(data / "plain.tiff", noise(64, 64), ("red", "green", "nir"))
    write_stack(data / ".hidden/b.tif", noise(64, 64))
    write_stack(data / ".c.tif", noise(64, 64))
    (data / "notes.txt").write_text("no raster")
    (data / "damaged.tif").write_bytes(stack.read_bytes()[:100])
    (data / "picture.tif").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with run_app(settings) as (client, service):
        yield SimpleNamespace(client=client, service=service, settings=settings, data=data, stack=stack, mask=mask)


def centre_tile(bounds: tuple[float, float, float, float], zoom: int) -> Tile:
    west, south, east, north = bounds
    return WEB_MERCATOR_TMS.tile((west + east) / 2, (south + north) / 2, zoom)


def read_tile(answer: object) -> np.ndarray:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    image = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert image.shape[:2] == (256, 256)
    return image


def get_tile(raster_service: SimpleNamespace, layer: str, tile: Tile, href: str = "basins/a.tif") -> object:
    return raster_service.client.get(f"/rasters/tiles/{layer}/{tile.z}/{tile.x}/{tile.y}.png", params={"raster": href})


def gdalwarp(source: Path, out: Path, tile: Tile, way: str, *bands: int) -> np.ndarray:
    """Return bands of a tile warped by gdalwarp without approximation."""
    subset = out.with_suffix(".vrt")
    chosen = [part for band in bands for part in ("-b", str(band))]
    subprocess.run(["gdal_translate", "-q", "-of", "VRT", *chosen, source, subset], check=True)
    extent = [str(side) for side in WEB_MERCATOR_TMS.xy_bounds(tile)]
    subprocess.run(
        ["gdalwarp", "-q", "-et", "0", "-r", way, "-t_srs", "EPSG:3857", "-te", *extent, "-ts", "256", "256",
         "-dstnodata", "nan", "-ot", "Float32", subset, out],
        check=True,
    )  # fmt: skip
    with rasterio.open(out) as dataset:
        return dataset.read()


def test_raster_list_contains_headers(raster_service: SimpleNamespace) -> None:
    answer = raster_service.client.get("/rasters").json()
    assert answer["unreadable"] == 2
    assert [entry["href"] for entry in answer["rasters"]] == ["plain.tiff", "basins/a.tif"]
    plain, entry = answer["rasters"]
    corners = [(400_000, 650_000), (402_500, 650_000), (400_000, 648_000), (402_500, 648_000)]
    places = [Transformer.from_crs(32618, 4326, always_xy=True).transform(*corner) for corner in corners]
    bounds = shapely.MultiPoint(places).bounds
    assert entry.pop("bounds") == pytest.approx(bounds, abs=1e-6)
    assert entry == {
        "href": "basins/a.tif", "name": "a.tif", "bands": list(BANDS), "inventory": True, "synthetic": True,
        "layers": ["optical", "slope", "elevation", "sar_before", "sar_after"], "pixels": 32_000, "resolution": 12.5,
        "crs": "EPSG:32618", "fits": [],
    }  # fmt: skip
    assert (plain["layers"], plain["inventory"], plain["synthetic"]) == ([], False, False)


def test_raster_list_opens_only_changed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    settings, contract = make_settings(tmp_path), Model.load(tiny_model).contract
    path = write_stack(settings.data / "a.tif", noise(64, 64))
    other = write_stack(settings.data / "b.tif", noise(64, 64), grid=grid_of(64, 64, pixel=10))

    def listed() -> dict[str, tuple[str, ...]]:
        return {one.href: one.fits for one in rasters.find_rasters(settings, [("champion", contract)])[0]}

    assert listed() == {"a.tif": ("champion",), "b.tif": ()}
    with monkeypatch.context() as patch:
        patch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("opened again"))
        assert listed() == {"a.tif": ("champion",), "b.tif": ()}
        other.unlink()
        assert listed() == {"a.tif": ("champion",)}
    write_stack(path, noise(64, 64), ("red", "green", "nir"))
    assert listed() == {"a.tif": ()}


def test_upload_is_stored_unchanged_and_shown(raster_service: SimpleNamespace) -> None:
    content = raster_service.stack.read_bytes()
    answer = raster_service.client.put("/uploads/My%20R%C3%ADo.final.TIFF", content=content)
    assert answer.status_code == 201
    entry = answer.json()
    assert entry["name"] == "My_Rio_final.tif"
    assert entry["layers"][0] == "optical"
    (kept,) = (raster_service.settings.results / entry["href"]).iterdir()
    assert (kept.name, kept.read_bytes()) == (entry["name"], content)
    tile = centre_tile(entry["bounds"], 13)
    assert (
        get_tile(raster_service, "optical", tile, entry["href"]).content
        == get_tile(raster_service, "optical", tile).content
    )


def uploads_unchanged(raster_service: SimpleNamespace, before: set[Path]) -> bool:
    return set((raster_service.settings.results / "uploads").glob("**/*")) == before


def small(tmp_path: Path, **changes: object) -> bytes:
    return write_raster(tmp_path / "s.tif", np.ones((8, 8), np.uint8), **changes).read_bytes()


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda _: b"", 422, "cannot be read as a GeoTIFF"),
        (lambda _: b"GIF89a" + bytes(1000), 422, "cannot be read as a GeoTIFF"),
        (lambda _: b"<VRTDataset/>", 422, "cannot be read as a GeoTIFF"),
        (lambda tmp: write_stack(tmp / "c.tif", noise(64, 64)).read_bytes()[:-100], 422, "cannot be read as a GeoTIFF"),
        (lambda tmp: small(tmp, crs=None), 422, "no coordinate reference system"),
        (lambda tmp: small(tmp, side=0.0), 422, "its pixels have no width or height"),
        (lambda tmp: write_raster(tmp / "l.tif", np.ones((400, 251), np.uint8)).read_bytes(), 422, "at most 100,000"),
        (lambda _: bytes(2_000_001), 413, "at most 2,000,000 bytes"),
        (lambda _: (bytes(500_000) for _ in range(5)), 413, "at most 2,000,000 bytes"),
        (lambda _: (INCOMPRESSIBLE_BYTES for _ in range(30)), 413, "at most 2,000,000 bytes"),
    ],
    ids=[
        "empty",
        "gif",
        "vrt",
        "cut off",
        "no CRS",
        "no place",
        "too many pixels",
        "too large by Content-Length",
        "too large",
        "random bytes",
    ],
)
def test_invalid_upload_is_refused_and_deleted(
    raster_service: SimpleNamespace, tmp_path: Path, make: object, status: int, message: str
) -> None:
    before = set((raster_service.settings.results / "uploads").glob("**/*"))
    answer = raster_service.client.put("/uploads/s.tif", content=make(tmp_path))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert message in answer.json()["detail"]
    assert str(raster_service.settings.results) not in answer.text
    assert uploads_unchanged(raster_service, before)


def metadata(count: int) -> bytes:
    items = b"".join(b'<Item name="k%d">v</Item>' % number for number in range(count))
    return b"<GDALMetadata>" + items + b"</GDALMetadata>"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write_tiff(path, 1, 1, 60_000), "has 60,000 bands; the limit is 1,000"),
        (lambda path: write_tiff(path, 1, 1, 1001), "has 1,001 bands; the limit is 1,000"),
        (lambda path: write_tiff(path, 4, 4, overviews=7000), "has more than 100 overviews and masks"),
        (lambda path: write_tiff(path, 4, 4, metadata=metadata(70_000)), "bytes of metadata; the limit is 500,000"),
        (lambda path: write_tiff(path, 2**31 - 1, 1, stored=b"0"), "this service maps at most 100,000"),
        (lambda path: write_tiff(path, 1, 2**31 - 1, stored=b"0"), "this service maps at most 100,000"),
        (lambda path: write_tiff(path, 300, 300, stored=zlib.compress(bytes(10))[:9], deflated=True), "cannot be read"),
        (lambda path: write_tiff(path, 300, 300, stored=INCOMPRESSIBLE_BYTES, deflated=True), "cannot be read"),
        (
            lambda path: write_tiff(path, 40_000, 40_000, stored=INCOMPRESSIBLE_BYTES, deflated=True),
            "this service maps at most",
        ),
    ],
    ids=[
        "60000 bands",
        "1001 bands",
        "many overviews",
        "many tags",
        "wide",
        "high",
        "cut deflate",
        "random",
        "random that claims more",
    ],
)
def test_upload_that_gdal_reads_slowly_is_refused_quickly(
    raster_service: SimpleNamespace, tmp_path: Path, make: object, message: str
) -> None:
    before = set((raster_service.settings.results / "uploads").glob("**/*"))
    content = make(tmp_path / "odd.tif").read_bytes()
    began = time.process_time()
    answer = raster_service.client.put("/uploads/odd.tif", content=content)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["detail"]
    assert time.process_time() - began < 5
    assert uploads_unchanged(raster_service, before)


@pytest.mark.slow
def test_upload_with_most_allowed_bands_is_accepted_quickly(raster_service: SimpleNamespace, tmp_path: Path) -> None:
    content = write_tiff(tmp_path / "many.tif", 4, 3, 1000, overviews=99, metadata=metadata(15_000)).read_bytes()
    began = time.process_time()
    answer = raster_service.client.put("/uploads/many.tif", content=content)
    assert answer.status_code == 201, answer.text
    assert (len(answer.json()["bands"]), answer.json()["pixels"]) == (1000, 12)
    assert time.process_time() - began < 10


def test_prediction_refuses_raster_with_too_many_bands(tmp_path: Path, tiny_model: Path) -> None:
    path = write_tiff(tmp_path / "odd.tif", 1, 1, 60_000)
    with pytest.raises(SourceError, match=r"odd\.tif: has 60,000 bands; at most 1,000"):
        find_mismatch(path, Model.load(tiny_model).contract)


@pytest.mark.parametrize(
    "content", [b"", b"II", b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"II+\0" + b"\xff" * 20, b"MM\0*" * 9]
)
def test_check_directories_ignores_damaged_tiffs(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    check_directories(tmp_path / "a.tif", "a.tif")


def test_circular_tiff_directories_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", 4, 4)
    content = bytearray(path.read_bytes())
    content[-4:] = content[4:8]
    path.write_bytes(content)
    with pytest.raises(SourceError, match="more than 100 overviews"):
        check_directories(path, "a.tif")


def test_interrupted_upload_is_deleted(raster_service: SimpleNamespace) -> None:
    before = set((raster_service.settings.results / "uploads").glob("**/*"))

    arriving = iter([{"type": "http.request", "body": raster_service.stack.read_bytes(), "more_body": True}])
    scope = {
        "type": "http", "method": "PUT", "path": "/uploads/s.tif", "raw_path": b"/uploads/s.tif",
        "headers": [(b"host", b"localhost")],
        "query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": "", "asgi": {"version": "3.0"},
        "server": ("testserver", 80), "client": ("testclient", 1),
    }  # fmt: skip
    sent = []

    async def receive() -> dict[str, object]:
        return next(arriving, {"type": "http.disconnect"})

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    anyio.run(raster_service.client.app, scope, receive, send)
    assert [message.get("status") for message in sent][:1] in ([400], [])  # the client is disconnected
    assert uploads_unchanged(raster_service, before)


@pytest.fixture
def quota_service(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Yield a service with an upload quota of 300 kB per key."""
    settings = make_settings(tmp_path, upload_bytes=2_000_000, upload_bytes_per_key=300_000)
    with run_app(settings) as (client, service):
        scopes = {"ana": "run", "luz": "run", "chief": "admin"}
        headers = {name: {"X-API-Key": service.keys.add(name, scope)} for name, scope in scopes.items()}
        raster = write_stack(tmp_path / "s.tif", noise(96, 96)).read_bytes()
        assert 100_000 < len(raster) < 150_000
        yield SimpleNamespace(client=client, service=service, settings=settings, headers=headers, raster=raster)


def split(content: bytes) -> Iterator[bytes]:
    yield from (content[start : start + 10_000] for start in range(0, len(content), 10_000))


def test_uploads_of_key_have_quota(quota_service: SimpleNamespace) -> None:
    uploads = quota_service.settings.results / "uploads"

    def put(content: object, key: str) -> object:
        return quota_service.client.put("/uploads/s.tif", content=content, headers=quota_service.headers[key])

    made = [put(quota_service.raster, "ana") for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201]
    for content in (quota_service.raster, split(quota_service.raster)):  # with and without Content-Length
        refused = put(content, "ana")
        assert refused.status_code == 413
        assert f"the uploads of the key ana have {2 * len(quota_service.raster):,} bytes" in refused.json()["detail"]
    assert len(list(uploads.iterdir())) == 2
    assert put(split(quota_service.raster), "luz").status_code == 201  # the quota of another key
    assert put(b"no raster", "ana").status_code == 422  # invalid uploads are not counted
    upload = made[0].json()["href"]
    assert quota_service.client.delete(f"/{upload}", headers=quota_service.headers["luz"]).status_code == 403
    assert quota_service.client.delete(f"/{upload}", headers=quota_service.headers["ana"]).status_code == 204
    assert quota_service.client.delete(f"/{upload}", headers=quota_service.headers["ana"]).status_code == 404
    assert put(split(quota_service.raster), "ana").status_code == 201
    other = made[1].json()["href"]
    assert quota_service.client.delete(f"/{other}", headers=quota_service.headers["chief"]).status_code == 204
    assert not (uploads / other.removeprefix("uploads/")).exists()


def test_upload_of_unfinished_job_is_not_deleted(quota_service: SimpleNamespace) -> None:
    href = quota_service.client.put("/uploads/s.tif", content=quota_service.raster).json()["href"]
    job = add_job(quota_service.service, href, "accepted")
    answer = quota_service.client.delete(f"/{href}")
    assert (answer.status_code, "dismiss the job" in answer.json()["detail"]) == (409, True)
    quota_service.service.jobs.remove(job)
    assert quota_service.client.delete(f"/{href}").status_code == 204
    for name in ("..", "%2e%2e", "x", "00000000-0000-4000-8000-000000000000"):
        assert quota_service.client.delete(f"/uploads/{name}").status_code in (404, 405, 422)


def test_parallel_uploads_share_quota(quota_service: SimpleNamespace) -> None:
    key = quota_service.service.keys.all()[0]

    def claim(number: int) -> bool:
        try:
            quota_service.service.uploads.reserve(f"upload {number}", key, 100_000)
        except Problem:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(claim, range(12))) == 3


def test_upload_interrupted_by_restart_is_removed(quota_service: SimpleNamespace, tmp_path: Path) -> None:
    whole = (
        quota_service.client.put("/uploads/s.tif", content=quota_service.raster).json()["href"].removeprefix("uploads/")
    )
    uploads = quota_service.settings.results / "uploads"
    (uploads / "broken").mkdir()
    (uploads / "broken/a.tif.part").write_bytes(b"II*")
    remove_unfinished_uploads(quota_service.settings.results)
    assert [path.name for path in uploads.iterdir()] == [whole]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a.tif", "a.tif"),
        ("..", "raster.tif"),
        ("../../etc/passwd", "passwd.tif"),
        ("C:\\data\\río negro.TIFF", "rio_negro.tif"),
        (".hidden.tif", "hidden.tif"),
        ("a.mask.tif", "a_mask.tif"),
        ("x\0\n;$(id).tif", "x_id.tif"),
        ("泥石流.tif", "raster.tif"),
        ("n" * 500, "n" * 80 + ".tif"),
    ],
)
def test_safe_name_is_portable(given: str, kept: str) -> None:
    assert safe_name(given) == kept


def test_optical_tile_equals_gdalwarp_with_percentile_stretch(raster_service: SimpleNamespace, tmp_path: Path) -> None:
    tile = centre_tile(read_header(raster_service.stack).bounds, 15)
    found = read_tile(get_tile(raster_service, "optical", tile))
    expected = gdalwarp(raster_service.stack, tmp_path / "w.tif", tile, "bilinear", 1, 2, 3)
    low, high = np.nanpercentile(stack_values()[:3], (2, 98), axis=(1, 2))[..., None, None]
    stretched = ((expected - low) / (high - low)).clip(0, 1) ** 0.7 * 255
    inside = found[..., 3] == 255
    assert inside.all()
    assert np.abs(found[..., :3] - stretched.transpose(1, 2, 0)).mean() < 1
    assert np.corrcoef(found[..., 0].ravel(), stretched[0].ravel())[0, 1] > 0.999


def test_invalid_pixels_of_tile_are_transparent(raster_service: SimpleNamespace, tmp_path: Path) -> None:
    west, _, _, north = read_header(raster_service.stack).bounds
    tile = WEB_MERCATOR_TMS.tile(west + 0.003, north - 0.002, 15)
    expected = np.isfinite(gdalwarp(raster_service.stack, tmp_path / "w.tif", tile, "bilinear", 1, 2, 3)).all(axis=0)
    alpha = read_tile(get_tile(raster_service, "optical", tile))[..., 3]
    assert 0.01 < expected.mean() < 0.99
    assert set(np.unique(alpha)) == {0, 255}
    assert ((alpha == 255) == expected).mean() > 0.99
    slope = read_tile(get_tile(raster_service, "slope", tile))
    assert slope[..., 1].mean() > alpha.mean()  # only the optical bands have a gap


def test_slope_and_sar_tiles_have_expected_grey_values(raster_service: SimpleNamespace, tmp_path: Path) -> None:
    tile = centre_tile(read_header(raster_service.stack).bounds, 15)
    slope = gdalwarp(raster_service.stack, tmp_path / "s.tif", tile, "bilinear", 4)[0]
    assert np.abs(read_tile(get_tile(raster_service, "slope", tile))[..., 0] - (255 - slope / 60 * 255)).mean() < 1
    before, after = (
        read_tile(get_tile(raster_service, f"sar_{time}", tile))[..., 0].astype(int) for time in ("before", "after")
    )
    middle = (before > 60) & (after < 195)
    low, high = np.percentile(np.concatenate([stack_values()[5], stack_values()[6]]), (2, 98))
    assert (after - before)[middle].mean() == pytest.approx(4 / (high - low) * 255, abs=2)


def test_inventory_tile_contains_only_its_classes(raster_service: SimpleNamespace, tmp_path: Path) -> None:
    tile = centre_tile(read_header(raster_service.stack).bounds, 15)
    expected = gdalwarp(raster_service.data / "basins/a.mask.tif", tmp_path / "m.tif", tile, "near", 1)[0]
    image = read_tile(get_tile(raster_service, "inventory", tile))
    grey, alpha = image[..., 0], image[..., 1]
    assert set(np.unique(grey)) == {0, 255}
    assert ((alpha == 0) == (expected == 255)).mean() > 0.99
    assert ((grey == 255) == (expected == 1)).mean() > 0.99
    assert get_tile(raster_service, "inventory", tile, "plain.tiff").status_code == 204


@pytest.mark.parametrize("tile", [Tile(0, 0, 13), Tile(0, 0, 0), Tile(0, 0, 30)])
def test_tile_outside_raster_or_zoom_range_is_empty(raster_service: SimpleNamespace, tile: Tile) -> None:
    answer = get_tile(raster_service, "optical", tile)
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "place",
    ["optical/-1/0/0", "optical/31/0/0", "optical/2/4/0", "optical/2/0/4", "optical/x/0/0", "optical/1e3/0/0",
     "optical/2/0/-1", f"optical/2/{'9' * 5000}/0", "optical/2/0.5/0", "probability/2/0/0", "nothing/2/0/0"],
)  # fmt: skip
def test_invalid_tile_number_is_refused(raster_service: SimpleNamespace, place: str) -> None:
    answer = raster_service.client.get(f"/rasters/tiles/{place}.png", params={"raster": "basins/a.tif"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert len(answer.text) < 20_000


def test_missing_layer_or_raster_is_reported(raster_service: SimpleNamespace) -> None:
    tile = centre_tile(read_header(raster_service.stack).bounds, 13)
    for layer, href, message in (
        ("optical", "plain.tiff", "plain.tiff: has no layer optical"),
        ("optical", "nowhere.tif", "nowhere.tif"),
        ("optical", "damaged.tif", "damaged.tif: is damaged or not a GeoTIFF"),
    ):
        answer = get_tile(raster_service, layer, tile, href)
        assert answer.status_code == 422
        assert message in answer.json()["detail"]
        assert str(raster_service.data) not in answer.text


def test_tile_of_changed_raster_is_rendered_anew(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "a.tif", np.tile(np.linspace(0, 250, 64, dtype=np.float32), (3, 64, 1)))
    tile = centre_tile(read_header(path).bounds, 14)
    before = tiles.render_tile(path, "optical", tile.z, tile.x, tile.y)
    write_stack(path, np.tile(np.linspace(250, 0, 64, dtype=np.float32), (3, 64, 1)))
    after = tiles.render_tile(path, "optical", tile.z, tile.x, tile.y)
    first, second = (np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in (before, after))
    inside = first[..., 3] == 255
    assert np.corrcoef(first[..., 0][inside], second[..., 0][inside])[0, 1] < -0.9


@pytest.mark.slow
def test_raster_without_overviews_is_shown_from_small_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 2600
    ramp = np.tile(np.linspace(0, 60, side, dtype=np.float32), (1, side, 1))
    path = write_raster(
        tmp_path / "s.tif", ramp, corner=(400_000, 650_000), descriptions=("slope",), nodata=np.nan, compress="deflate"
    )
    tile = centre_tile(read_header(path).bounds, 9)
    first = tiles.render_tile(path, "slope", tile.z, tile.x, tile.y)
    assert first
    monkeypatch.setattr(tiles, "open_pooled", lambda _: pytest.fail("the file itself was read"))
    assert tiles.render_tile(path, "slope", tile.z, tile.x, tile.y) == first
    monkeypatch.undo()
    expected = gdalwarp(path, tmp_path / "w.tif", tile, "near", 1)[0]
    image = np.asarray(Image.open(io.BytesIO(first)))
    both = np.isfinite(expected) & (image[..., 1] == 255)
    assert both.sum() > 0.9 * np.isfinite(expected).sum()
    assert np.abs(image[..., 0][both] - (255 - expected[both] / 60 * 255)).mean() < 3


def test_raster_with_local_coordinates_has_no_layers(tmp_path: Path) -> None:
    local = CRS.from_wkt('LOCAL_CS["patches",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]')
    grid = grid_of(64, 64)
    path = write_stack(tmp_path / "p.tif", noise(64, 64), grid=type(grid)(local, grid.transform, 64, 64))
    known = read_header(path)
    assert (known.bounds, known.layers) == (None, ())


def test_openapi_document_describes_all_operations(raster_service: SimpleNamespace) -> None:
    described = raster_service.client.get("/api").json()
    for path, operations in described["paths"].items():
        for operation in operations.values():
            assert operation["description"] or operation["summary"], path
            assert all(answer["description"] for answer in operation["responses"].values())
    body = described["paths"]["/uploads/{filename}"]["put"]["requestBody"]["content"]
    assert set(body) == {"application/octet-stream", "image/tiff"}
    references = set()
    json.loads(json.dumps(described), object_hook=lambda one: references.add(one.get("$ref")) or one)
    assert {one.rsplit("/", 1)[1] for one in references if isinstance(one, str)} <= set(
        described["components"]["schemas"]
    )


@pytest.mark.slow
def test_mask_link_out_of_data_folder_is_not_shown(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    write_stack(settings.data / "a.tif", stack_values(), BANDS)
    write_raster(tmp_path / "secret.tif", np.ones((160, 200), np.uint8), corner=(400_000, 650_000))
    (settings.data / "a.mask.tif").symlink_to(tmp_path / "secret.tif")
    with run_app(settings) as (client, _):
        (found,) = client.get("/rasters").json()["rasters"]
        assert not found["inventory"]
        tile = centre_tile(found["bounds"], 15)
        address = f"/rasters/tiles/inventory/15/{tile.x}/{tile.y}.png"
        answer = client.get(address, params={"raster": "a.tif"})
        assert answer.status_code == 403
        assert "leads out of its folder" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        (settings.data / "a.mask.tif").unlink()
        (tmp_path / "secret.tif").rename(settings.data / "a.mask.tif")
        assert client.get(address, params={"raster": "a.tif"}).status_code == 200
