"""Tests of reviews of maps and their export."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.crs import CRS
from rio_tiler.constants import WEB_MERCATOR_TMS
from scipy import ndimage

from app_client import add_finished_job, add_job, make_settings, run_app
from postgresql import postgresql
from source_files import write_project, write_raster
from stack_files import grid_of, write_stack
from talud.errors import ParamsError
from talud.serving import map_polygons
from talud.serving.database import Database, utc_now
from talud.serving.jobs import JobStore
from talud.serving.map_polygons import PolygonGeometry
from talud.serving.problems import Problem
from talud.serving.reviews import ReviewStore
from talud.serving.routes.reviews import pixel_metres
from talud.serving.tables import Key, MapRequest, Review, Verdict

LEFT, TOP = 400_000, 650_000
HEIGHT, WIDTH = 96, 128
REVIEWER_KEY = Key(id="1", name="somebody", digest="", scope="admin", created=utc_now())


@pytest.fixture(scope="module")
def map_service(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[SimpleNamespace]:
    """Yield a service with a finished map, of whose raster a corner is invalid."""
    settings = make_settings(tmp_path_factory.mktemp("agency"))
    rough = np.random.default_rng(1).normal(0, 1, (3, HEIGHT, WIDTH))
    values = (125 + 900 * ndimage.gaussian_filter(rough, (0, 4, 4))).clip(0, 250).astype(np.float32)
    values[:, :24, :32] = np.nan
    raster = write_stack(settings.data / "a.tif", values, tags={"TALUD_SYNTHETIC": "yes"})
    with run_app(settings) as (client, service):
        job = add_finished_job(service, tiny_model, raster)
        products = settings.results / "jobs" / job / "map"
        yield SimpleNamespace(
            client=client, service=service, job=job, url=f"/jobs/{job}", map=products, raster=raster, model=tiny_model
        )


@pytest.fixture
def review(map_service: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """Yield the service, and withdraw all reviews after the test."""
    yield map_service
    for name in ReviewStore(map_service.service.database).all(map_service.job):
        ReviewStore(map_service.service.database).withdraw(map_service.job, name, REVIEWER_KEY)


def get_landslides(map_service: SimpleNamespace) -> dict:
    answer = map_service.client.get(f"{map_service.url}/polygons")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/geo+json")
    return answer.json()


def feature(map_service: SimpleNamespace, name: str) -> dict:
    return next(one for one in get_landslides(map_service)["features"] if one["id"] == name)


def to_metres(geometry: dict) -> shapely.Geometry:
    """Project an outline from WGS84 to the CRS of the map."""
    transformer = pyproj.Transformer.from_crs(4326, 32618, always_xy=True)
    return shapely.transform(
        shapely.geometry.shape(geometry), lambda places: np.column_stack(transformer.transform(*places.T))
    )


def to_degrees(outline: shapely.Geometry, epsg: int = 32618) -> dict:
    transformer = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    moved = shapely.transform(outline, lambda places: np.column_stack(transformer.transform(*places.T)))
    return json.loads(shapely.to_geojson(moved))


def square(column: float, row: float, side: float) -> shapely.Polygon:
    """Return a square at an offset in metres from the top left corner of the map."""
    return shapely.box(LEFT + column, TOP - row - side, LEFT + column + side, TOP - row)


def query_geopackage(path: Path, query: str) -> float:
    """Return the number that an SQL query of ogrinfo finds."""
    output = subprocess.run(["ogrinfo", "-q", "-sql", query, path], capture_output=True, text=True, check=True).stdout
    return float(re.search(r"\) = (.*)", output)[1])


def test_map_info_has_bounds_layers_and_model(map_service: SimpleNamespace) -> None:
    found = map_service.client.get(f"{map_service.url}/map").json()
    corners = shapely.geometry.shape(to_degrees(square(0, 0, HEIGHT * 12.5)))
    assert found.pop("bounds")[::3] == pytest.approx([corners.bounds[0], corners.bounds[3]], abs=1e-4)
    assert found == {
        "layers": ["optical"], "threshold": 0.5, "model": "tiny", "version": "1", "raster": "a.tif", "name": "a.tif",
        "resolution": 12.5, "synthetic": True, "inventory": False,
    }  # fmt: skip


def test_map_without_its_raster_can_be_reviewed(map_service: SimpleNamespace) -> None:
    moved = map_service.raster.rename(map_service.raster.with_suffix(".moved"))
    try:
        found = map_service.client.get(f"{map_service.url}/map").json()
        assert (found["layers"], found["inventory"]) == ([], False)
        assert map_service.client.get(f"{map_service.url}/polygons").status_code == 200
        assert map_service.client.get(f"{map_service.url}/review.gpkg").status_code == 200
        gone = map_service.client.get(f"{map_service.url}/tiles/optical/15/0/0.png")
        assert (gone.status_code, gone.json()["detail"]) == (422, "a.tif: was deleted; its map still exists")
    finally:
        moved.rename(map_service.raster)


def test_landslides_equal_those_of_geopackage(map_service: SimpleNamespace) -> None:
    found = get_landslides(map_service)
    path = map_service.map / "landslides.gpkg"
    assert len(found["features"]) == query_geopackage(path, "SELECT COUNT(*) FROM landslides") > 3
    total = sum(one["properties"]["area_m2"] for one in found["features"])
    assert total == pytest.approx(query_geopackage(path, "SELECT SUM(area_m2) FROM landslides"))
    assert found["counts"] == {
        "unreviewed": len(found["features"]), "accepted": 0, "rejected": 0, "drawn": 0, "accepted_area_m2": 0,
    }  # fmt: skip
    first = found["features"][0]
    assert (first["id"], first["properties"]["verdict"], first["properties"]["origin"]) == ("1", "unreviewed", "model")
    for one in found["features"]:
        outline = to_metres(one["geometry"])
        assert outline.area == pytest.approx(one["properties"]["area_m2"], rel=1e-3)
        assert all(part.exterior.is_ccw for part in shapely.get_parts(shapely.geometry.shape(one["geometry"])))
        assert 0.5 <= one["properties"]["mean_probability"] <= one["properties"]["maximum_probability"] <= 1


def test_unmapped_parts_have_reasons_and_areas(map_service: SimpleNamespace) -> None:
    (one,) = map_service.client.get(f"{map_service.url}/not-mapped").json()["features"]
    assert "no data" in one["properties"]["reason"]
    assert one["properties"]["area_m2"] == 24 * 32 * 12.5**2
    assert to_metres(one["geometry"]).area == pytest.approx(24 * 32 * 12.5**2, rel=1e-4)


def test_probability_tile_equals_gdalwarp(map_service: SimpleNamespace, tmp_path: Path) -> None:
    west, _, _, north = map_service.client.get(f"{map_service.url}/map").json()["bounds"]
    tile = WEB_MERCATOR_TMS.tile(west + 0.0045, north - 0.0025, 15)  # at the unmapped corner
    answer = map_service.client.get(f"{map_service.url}/tiles/probability/15/{tile.x}/{tile.y}.png")
    grey, alpha = np.moveaxis(np.asarray(Image.open(io.BytesIO(answer.content))), 2, 0)
    extent = [str(side) for side in WEB_MERCATOR_TMS.xy_bounds(tile)]
    subprocess.run(
        ["gdalwarp", "-q", "-et", "0", "-r", "near", "-t_srs", "EPSG:3857", "-te", *extent, "-ts", "256", "256",
         "-dstnodata", "nan", map_service.map / "probability.tif", tmp_path / "w.tif"],
        check=True,
    )  # fmt: skip
    with rasterio.open(tmp_path / "w.tif") as dataset:
        expected = dataset.read(1)
    assert set(np.unique(alpha)) == {0, 255}
    assert ((alpha == 255) == np.isfinite(expected)).mean() > 0.99
    mapped = (alpha == 255) & np.isfinite(expected)
    value = np.round(expected[mapped] * 254) + 1
    assert (grey[mapped] == value).mean() > 0.98
    with rasterio.open(map_service.map / "probability.tif") as dataset:
        known = np.unique(np.round(dataset.read(1) * 254) + 1)
    assert set(np.unique(grey[alpha == 255])) <= set(known[np.isfinite(known)])  # no interpolated values
    assert map_service.client.get(f"{map_service.url}/tiles/optical/15/{tile.x}/{tile.y}.png").status_code == 200
    assert map_service.client.get(f"{map_service.url}/tiles/inventory/15/{tile.x}/{tile.y}.png").status_code == 204
    assert map_service.client.get(f"{map_service.url}/tiles/slope/15/{tile.x}/{tile.y}.png").status_code == 422


@pytest.mark.parametrize("path", ["map", "polygons", "not-mapped", "review.gpkg", "tiles/probability/3/2/3.png"])
def test_only_finished_map_can_be_reviewed(map_service: SimpleNamespace, path: str) -> None:
    for status in ("accepted", "running", "failed", "dismissed"):
        job = add_job(map_service.service, "a.tif", status)
        answer = map_service.client.get(f"/jobs/{job}/{path}")
        assert (answer.status_code, answer.json()["type"].rsplit("/", 1)[1]) == (404, "result-not-ready")
        map_service.service.jobs.remove(job)
    answer = map_service.client.get(f"/jobs/no-such/{path}")
    assert (answer.status_code, answer.json()["type"].rsplit("/", 1)[1]) == (404, "no-such-job")


def test_verdict_is_stored_with_reviewer_and_withdrawn(review: SimpleNamespace) -> None:
    before = feature(review, "2")
    answer = review.client.put(f"{review.url}/polygons/2", json={"verdict": "rejected", "reviewer": "  Ana Ríos "})
    assert answer.status_code == 200
    properties = answer.json()["properties"]
    assert (properties["verdict"], properties["reviewed_by"], properties["redrawn"]) == ("rejected", "Ana Ríos", False)
    assert properties["reviewed_at"].endswith("+00:00")
    assert answer.json() == feature(review, "2")
    assert get_landslides(review)["counts"]["rejected"] == 1
    assert review.client.delete(f"{review.url}/polygons/2").status_code == 204
    assert feature(review, "2") == before


def test_redrawn_outline_is_kept_until_withdrawal(review: SimpleNamespace) -> None:
    before = feature(review, "1")
    outline = shapely.Polygon(
        [(LEFT + 600, TOP - 500), (LEFT + 600, TOP - 700), (LEFT + 800, TOP - 700)],
        [[(LEFT + 620, TOP - 600), (LEFT + 620, TOP - 620), (LEFT + 640, TOP - 620)]],
    )
    body = {"verdict": "unreviewed", "reviewer": "Ana", "geometry": to_degrees(outline)}
    redrawn = review.client.put(f"{review.url}/polygons/1", json=body).json()
    assert redrawn["properties"]["area_m2"] == pytest.approx(200 * 200 / 2 - 20 * 20 / 2, abs=0.5)  # two triangles
    assert (redrawn["properties"]["redrawn"], redrawn["properties"]["origin"]) == (True, "model")
    assert to_metres(redrawn["geometry"]).symmetric_difference(outline).area < 5
    accepted = review.client.put(f"{review.url}/polygons/1", json={"verdict": "accepted", "reviewer": "Luz"}).json()
    assert accepted["geometry"] == redrawn["geometry"]
    assert accepted["properties"]["area_m2"] == redrawn["properties"]["area_m2"]
    assert accepted["properties"]["reviewed_by"] == "Luz"
    assert get_landslides(review)["counts"]["accepted_area_m2"] == accepted["properties"]["area_m2"]
    review.client.delete(f"{review.url}/polygons/1")
    assert feature(review, "1") == before


def test_drawn_landslide_is_added_changed_and_deleted(review: SimpleNamespace) -> None:
    count = len(get_landslides(review)["features"])
    outlines = [square(500, 500, 100), shapely.MultiPolygon([square(700, 700, 30), square(800, 800, 40)])]
    for outline in outlines:
        answer = review.client.post(f"{review.url}/polygons", json={"geometry": to_degrees(outline), "reviewer": "Ana"})
        assert answer.status_code == 201
        drawn = answer.json()
        assert drawn["properties"]["area_m2"] == pytest.approx(outline.area, rel=1e-4)
        assert (drawn["properties"]["origin"], drawn["properties"]["verdict"]) == ("drawn", "accepted")
        assert drawn["properties"]["mean_probability"] is None
    found = get_landslides(review)
    assert (len(found["features"]), found["counts"]["drawn"], found["counts"]["accepted"]) == (count + 2, 2, 0)
    assert found["counts"]["accepted_area_m2"] == pytest.approx(10_000 + 900 + 1_600, rel=1e-4)
    assert found["features"][-1] == drawn  # the last one drawn is last
    place = answer.headers["location"]
    body = {"verdict": "accepted", "reviewer": "Luz", "geometry": to_degrees(square(700, 700, 50))}
    assert review.client.put(place, json=body).json()["properties"]["area_m2"] == pytest.approx(2_500, rel=1e-4)
    assert review.client.put(place, json=body | {"verdict": "rejected"}).status_code == 422
    assert review.client.delete(place).status_code == 204
    assert (review.client.delete(place).status_code, review.client.put(place, json=body).status_code) == (404, 404)
    assert len(get_landslides(review)["features"]) == count + 1


@pytest.mark.parametrize("name", ["0", "01", "1e0", "999999", "x", "1 OR 1=1"])
def test_review_of_unknown_landslide_is_refused(review: SimpleNamespace, name: str) -> None:
    url = f"{review.url}/polygons/{name}"
    assert review.client.put(url, json={"verdict": "accepted", "reviewer": "Ana"}).status_code == 404
    assert review.client.delete(url).status_code == 404
    assert get_landslides(review)["counts"]["accepted"] == 0


def polygon(*rings: list) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def moved(geometry: dict, east: float) -> dict:
    return json.loads(shapely.to_geojson(shapely.affinity.translate(shapely.geometry.shape(geometry), xoff=east)))


GOOD = to_degrees(square(500, 500, 100))
RING = GOOD["coordinates"][0]
BOWTIE = to_degrees(shapely.Polygon([(LEFT + x, TOP - y) for x, y in ((500, 500), (600, 600), (600, 500), (500, 600))]))


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (None, "geometry"),
        ("POLYGON ((0 0, 1 0, 1 1, 0 0))", "geometry"),
        ({"type": "Point", "coordinates": [0, 0]}, "geometry"),
        ({"type": "GeometryCollection", "geometries": [GOOD]}, "geometry"),
        (polygon(), "geometry"),
        (polygon([]), "geometry"),
        (polygon(RING[:3]), "geometry"),
        (polygon([*RING[:3], [None, 1]]), "geometry"),
        (polygon([*RING[:3], ["x", 1]]), "geometry"),
        (polygon([*RING[:3], [1]]), "geometry"),
        (polygon([RING[0]] * 5), "has no area"),
        (polygon([RING[0], RING[1], RING[0], RING[0]]), "has no area"),
        (BOWTIE, "crosses itself"),
        (polygon(RING, RING), "crosses itself"),
        ({"type": "MultiPolygon", "coordinates": [GOOD["coordinates"]] * 2}, "crosses itself"),
        (moved(GOOD, 0.1), "beyond the map"),
        (to_degrees(square(-100, 500, 200)), "beyond the map"),
        (json.loads(shapely.to_geojson(square(500, 500, 100))), "longitude and latitude"),
        (polygon([[x, 90] for x in range(5)]), ""),
        (polygon([[1e308, 1e308], [-1e308, 1e308], [0, -1e308], [1e308, 1e308]]), "longitude and latitude"),
        (polygon(RING, [[1e17, 0], [0, 1e17], [1e17, 1e17], [1e17, 0]]), "longitude and latitude"),
        (polygon(RING, [[15, 0], [15, 1], [16, 0], [15, 0]]), ""),
    ],
)
def test_invalid_outline_is_refused(review: SimpleNamespace, geometry: object, message: str) -> None:
    for send, url, more in (
        (review.client.post, f"{review.url}/polygons", {}),
        (review.client.put, f"{review.url}/polygons/1", {"verdict": "accepted"}),
    ):
        if geometry is None and more:
            continue  # optional in a review
        answer = send(url, json={"geometry": geometry, "reviewer": "Ana"} | more)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert message in answer.json()["detail"]
    assert get_landslides(review)["counts"]["drawn"] == get_landslides(review)["counts"]["accepted"] == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_coordinates_that_are_not_finite_are_refused(review: SimpleNamespace, number: str) -> None:
    text = json.dumps({"geometry": GOOD, "reviewer": "Ana"}).replace(json.dumps(RING[1][0]), number, 1)
    answer = review.client.post(f"{review.url}/polygons", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("reviewer", ["", "  ", "x" * 81, "a\nb", "a\0b", 7, None])
def test_invalid_reviewer_name_is_refused(review: SimpleNamespace, reviewer: object) -> None:
    answer = review.client.put(f"{review.url}/polygons/1", json={"verdict": "accepted", "reviewer": reviewer})
    assert answer.status_code == 422


def test_outline_touching_itself_is_repaired_without_heights(review: SimpleNamespace) -> None:
    spike = [(500, 500), (600, 500), (600, 600), (700, 600), (600, 600), (500, 600)]  # a line out and back
    outline = shapely.Polygon([(LEFT + x, TOP - y, 7) for x, y in spike])
    assert not outline.is_valid
    answer = review.client.post(f"{review.url}/polygons", json={"geometry": to_degrees(outline), "reviewer": "Ana"})
    assert answer.status_code == 201
    kept = shapely.geometry.shape(answer.json()["geometry"])
    assert (kept.is_valid, kept.has_z) == (True, False)
    assert answer.json()["properties"]["area_m2"] == pytest.approx(10_000, rel=1e-4)


def test_outline_may_follow_edge_of_map(review: SimpleNamespace) -> None:
    rounded = shapely.transform(
        shapely.geometry.shape(to_degrees(square(0, 400, 200))), lambda places: np.round(places, 6)
    )
    body = {"geometry": json.loads(shapely.to_geojson(rounded)), "reviewer": "Ana"}
    assert review.client.post(f"{review.url}/polygons", json=body).status_code == 201


@pytest.mark.slow
def test_complex_outline_is_refused_before_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(HEIGHT, WIDTH)
    rng = np.random.default_rng(0)
    west, south, east, north = shapely.geometry.shape(to_degrees(square(100, 100, 800))).bounds
    monkeypatch.setattr(map_polygons, "extract_polygons", lambda _: pytest.fail("mended"))

    def refused(rings: list[np.ndarray]) -> str:
        closed = [[*ring.tolist(), ring[0].tolist()] for ring in rings]
        with pytest.raises(ParamsError) as error:
            map_polygons.parse_outline(PolygonGeometry(type="Polygon", coordinates=closed), grid)
        return str(error.value)

    for count in (200, 999, 50_000):  # outlines with many crossings
        assert "crosses itself" in refused([rng.uniform((west, south), (east, north), (count, 2))])
    assert "the limit is 100,000" in refused([rng.uniform((west, south), (east, north), (100_001, 2))])
    assert "rings" in refused([rng.uniform((west, south), (east, north), (4, 2)) for _ in range(501)])


def test_outline_area_in_degrees_is_ellipsoidal() -> None:
    grid = grid_of(HEIGHT, WIDTH)
    degrees = type(grid)(CRS.from_epsg(4326), grid.transform, HEIGHT, WIDTH)
    quadrant = shapely.Polygon([(0, 0), (90, 0), (0, 90)])  # an eighth of the Earth, WGS84
    assert map_polygons.outline_area(quadrant, degrees) == pytest.approx(510_065_621_724_000 / 8, rel=1e-6)
    feet = type(grid)(CRS.from_epsg(2263), grid.transform, HEIGHT, WIDTH)
    assert map_polygons.outline_area(shapely.box(0, 0, 100, 100), feet) == pytest.approx((100 * 1200 / 3937) ** 2)


def test_pixel_metres_converts_feet_and_degrees() -> None:
    grid = grid_of(HEIGHT, WIDTH)
    assert pixel_metres(grid) == 12.5
    in_feet = type(grid)(CRS.from_epsg(2263), grid.transform, HEIGHT, WIDTH)
    assert pixel_metres(in_feet) == pytest.approx(12.5 * 1200 / 3937)
    to_degrees = type(grid)(CRS.from_epsg(4326), grid.transform, HEIGHT, WIDTH)
    assert pixel_metres(to_degrees) == pytest.approx(12.5 * 40_075_016.686 / 360)  # the equator's length


def download_review(review: SimpleNamespace, path: Path) -> Path:
    answer = review.client.get(f"{review.url}/review.gpkg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/geopackage+sqlite3")
    path.write_bytes(answer.content)
    return path


@pytest.mark.slow
def test_inventory_import_reads_exported_review(review: SimpleNamespace, tmp_path: Path) -> None:
    for name, verdict in (("1", "accepted"), ("2", "accepted"), ("3", "rejected")):
        review.client.put(f"{review.url}/polygons/{name}", json={"verdict": verdict, "reviewer": "Ana"})
    redrawn = {"verdict": "accepted", "reviewer": "Luz", "geometry": to_degrees(square(900, 900, 100))}
    review.client.put(f"{review.url}/polygons/2", json=redrawn)
    review.client.post(f"{review.url}/polygons", json={"geometry": to_degrees(square(450, 300, 60)), "reviewer": "Eva"})
    counted = get_landslides(review)["counts"]
    path = download_review(review, tmp_path / "review.gpkg")
    assert query_geopackage(path, "SELECT COUNT(*) FROM inventory") == counted["accepted"] + counted["drawn"] == 3
    assert pyogrio.read_info(path)["dataset_metadata"]["TALUD_MODEL"] == "3band"

    project = tmp_path / "project"
    write_raster(project / "data/here/optical.tif", np.full((3, HEIGHT, WIDTH), 90, np.uint8), corner=(LEFT, TOP))
    before = geopandas.GeoDataFrame({"id": [7]}, geometry=[square(200, 900, 50)], crs="EPSG:32618")
    pyogrio.write_dataframe(before, project / "data/here/inventory.gpkg")
    write_project(project, {"here": {"role": "training", "folder": "data/here"}})
    command = [sys.executable, "-m", "talud.cli.main", "inventory", "import", str(path), "--area", "here"]
    output = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    assert f"3 polygons, {counted['accepted_area_m2'] / 10_000:,.2f} ha after" in output
    assert "added: 3 polygons" in output
    assert "removed: 1 polygon," in output
    inventory = pyogrio.read_dataframe(project / "data/here/inventory.gpkg")
    assert inventory.geometry.area.sum() == pytest.approx(counted["accepted_area_m2"])
    kept = ReviewStore(review.service.database).all(review.job)
    times = {one.reviewer: one.reviewed.replace(microsecond=one.reviewed.microsecond // 1000 * 1000)
             for name, one in kept.items() if name != "3"}  # fmt: skip
    assert dict(zip(inventory.reviewed_by, inventory.reviewed_at.dt.to_pydatetime(), strict=True)) == times
    by_name = inventory.set_index("reviewed_by")
    assert by_name.origin.to_dict() == {"Ana": "model", "Luz": "model", "Eva": "drawn"}
    assert by_name.mean_probability["Ana"] == feature(review, "1")["properties"]["mean_probability"]
    assert np.isnan(by_name.mean_probability["Eva"])
    again = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    assert "no changes;" in again


@pytest.mark.slow
def test_equal_reviews_export_equal_bytes(review: SimpleNamespace, tmp_path: Path) -> None:
    empty = download_review(review, tmp_path / "empty.gpkg")
    assert query_geopackage(empty, "SELECT COUNT(*) FROM inventory") == 0
    for name in ("1", "2"):
        review.client.put(f"{review.url}/polygons/{name}", json={"verdict": "accepted", "reviewer": "Ana"})
    first = download_review(review, tmp_path / "first.gpkg").read_bytes()
    time.sleep(1.1)  # GDAL's clock counts seconds
    with ThreadPoolExecutor(8) as pool:
        others = list(pool.map(lambda _: review.client.get(f"{review.url}/review.gpkg").content, range(16)))
    assert set(others) == {first}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReviewStore]:
    """Yield a review store on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        with Database.open(f"sqlite:///{tmp_path}/service.db") as database:
            JobStore(database).create("job", "somebody", MapRequest(raster="a.tif"))
            yield ReviewStore(database)
    else:
        with postgresql() as url, Database.open(url) as database:
            JobStore(database).create("job", "somebody", MapRequest(raster="a.tif"))
            yield ReviewStore(database)


def new_review(
    job: str,
    polygon: str,
    verdict: Verdict,
    reviewer: str,
    geometry: shapely.Polygon | None = None,
    area: float | None = None,
) -> Review:
    """Return a review with the current time."""
    return Review(
        job=job, polygon=polygon, verdict=verdict, reviewer=reviewer, reviewed=utc_now(), geometry=geometry, area=area
    )  # fmt: skip


@pytest.mark.slow
def test_parallel_reviews_of_polygon_do_not_mix(store: ReviewStore) -> None:
    drawn = {f"reviewer {number}": square(0, 0, number) for number in range(1, 41)}

    def say(name: str) -> None:
        for polygon in ("1", "2"):
            store.save(new_review("job", polygon, "accepted", name, drawn[name], drawn[name].area), REVIEWER_KEY)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(say, drawn))
    found = store.all("job")
    assert set(found) == {"1", "2"}
    for one in found.values():
        assert one.geometry.equals(drawn[one.reviewer])
        assert one.area == drawn[one.reviewer].area
    store.save(new_review("job", "1", "rejected", "last"), REVIEWER_KEY)
    kept = store.get("job", "1")
    assert (kept.verdict, kept.reviewer, kept.area) == ("rejected", "last", found["1"].area)


def test_landslide_withdrawn_during_change_stays_deleted(store: ReviewStore) -> None:
    outline = square(0, 0, 10)
    names = [str(uuid.uuid4()) for _ in range(40)]
    for name in names:
        store.save(new_review("job", name, "accepted", "Ana", outline, 100.0), REVIEWER_KEY)

    def either(task: tuple[bool, str]) -> None:
        gone, name = task
        if gone:
            store.withdraw("job", name, REVIEWER_KEY)
        else:
            store.change(new_review("job", name, "accepted", "Luz", outline, 100.0), REVIEWER_KEY)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(either, [(gone, name) for name in names for gone in (False, True, False)]))
    assert store.all("job") == {}
    assert not store.withdraw("job", names[0], REVIEWER_KEY)


def test_job_dismissed_during_review_keeps_no_review(store: ReviewStore) -> None:
    """The review is deleted, whichever of the two comes first."""
    jobs = JobStore(store.database)
    names = [f"job {number}" for number in range(30)]
    for name in names:
        jobs.create(name, "somebody", MapRequest(raster="a.tif"))

    def either(task: tuple[bool, str]) -> None:
        dismissed, name = task
        if dismissed:
            jobs.dismiss(name)
        else:
            with contextlib.suppress(Problem):
                store.save(new_review(name, "1", "accepted", "Ana"), REVIEWER_KEY)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(either, [(dismissed, name) for name in names for dismissed in (False, True, False)]))
    for name in names:
        assert store.all(name) == {}
        assert store.history(name, "1") == ()


@pytest.fixture
def keyed_map(review: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """Yield the agency with the headers of several keys.

    The keys belong to two reviewers, an administrator and a visitor.
    """
    store = review.service.keys
    scopes = {"ana": "run", "luz": "run", "chief": "admin", "visitor": "read"}
    headers = {name: {"X-API-Key": store.add(name, scope)} for name, scope in scopes.items()}
    yield SimpleNamespace(headers=headers, **vars(review))
    for name in scopes:
        store.revoke(name)


def test_only_author_or_admin_changes_verdict(keyed_map: SimpleNamespace) -> None:
    url, headers = f"{keyed_map.url}/polygons/1", keyed_map.headers
    accepted, rejected = ({"verdict": word, "reviewer": "Same Name"} for word in ("accepted", "rejected"))
    assert keyed_map.client.put(url, json=accepted, headers=headers["ana"]).status_code == 200
    redrawn = rejected | {"geometry": to_degrees(square(500, 500, 100))}
    for answer in (
        keyed_map.client.put(url, json=rejected, headers=headers["luz"]),
        keyed_map.client.put(url, json=redrawn, headers=headers["luz"]),
        keyed_map.client.delete(url, headers=headers["luz"]),
    ):
        assert answer.status_code == 403
        assert answer.json()["detail"].startswith("Same Name reviewed landslide 1 with another key")
    assert feature(keyed_map, "1")["properties"]["verdict"] == "accepted"
    assert keyed_map.client.put(url, json=rejected, headers=headers["visitor"]).status_code == 403
    assert keyed_map.client.put(url, json=rejected, headers=headers["ana"]).status_code == 200
    assert keyed_map.client.put(url, json=accepted, headers=headers["chief"]).status_code == 200
    assert (
        keyed_map.client.put(url, json=rejected, headers=headers["ana"]).status_code == 403
    )  # the review now belongs to the chief
    assert keyed_map.client.delete(url, headers=headers["chief"]).status_code == 204
    assert keyed_map.client.put(url, json=rejected, headers=headers["luz"]).status_code == 200


def test_only_author_or_admin_changes_drawn_landslide(keyed_map: SimpleNamespace) -> None:
    body = {"geometry": to_degrees(square(500, 500, 100)), "reviewer": "Ana"}
    url = keyed_map.client.post(f"{keyed_map.url}/polygons", json=body, headers=keyed_map.headers["ana"]).headers[
        "location"
    ]
    other = {"verdict": "accepted", "reviewer": "Ana", "geometry": to_degrees(square(600, 600, 10))}
    assert keyed_map.client.put(url, json=other, headers=keyed_map.headers["luz"]).status_code == 403
    assert keyed_map.client.delete(url, headers=keyed_map.headers["luz"]).status_code == 403
    assert get_landslides(keyed_map)["counts"]["accepted_area_m2"] == pytest.approx(10_000, rel=1e-4)
    assert keyed_map.client.delete(url, headers=keyed_map.headers["ana"]).status_code == 204


def test_new_key_with_revoked_name_changes_no_earlier_review(keyed_map: SimpleNamespace) -> None:
    url, body = f"{keyed_map.url}/polygons/2", {"verdict": "accepted", "reviewer": "Ana"}
    assert keyed_map.client.put(url, json=body, headers=keyed_map.headers["ana"]).status_code == 200
    keyed_map.service.keys.revoke("ana")
    again = {"X-API-Key": keyed_map.service.keys.add("ana", "run")}
    assert keyed_map.client.put(url, json=body, headers=again).status_code == 403
    assert keyed_map.client.delete(url, headers=again).status_code == 403


def test_history_contains_every_change(keyed_map: SimpleNamespace) -> None:
    url, headers = f"{keyed_map.url}/polygons/3", keyed_map.headers
    before = len(keyed_map.client.get(f"{url}/history").json()["changes"])
    drawn = {"verdict": "accepted", "reviewer": "Ana", "geometry": to_degrees(square(500, 500, 100))}
    keyed_map.client.put(url, json=drawn, headers=headers["ana"])
    keyed_map.client.put(url, json={"verdict": "rejected", "reviewer": "Ana R."}, headers=headers["ana"])
    keyed_map.client.put(url, json={"verdict": "accepted", "reviewer": "Luz"}, headers=headers["luz"])  # refused
    keyed_map.client.delete(url, headers=headers["chief"])
    changes = keyed_map.client.get(f"{url}/history", headers=headers["visitor"]).json()["changes"][before:]
    ids = {key.name: key.id for key in keyed_map.service.keys.all()}
    assert [(one["verdict"], one["reviewed_by"], one["key_id"]) for one in changes] == [
        ("accepted", "Ana", ids["ana"]), ("rejected", "Ana R.", ids["ana"]), ("withdrawn", "chief", ids["chief"]),
    ]  # fmt: skip
    assert [one["area_m2"] for one in changes] == [pytest.approx(10_000, rel=1e-4)] * 2 + [None]
    assert keyed_map.client.get(f"{keyed_map.url}/polygons/999/history").status_code == 404


@pytest.mark.slow
def test_dismissed_job_leaves_no_reviewer_name_on_disk(tmp_path: Path, tiny_model: Path) -> None:
    settings = make_settings(tmp_path)
    raster = write_stack(settings.data / "a.tif", np.full((3, 64, 64), 120, np.float32))
    with run_app(settings) as (client, service):
        job = add_finished_job(service, tiny_model, raster)
        body = {"geometry": to_degrees(square(100, 100, 100)), "reviewer": "Ana Ríos"}
        assert client.post(f"/jobs/{job}/polygons", json=body).status_code == 201
        assert client.delete(f"/jobs/{job}").json()["status"] == "dismissed"
        with service.database.engine.connect() as connection:
            connection.exec_driver_sql("VACUUM")
    kept = b"".join(path.read_bytes() for path in settings.results.glob("service.db*"))
    assert "Ana Ríos".encode() not in kept
