"""Tests of the prediction: from a raster to the files of a map."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.windows import Window
from rio_cogeo import cog_validate

from stack_files import grid_of, noise, window_probabilities, write_stack
from talud.bands import Group
from talud.engine.runtime import Model
from talud.engine.tiling import Tile
from talud.errors import MismatchError, OutputError, ParamsError, SourceError
from talud.grid import Grid
from talud.mapping.options import MapOptions
from talud.products.prediction import Prediction, predict

FILES = {
    "probability.tif", "probability.qml", "landslides.tif", "landslides.qml", "landslides.gpkg", "quicklook.png",
    "summary.html", "prediction.json", "timings.json",
}  # fmt: skip
BANDS = ("red", "green", "blue", "slope", "vv_pre", "vv_post")


@pytest.fixture(scope="module")
def three_group_model(exporter, tmp_path_factory) -> Model:
    """Return a model of three band groups; optical and SAR are required."""
    return Model.load(exporter(2, BANDS, required=(Group.OPTICAL, Group.SAR)))


def add_invalid_parts(values: np.ndarray) -> np.ndarray:
    """Make parts of optical, SAR and terrain and a corner invalid."""
    values[1, 10:40, 10:40] = np.nan
    values[5, 30:60, 30:60] = np.nan
    values[3, 70:80, 10:50] = np.nan
    values[:, 90:, 100:] = np.nan
    return values


@pytest.fixture(scope="module")
def mapped(three_group_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Prediction]:
    """Map a stack whose bands are not in the order of the contract.

    Returns:
        The stack, the folder of the map and its figures.
    """
    folder = tmp_path_factory.mktemp("mapped")
    values = add_invalid_parts(noise(123, 157, bands=6))
    order = (3, 0, 5, 2, 1, 4)
    stack = write_stack(
        folder / "stack.tif",
        values[list(order)],
        [BANDS[index] for index in order],
        tags={"TALUD_AREA": "somewhere", "TALUD_EVENT": "2015-05-18", "TALUD_SYNTHETIC": "yes"},
    )
    return stack, folder / "out", predict(three_group_model, stack, folder / "out", MapOptions(tile=48))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_map_equals_one_pass_with_bands_in_contract_order(
    mapped: tuple[Path, Path, Prediction], three_group_model: Model
) -> None:
    _, out, outcome = mapped
    values = add_invalid_parts(noise(123, 157, bands=6))
    padded = np.full((6, 124, 160), np.nan, np.float32)
    padded[:, :123, :157] = values
    whole = three_group_model.run(padded)[:123, :157]
    invalid = np.isnan(values)
    left_out = invalid[:3].any(axis=0) | invalid[4:].any(axis=0)
    assert outcome.tiles > 4
    assert np.array_equal(read(out / "probability.tif"), np.where(left_out, np.nan, whole), equal_nan=True)
    assert np.array_equal(
        read(out / "landslides.tif"),
        np.where(left_out, 255, whole >= three_group_model.contract.measured.threshold).astype(np.uint8),
    )
    assert outcome.share_not_mapped == left_out.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "batch", "halo"),
    [(None, None, None), (13, None, None), (20, 3, None), (100, None, None), (32, 5, 28), (48, 2, 999)],
)
def test_map_does_not_depend_on_tile_batch_or_larger_halo(
    mapped: tuple[Path, Path, Prediction],
    three_group_model: Model,
    tmp_path: Path,
    tile: int | None,
    batch: int | None,
    halo: int | None,
) -> None:
    stack, out, _ = mapped
    predict(three_group_model, stack, tmp_path / "out", MapOptions(tile=tile, batch=batch, halo=halo))
    before, after = contents(out), contents(tmp_path / "out")
    assert before.keys() == after.keys() == FILES
    for name in FILES - {"prediction.json", "timings.json"}:
        assert before[name] == after[name], name


@pytest.mark.slow
def test_second_run_gives_equal_bytes_except_timings(
    mapped: tuple[Path, Path, Prediction], three_group_model: Model
) -> None:
    stack, out, outcome = mapped
    before = contents(out)
    assert predict(three_group_model, stack, out, MapOptions(tile=48)) == outcome
    after = contents(out)
    timings = [json.loads(files.pop("timings.json")) for files in (before, after)]
    assert before == after
    assert timings[0]["seconds"].keys() == {"tiles", "rasters", "polygons", "quicklook", "summary", "total"}
    assert timings[0]["tiles_taken_over"] == 0


def test_raster_styles_have_the_colours_of_the_file(
    mapped: tuple[Path, Path, Prediction],
) -> None:
    _, out, _ = mapped
    classes = ElementTree.parse(out / "landslides.qml").findall("pipe/rasterrenderer[@type='paletted']//paletteEntry")
    with rasterio.open(out / "landslides.tif") as dataset:
        colours = {value: "#" + bytes(dataset.colormap(1)[value][:3]).hex() for value in (0, 1)}
    assert {int(entry.attrib["value"]): entry.attrib["color"] for entry in classes} == colours
    ramp = ElementTree.parse(out / "probability.qml").findall(
        "pipe/rasterrenderer[@type='singlebandpseudocolor']/rastershader/colorrampshader/item"
    )
    values = [float(item.attrib["value"]) for item in ramp]
    assert (values[0], values[-1], values) == (0, 1, sorted(values))


def test_rasters_are_cogs_with_lineage_tags(mapped: tuple[Path, Path, Prediction], three_group_model: Model) -> None:
    _, out, _ = mapped
    contract = three_group_model.contract
    lineage = {
        "TALUD_MODEL": "3band",
        "TALUD_VERSION": "unregistered",
        "TALUD_RUN": contract.origin.run_id,
        "TALUD_DATA_VERSION": contract.origin.data_version,
        "TALUD_COMMIT": contract.origin.commit,
        "TALUD_WEIGHTS": contract.origin.weights,
        "TALUD_THRESHOLD": "0.5",
        "TALUD_AREA": "somewhere",
        "TALUD_EVENT": "2015-05-18",
        "TALUD_SYNTHETIC": "yes",
    }
    for name in ("probability.tif", "landslides.tif"):
        assert cog_validate(out / name, strict=True) == (True, [], [])
        with rasterio.open(out / name) as dataset:
            assert lineage.items() <= dataset.tags().items()
            assert (dataset.crs.to_epsg(), dataset.transform) == (32618, grid_of(1, 1).transform)
    with rasterio.open(out / "probability.tif") as dataset:
        assert (dataset.dtypes, np.isnan(dataset.nodata)) == (("float32",), True)
    with rasterio.open(out / "landslides.tif") as dataset:
        assert (dataset.dtypes, dataset.nodata) == (("uint8",), 255)
        assert dataset.colormap(1)[1] == (214, 40, 57, 255)
    assert lineage.items() <= pyogrio.read_info(out / "landslides.gpkg", layer="landslides")["dataset_metadata"].items()


def test_landslide_polygons_are_the_landslide_pixels(mapped: tuple[Path, Path, Prediction]) -> None:
    _, out, outcome = mapped
    classes, probability = read(out / "landslides.tif"), read(out / "probability.tif")
    slides = pyogrio.read_dataframe(out / "landslides.gpkg", layer="landslides")
    assert slides.crs.to_epsg() == 32618
    assert slides.geometry.is_valid.all()
    assert list(slides.columns) == [
        "id", "area_m2", "perimeter_m", "mean_probability", "maximum_probability", "mean_slope_degrees", "model",
        "version", "geometry",
    ]  # fmt: skip
    assert set(zip(slides["model"], slides["version"], strict=True)) == {("3band", "unregistered")}
    assert np.allclose(slides["perimeter_m"], slides.length, rtol=1e-9)
    assert slides["id"].tolist() == list(range(1, outcome.landslides + 1))
    assert slides["area_m2"].is_monotonic_decreasing
    assert np.allclose(slides["area_m2"], slides.area, rtol=1e-9)
    assert slides["area_m2"].sum() == outcome.landslide_area_m2 == (classes == 1).sum() * 12.5**2
    transform = grid_of(1, 1).transform
    back = rasterio.features.rasterize(
        zip(slides.geometry, slides["id"], strict=True), classes.shape, transform=transform
    )
    assert np.array_equal(back > 0, classes == 1)
    slope = add_invalid_parts(noise(123, 157, bands=6))[3]
    slope = np.where(slope <= 90, slope, np.nan)  # steeper values are invalid
    for row in slides.itertuples():
        inside = back == row.id
        assert row.mean_probability == pytest.approx(probability[inside].astype(np.float64).mean(), rel=1e-9)
        assert row.maximum_probability == probability[inside].max()
        valid = slope[inside][~np.isnan(slope[inside])].astype(np.float64)
        assert row.mean_slope_degrees == pytest.approx(valid.mean() if len(valid) else np.nan, rel=1e-9, nan_ok=True)


def test_unmapped_polygons_have_reasons(mapped: tuple[Path, Path, Prediction]) -> None:
    _, out, outcome = mapped
    rest = pyogrio.read_dataframe(out / "landslides.gpkg", layer="not_mapped")
    by_reason = rest.groupby("reason")["area_m2"].sum() / 12.5**2
    corner = 33 * 57
    assert by_reason.to_dict() == {
        "no data: green": 800,
        "no data: vv_post": 800,
        "no data: green, vv_post": 100,
        "no data: red, green, blue, vv_pre, vv_post": corner,  # the slope is not required
    }
    assert outcome.not_mapped == by_reason.to_dict()
    assert list(outcome.not_mapped.values()) == [corner, 800, 800, 100]
    left_out = rasterio.features.rasterize(rest.geometry, (123, 157), transform=grid_of(1, 1).transform)
    assert np.array_equal(left_out == 1, read(out / "landslides.tif") == 255)


def test_record_contains_lineage_but_no_path(mapped: tuple[Path, Path, Prediction], three_group_model: Model) -> None:
    stack, out, outcome = mapped
    text = (out / "prediction.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert str(stack.parent) not in text
    assert record["raster"] == "stack.tif"
    assert record["model"]["commit"] == three_group_model.contract.origin.commit
    assert record["model"]["weights"] == three_group_model.contract.origin.weights
    assert record["provider"] == three_group_model.provider
    assert (record["landslides"], record["landslide_area_m2"]) == (outcome.landslides, outcome.landslide_area_m2)
    assert (record["halo"], record["tile"]) == (three_group_model.contract.input.halo, [44, 40])


def test_record_contains_the_domain_report_of_each_band(mapped: tuple[Path, Path, Prediction]) -> None:
    _, out, outcome = mapped
    domain = json.loads((out / "prediction.json").read_text(encoding="utf-8"))["domain"]
    assert domain["verdict"] == "the model holds no histograms"
    assert [band["band"] for band in domain["bands"]] == list(BANDS)
    assert [band["outside"] for band in domain["bands"]] == [one.outside for one in outcome.distances]


@pytest.mark.slow
def test_smoothing_changes_only_outlines(
    mapped: tuple[Path, Path, Prediction], three_group_model: Model, tmp_path: Path
) -> None:
    stack, out, outcome = mapped
    smooth = predict(three_group_model, stack, tmp_path / "out", MapOptions(tile=48, smooth=True, geojson=True))
    assert smooth == replace(outcome, smooth=True)
    for name in ("probability.tif", "landslides.tif", "quicklook.png"):
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes()
    layers = {
        (folder, layer): pyogrio.read_dataframe(folder / "landslides.gpkg", layer=layer)
        for folder in (out, tmp_path / "out")
        for layer in ("landslides", "not_mapped")
    }
    assert layers[out, "not_mapped"].equals(layers[tmp_path / "out", "not_mapped"])
    before, after = layers[out, "landslides"], layers[tmp_path / "out", "landslides"]
    assert before.drop(columns="geometry").equals(after.drop(columns="geometry"))
    assert after.geometry.is_valid.all()
    assert 0 < (before.area - after.area).abs().max() < 12.5**2 * before.geometry.count_geometries().max()
    content = json.loads((tmp_path / "out/landslides.geojson").read_text())
    corners = [len(ring) for ring in content["features"][0]["geometry"]["coordinates"][0]]
    assert max(corners) > 8
    assert [each["properties"]["area_m2"] for each in content["features"]] == after["area_m2"].tolist()


@pytest.mark.slow
def test_tiles_without_valid_pixels_are_skipped(three_group_model: Model, tmp_path: Path) -> None:
    values = noise(64, 200, bands=6)
    values[0, :, 60:] = np.nan
    outcome = predict(
        three_group_model, write_stack(tmp_path / "s.tif", values, BANDS), tmp_path / "out", MapOptions(tile=40)
    )
    assert (outcome.tiles, outcome.skipped) == (10, 6)
    assert outcome.share_not_mapped == 0.7


def test_raster_without_valid_pixels_gives_an_empty_map(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", np.full((3, 20, 30), np.nan, np.float32))
    outcome = predict(model, stack, tmp_path / "out")
    assert (outcome.landslides, outcome.share_not_mapped, outcome.skipped) == (0, 1.0, 1)
    assert pyogrio.read_info(tmp_path / "out/landslides.gpkg", layer="landslides")["features"] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (7, 4000), (4000, 7)])
def test_rasters_can_have_any_shape(model: Model, tmp_path: Path, size: tuple[int, int]) -> None:
    values = noise(*size)
    predict(model, write_stack(tmp_path / "s.tif", values), tmp_path / "out", MapOptions(tile=512))
    assert np.array_equal(read(tmp_path / "out/probability.tif"), model.probability(values))


def test_infinite_and_implausible_values_are_invalid(model: Model, tmp_path: Path) -> None:
    values = noise(60, 60)
    values[0, 5, 5], values[1, 20, 20], values[2, 40, 40] = np.inf, -np.inf, 501
    outcome = predict(model, write_stack(tmp_path / "s.tif", values), tmp_path / "out")
    assert outcome.not_mapped == {"no data: red": 1, "no data: green": 1, "no data: blue": 1}
    assert np.isnan(read(tmp_path / "out/probability.tif")[[5, 20, 40], [5, 20, 40]]).all()


@pytest.mark.slow
def test_nodata_scale_and_offset_of_integers_are_applied(model: Model, tmp_path: Path) -> None:
    values = np.round(noise(40, 50))
    values[:, 3:9, 4:8] = np.nan
    predict(model, write_stack(tmp_path / "float.tif", values), tmp_path / "float")
    with rasterio.open(
        tmp_path / "scaled.tif", "w", driver="GTiff", dtype="int16", count=3, height=40, width=50, nodata=-32768,
        crs="EPSG:32618", transform=grid_of(1, 1).transform,
    ) as dataset:  # fmt: skip
        dataset.write(np.where(np.isnan(values), -32768, values * 2 + 20).astype(np.int16))
        dataset.descriptions = ("red", "green", "blue")
        dataset.scales, dataset.offsets = (0.5,) * 3, (-10.0,) * 3
    predict(model, tmp_path / "scaled.tif", tmp_path / "scaled")
    maps = [read(tmp_path / name / "probability.tif") for name in ("float", "scaled")]
    assert np.array_equal(*maps, equal_nan=True)


@pytest.mark.slow
def test_threshold_option_overrides_the_model(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", noise(64, 64))
    probability = model.probability(noise(64, 64))
    middle = float(np.median(probability))
    predict(model, stack, tmp_path / "out", MapOptions(threshold=middle))
    assert np.array_equal(read(tmp_path / "out/landslides.tif"), probability >= middle)
    for wrong in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ParamsError, match="between 0 and 1"):
            predict(model, stack, tmp_path / "other", MapOptions(threshold=wrong))
    for area in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ParamsError, match="minimum area"):
            predict(model, stack, tmp_path / "other", MapOptions(minimum_area=area))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_smaller_halo_error_is_recorded(exporter, tmp_path: Path) -> None:
    """Each core is computed with the reduced context; the contract states the error."""
    model = Model.load(exporter(3, halo_errors={16: 0.25}))
    values = noise(160, 200)
    stack = write_stack(tmp_path / "s.tif", values)
    assert (model.halo, model.contract.input.alignment) == (56, 8)
    outcome = predict(model, stack, tmp_path / "map", MapOptions(tile=72, halo=12))
    exact = model.probability(values)
    found = read(tmp_path / "map/probability.tif")
    middle = model.run(np.ascontiguousarray(values[:, 40:128, 56:160]))[16:72, 16:88]
    assert outcome.tile == (56, 72)
    assert np.array_equal(found[56:112, 72:144], middle)
    assert np.abs(found - exact).max() > 1e-6
    record = json.loads((tmp_path / "map/prediction.json").read_text())
    assert (record["halo"], record["exact_halo"], record["halo_error"]) == (16, 56, 0.25)
    assert predict(model, stack, tmp_path / "unknown", MapOptions(tile=72, halo=24)).halo_error is None
    assert predict(model, stack, tmp_path / "exact", MapOptions(tile=72, halo=56)).halo_error == 0
    assert predict(model, stack, tmp_path / "one", MapOptions(halo=0)).halo_error == 0  # a single tile
    assert np.array_equal(read(tmp_path / "one/probability.tif"), exact)
    for wrong in ({"halo": -1}, {"batch": 0}):
        with pytest.raises(ParamsError, match=f"the {next(iter(wrong))} is"):
            predict(model, stack, tmp_path / "other", MapOptions(**wrong))


def test_windows_are_predicted_independently(model: Model, tmp_path: Path) -> None:
    values = noise(70, 90)
    values[1, 20:25, 20:25] = np.nan
    stack = write_stack(tmp_path / "s.tif", values)
    windows = [Window(0, 0, 33, 30), Window(17, 13, 50, 41)]
    for window, found in zip(windows, window_probabilities(model, stack, windows), strict=True):
        part = values[:, *window.toslices()]
        assert np.array_equal(
            found, np.where(np.isnan(part[1]), np.nan, model.probability(part)).astype(np.float32), equal_nan=True
        )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_raster(tiny_model: Path, tmp_path: Path) -> None:
    """Compare the peak memory in MB for rasters with sides of 1200 and 2400 pixels."""
    code = """
import sys
from pathlib import Path
import talud
from talud.mapping import reader
from talud.mapping.options import MapOptions
from talud.products import prediction
reader.GDAL_CACHE_BYTES = 16 * 10**6
model = talud.load_model(sys.argv[1])
prediction.predict(model, Path(sys.argv[2]), Path(sys.argv[3]), MapOptions(threshold=0.999999, tile=256))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024)
"""
    # By default glibc keeps an amount of freed memory that varies by more than the size of the raster.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    peaks = []
    for side in (1200, 2400):
        stack = write_stack(tmp_path / f"{side}.tif", np.tile(noise(600, 600), (1, side // 600, side // 600)))
        command = [sys.executable, "-c", code, tiny_model, stack, tmp_path / f"out{side}"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks.append(int(result.stdout))
    assert peaks[1] < peaks[0] + 40, peaks  # MB; the larger stack takes 52 MB more, its map 22 MB


# Failures must not change an earlier map.


def make_earlier_map(folder: Path, model: Model) -> dict[str, bytes]:
    predict(model, write_stack(folder / "earlier.tif", noise(40, 40)), folder / "out")
    return contents(folder / "out")


@pytest.mark.slow
def test_truncated_raster_keeps_the_earlier_map(model: Model, tmp_path: Path) -> None:
    before = make_earlier_map(tmp_path, model)
    whole = write_stack(tmp_path / "whole.tif", noise(700, 700)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(SourceError, match=r"cut\.tif") as caught:
        predict(model, tmp_path / "cut.tif", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_interrupted_network_keeps_the_earlier_map(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_earlier_map(tmp_path, model)
    stack = write_stack(tmp_path / "s.tif", noise(90, 90))
    run_cores, passes = Model.run_cores, []

    def third_fails(self: Model, windows: list[np.ndarray], tiles: list[Tile]) -> list[np.ndarray]:
        passes.append(tiles)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return run_cores(self, windows, tiles)

    monkeypatch.setattr(Model, "run_cores", third_fails)
    with pytest.raises(KeyboardInterrupt):
        predict(model, stack, tmp_path / "out", MapOptions(tile=32))
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("limit", [10_000, 150_000, 600_000])
def test_full_disk_keeps_the_earlier_map(model: Model, tmp_path: Path, limit: int) -> None:
    before = make_earlier_map(tmp_path, model)
    stack = write_stack(tmp_path / "s.tif", noise(300, 300))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError) as caught:
            predict(model, stack, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_folder_that_cannot_be_created_is_rejected(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", noise(30, 30))
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file/below", Path("/proc/talud")):
        with pytest.raises(OutputError, match="cannot be written"):
            predict(model, stack, out)
    assert (tmp_path / "file").read_text() == "in the way"


def test_quicklook_is_a_png(mapped: tuple[Path, Path, Prediction]) -> None:
    _, out, _ = mapped
    with Image.open(out / "quicklook.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 760


def test_prediction_names_its_files(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", noise(30, 30))
    files = predict(model, stack, tmp_path / "map").files
    assert {path.name for path in files.values()} == {path.name for path in (tmp_path / "map").iterdir()}
    assert files["polygons"] == tmp_path / "map" / "landslides.gpkg"
    assert "folder" not in json.loads(files["record"].read_text())


def test_model_is_shown_on_one_line(model: Model) -> None:
    assert repr(model) == f"<Model {model.title}: red, green, blue at 12.5 m, {model.path}>"


def test_raster_in_degrees_is_rejected_with_a_hint(model: Model, tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, -76, 0, -1e-4, 6), 30, 30)
    stack = write_stack(tmp_path / "s.tif", noise(30, 30), grid=grid)
    with pytest.raises(MismatchError, match="talud map"):
        predict(model, stack, tmp_path / "map")


def test_memory_decides_the_tiles_and_is_recorded(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "stack.tif", noise(250, 300))
    small = predict(model, stack, tmp_path / "small", MapOptions(memory="14MB"))
    large = predict(model, stack, tmp_path / "large", MapOptions(memory="1GB"))
    assert small.memory <= 14_000_000 < large.memory
    assert small.tiles > large.tiles == 1
    assert small.arithmetic > 1.1 > large.arithmetic == 1
    record = json.loads((tmp_path / "small/prediction.json").read_text())
    assert (record["memory"], record["arithmetic"]) == (small.memory, small.arithmetic)
    for name in ("probability.tif", "landslides.tif"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes()


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ("1kB", r"the memory is 1.0KB, but tiles of \d+ pixels, .* use --memory \d+MB or more"),
        ("plenty", "the memory is plenty; it must be a size such as 4GB or 500MB"),
        ("-2GB", "the memory is -2GB; it must be a size such as 4GB or 500MB"),
        (0, "the memory is 0; it must be a size such as 4GB or 500MB"),
    ],
)
def test_unusable_memory_is_refused_in_one_line(model: Model, tmp_path: Path, memory: object, said: str) -> None:
    stack = write_stack(tmp_path / "stack.tif", noise(60, 70))
    with pytest.raises(ParamsError, match=said):
        predict(model, stack, tmp_path / "map", MapOptions(memory=memory))
