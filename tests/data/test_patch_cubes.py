"""Tests of patches with variables over time, on synthetic files in the layout of Sen12Landslides."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_bytes import cut, flipped
from patch_cubes import CLEAR, CLOUD, DAYS, NO_DATA, POST, PRE, over_time, synthetic_patch, write_cube
from talud.data import terrain
from talud.data.patch_contract import find_patches
from talud.data.patch_cubes import open_cube
from talud.data.patch_folder import PatchFolder
from talud.data.sar import lee_filter
from talud.engine.runtime import Model
from talud.errors import MismatchError, SourceError, TaludWarning
from talud.params import PatchData, StackOptions

SIDE = 16
RGB = ["red", "green", "blue"]


def found(folder: Path, options: StackOptions | None = None, **data: object) -> PatchFolder:
    return PatchFolder.find(folder, PatchData.model_validate({"images": "s2"} | data), "db", options)


def read_all(folder: Path, **data: object) -> None:
    patches = found(folder, **data)
    for pair in patches.pairs:
        patches.read(pair)


def refusal(folder: Path, **data: object) -> str:
    with pytest.raises(SourceError) as caught:
        read_all(folder, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(seed: int, low: int = 1, high: int = 3000) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (len(DAYS), SIDE, SIDE)).astype(np.int16)


def optical(classes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    mask = np.random.default_rng(9).random((SIDE, SIDE)) < 0.2
    bands = {"B04": noise(4), "B03": noise(3), "B02": noise(2), "MASK": over_time(mask.astype(np.uint8))}
    return bands if classes is None else bands | {"SCL": classes.astype(np.int16)}


@pytest.mark.parametrize("axes", ["txy", "tyx", "xyt"])
def test_axes_are_read_by_their_names(tmp_path: Path, axes: str) -> None:
    variables = optical()
    write_cube(tmp_path / "s2/italy_s2_7.nc", variables, axes)
    patches = found(tmp_path)
    (pair,) = patches.pairs
    image, mask = patches.read(pair)
    assert (pair.name, patches.bands.names, set(patches.bands.units)) == ("italy_7", tuple(RGB), {"reflectance"})
    expected = np.stack([variables[name][POST] for name in ("B04", "B03", "B02")]) / 1e4
    np.testing.assert_allclose(image, expected, rtol=1e-6)
    np.testing.assert_array_equal(mask, variables["MASK"][0])
    assert patches.bands.pixel_size == 10


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_reads_the_same_values_of_a_variable(tmp_path: Path) -> None:
    variables = optical()
    path = tmp_path / "s2/italy_s2_7.nc"
    write_cube(path, variables, "tyx")
    with rasterio.open(f"netcdf:{path}:B04") as raster:
        np.testing.assert_array_equal(raster.read(), variables["B04"])
        gdal = raster.read(POST + 1)
    patches = found(tmp_path)
    np.testing.assert_allclose(patches.read(patches.pairs[0])[0][0], gdal / 1e4, rtol=1e-6)


def test_rows_are_ordered_from_north(tmp_path: Path) -> None:
    variables = optical()
    path = tmp_path / "s2/italy_s2_7.nc"
    write_cube(path, {name: values[:, ::-1, ::-1] for name, values in variables.items()})
    with h5py.File(path, "r+") as file:
        for axis in "xy":
            file[axis][...] = file[axis][...][::-1]
    patches = found(tmp_path)
    np.testing.assert_allclose(patches.read(patches.pairs[0])[0][0], variables["B04"][POST] / 1e4, rtol=1e-6)


def test_first_clear_image_after_the_event_is_taken(tmp_path: Path) -> None:
    classes = np.full((len(DAYS), SIDE, SIDE), CLEAR)
    classes[POST, :4] = CLOUD  # 75 % clear
    variables = optical(classes)

    def read(classes: np.ndarray, bands: object = RGB, **attributes: object) -> np.ndarray:
        write_cube(tmp_path / "s2/italy_s2_7.nc", variables | {"SCL": classes.astype(np.int16)}, **attributes)
        patches = found(tmp_path, bands=bands)
        return patches.read(patches.pairs[0])[0][0]

    def image(time: int) -> np.ndarray:
        return (variables["B04"][time] / 1e4).astype(np.float32)

    np.testing.assert_array_equal(read(classes), image(POST + 1))
    classes[POST + 1, :6] = 255  # of unknown quality: clearer is the first
    np.testing.assert_array_equal(read(classes), image(POST))
    classes[POST, 3:5] = NO_DATA
    assert np.isnan(read(classes)[3:5]).all()
    np.testing.assert_array_equal(read(classes)[5:], image(POST)[5:])
    classes[...] = CLEAR
    np.testing.assert_array_equal(read(classes, event_date=None), image(POST))
    np.testing.assert_array_equal(read(classes, pre_post_dates=None), image(POST))
    np.testing.assert_array_equal(read(classes, event_date=DAYS[POST]), image(POST + 1))  # not of the day itself
    np.testing.assert_array_equal(read(classes, event_date="2023-05-16,2023-05-25"), image(POST + 1))
    np.testing.assert_array_equal(read(classes, bands=["red_pre"]), image(PRE))
    np.testing.assert_array_equal(read(classes, bands={"before": "B04"}), image(POST))


def test_patch_without_a_date_has_no_bands(tmp_path: Path) -> None:
    for number, stated in ((1, {}), (2, {"event_date": "None", "pre_post_dates": str({"pre": 0, "post": 0})})):
        write_cube(tmp_path / f"s2/italy_s2_{number}.nc", optical() | {"DEM": noise(1, 100)}, **stated)
    with pytest.warns(TaludWarning, match=r"an image before or after it: 1 patch of 2 \(italy_2\)"):
        patches = found(tmp_path, bands=[*RGB, "elevation"])
    dated, undated = (patches.read(pair)[0] for pair in patches.pairs)
    assert not np.isnan(dated[:3]).any()
    assert np.isnan(undated[:3]).all()
    assert not np.isnan(undated[3:]).any()


def test_sar_comes_from_the_file_of_the_same_patch(tmp_path: Path) -> None:
    variables = synthetic_patch(tmp_path, "italy_7", 3)
    bands = ["red", "vv_pre", "vh_post"]
    patches = found(tmp_path, sar="s1asc", bands=bands)
    image, _ = patches.read(patches.pairs[0])
    assert patches.bands.units == ("reflectance", "dB", "dB")
    np.testing.assert_allclose(image[1], variables["VV"][PRE], rtol=1e-5)
    np.testing.assert_allclose(image[2], variables["VH"][POST], rtol=1e-5)
    power = found(tmp_path, StackOptions(sar_unit="power"), sar="s1asc", bands=bands)
    linear = 10 ** (variables["VV"][PRE].astype(float) / 10)
    np.testing.assert_allclose(power.read(power.pairs[0])[0][1], linear, rtol=1e-5)
    smooth = found(tmp_path, StackOptions(sar_unit="power", lee_window=3), sar="s1asc", bands=bands)
    np.testing.assert_allclose(smooth.read(smooth.pairs[0])[0][1], lee_filter(linear, 3), rtol=1e-5)
    assert "sar" in patches.fingerprints
    assert "masks" not in patches.fingerprints
    assert len(patches.files) == 2
    with pytest.raises(SourceError, match="does not state the unit of its SAR bands; set sar_unit"):
        PatchFolder.find(tmp_path, PatchData.model_validate({"images": "s2", "sar": "s1asc", "bands": bands}))
    wrong = PatchFolder.find(
        tmp_path, PatchData.model_validate({"images": "s2", "sar": "s1asc", "bands": bands}), "power"
    )
    with pytest.raises(SourceError, match="which power cannot be; they look like dB"):
        wrong.read(wrong.pairs[0])
    other = tmp_path / "s1asc/italy_s1asc_7.nc"
    write_cube(other, {"VV": over_time(np.full((32, 32), -9.0)), "VH": over_time(np.full((32, 32), -9.0))}, size=20)
    assert "are not on one grid" in refusal(tmp_path, sar="s1asc", bands=bands)
    other.rename(tmp_path / "s1asc/italy_s1asc_8.nc")
    assert "1 of 1 patches have no file in s1asc, such as italy_7" in refusal(tmp_path, sar="s1asc", bands=bands)


def test_official_splits_decide_the_parts(tmp_path: Path) -> None:
    for number in (1, 2, 3, 10):
        write_cube(tmp_path / f"s2/italy_s2_{number}.nc", optical())
    rows = {"train": [10, 2], "val": [1], "test": [3]}
    splits = {
        part: [{"id": f"italy_{one}", "s2": f"s2/italy_s2_{one}.nc"} for one in ids] for part, ids in rows.items()
    }
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    expected = [("italy_2", "training"), ("italy_10", "training"), ("italy_1", "validation"), ("italy_3", "test")]
    patches = found(tmp_path, index="splits.json")
    assert [(pair.name, pair.part) for pair in patches.pairs] == expected
    assert patches.part_counts == (2, 1, 1)
    (tmp_path / "places.csv").write_text(
        "patch_id,split,inventory\nitaly_10,train,italy\nitaly_2,train,italy\nitaly_1,val,italy\nitaly_3,test,chile\n"
    )
    table = found(tmp_path, index="places.csv", split="split")
    assert [(pair.name, pair.part) for pair in table.pairs] == expected
    one = found(tmp_path, index="places.csv", where="inventory = 'chile'")
    assert [(pair.name, pair.part) for pair in one.pairs] == [("italy_3", None)]
    assert "has no column 'part'; it has patch_id, split" in refusal(tmp_path, index="places.csv", split="part")
    assert "has the part 'italy'; expected train, val or test" in refusal(
        tmp_path, index="places.csv", split="inventory"
    )

    def broken(content: object) -> str:
        (tmp_path / "splits.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return refusal(tmp_path, index="splits.json")

    assert "'italy_10' is in two parts of the split" in broken(splits | {"test": splits["train"]})
    assert "names patch 'chile_1', which is not among the 4 images" in broken({"train": [{"id": "chile_1"}]})
    assert "an entry of train has no id" in broken({"train": ["italy_1"]})
    assert "has the key 'italy'" in broken({"italy": []})
    assert "names no patch" in broken({"train": []})
    assert "is not an object" in broken([])
    assert "cannot be read as JSON" in broken("[" * 100_000)


def test_wrong_variables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s2/italy_s2_7.nc"
    write_cube(path, optical())
    assert "has no band nir" in refusal(tmp_path, bands=["red", "nir"])
    assert "has no data under 'B08'" in refusal(tmp_path, bands={"nir": "B08"})
    assert "patches.bands has 4 for red, but its variables have names" in refusal(tmp_path, bands={"red": 4})

    def changed(change, **written: object) -> str:
        write_cube(path, optical(), **written)
        with h5py.File(path, "r+") as file:
            change(file)
        return refusal(tmp_path)

    def replace(file: h5py.File, name: str, values: object, **options: object) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    nothing = lambda file: None  # noqa: E731
    assert "has the dimensions ?, ?, ?; expected time, x and y" in changed(lambda file: replace(file, "B04", noise(1)))
    assert "must be an array of numbers" in changed(lambda file: replace(file, "B04", [["a"]], dtype="S1"))
    assert "has 0 times; expected 1 to 1000" in changed(lambda file: replace(file, "time", np.zeros(0)))
    assert "has 2000 times" in changed(lambda file: replace(file, "time", np.arange(2000)))
    assert "time has the unit 'weeks'" in changed(lambda file: file["time"].attrs.modify("units", "weeks"))
    assert "its times are not in order" in changed(nothing, days=DAYS[::-1])
    assert "its times are not valid" in changed(lambda file: replace_time(file, np.full(4, 1e30)))
    assert "but the file has 4 times" in changed(nothing, pre_post_dates=str({"pre": 7, "post": 8}))
    assert "its attribute crs is '/etc/hosts'" in changed(nothing, crs="/etc/hosts")
    assert "CRS 'EPSG:99999' is not valid" in changed(nothing, crs="EPSG:99999")
    assert "has coordinates in degrees; set patches.pixel_size" in changed(nothing, crs="EPSG:4326")
    assert "coordinates x are not evenly spaced" in changed(lambda file: file["x"].__setitem__(3, 0.0))
    assert "coordinates y must be at least two different" in changed(lambda file: file["y"].__setitem__(..., np.nan))
    assert "its pixels are not squares" in changed(lambda file: file["x"].__setitem__(..., np.arange(SIDE)))
    assert "other sides than its coordinates" in changed(lambda file: replace_time(file, np.arange(3)))
    assert "has the value 7; a mask is 0 or 1" in changed(lambda file: file["MASK"].__setitem__((0, 0, 0), 7))


def replace_time(file: h5py.File, values: np.ndarray) -> None:
    """Replace the times that the variables are attached to, keeping their unit."""
    old = file["time"]
    attributes = {name: old.attrs[name] for name in ("units", "calendar")}
    for name in ("B04", "B03", "B02", "MASK"):
        file[name].dims[0].detach_scale(old)
    del file["time"]
    file["time"] = values
    file["time"].make_scale("time")
    file["time"].attrs.update(attributes)
    for name in ("B04", "B03", "B02", "MASK"):
        file[name].dims[0].attach_scale(file["time"])


def test_compressed_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s2/italy_s2_7.nc"
    write_cube(path, optical())
    with h5py.File(path, "r+") as file:
        del file["B04"]
        file.create_dataset("B04", (4, 50_000, 50_000), "i2", compression="gzip")
    assert path.stat().st_size < 100_000
    assert "more than a patch" in refusal(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["B04"]
        shape = (4, SIDE, SIDE)
        file.create_dataset(
            "B04", shape, "i2", chunks=(4, 20_000, 20_000), maxshape=(4, None, None), compression="gzip"
        )
    assert "more than a patch" in refusal(tmp_path)


def test_damaged_cubes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s2/italy_s2_7.nc"
    write_cube(path, optical())
    content, chance = path.read_bytes(), np.random.default_rng(1)
    for bad in (b"", b"x" * 100, *(damage(content, chance) for _ in range(40) for damage in (cut, flipped))):
        path.write_bytes(bad)
        try:
            patches = found(tmp_path)
            patches.read(patches.pairs[0])
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert path.name in str(error)  # noqa: PT017


def test_folder_is_read_in_the_order_of_a_contract(tmp_path: Path, tiny_model: Path) -> None:
    given = Model.load(tiny_model).contract
    names = ("slope", "vv_post", "green")
    bands = tuple(given.input.bands[0].model_copy(update={"name": name}) for name in names)
    stack = {"slope": "horn", "curvature": "total", "sar_unit": "db", "lee_window": "0"}
    contract = given.replace(bands=bands, stack=stack, pixel_size=10.0)
    variables = synthetic_patch(tmp_path, "italy_7", 3)
    folder = tmp_path / "labelled" / "images"
    write_cube(folder / "italy_s2_7.nc", {name: variables[name] for name in ("B03", "VV", "DEM", "MASK")})
    patches = find_patches(folder.parent, contract, None)
    image, mask = patches.read(patches.pairs[0])
    assert (patches.bands.names, patches.bands.units) == (names, ("degree", "dB", "reflectance"))
    inner = terrain.slope(variables["DEM"][0].astype(float), 10, 10, "horn")
    np.testing.assert_allclose(image[0, 1:-1, 1:-1], inner, rtol=1e-5)
    np.testing.assert_allclose(image[1], variables["VV"][POST], rtol=1e-5)
    np.testing.assert_allclose(image[2], variables["B03"][POST] / 1e4, rtol=1e-5)
    np.testing.assert_array_equal(mask, variables["MASK"][0])
    with pytest.raises(MismatchError, match=r"has pixels of 10 m, the model expects 12\.5 m; resample the patches"):
        find_patches(folder.parent, contract.replace(pixel_size=12.5), None)
    write_cube(folder / "italy_s2_7.nc", {name: variables[name] for name in ("B03", "VV", "MASK")})
    with pytest.raises(MismatchError, match="has no band slope; name its channel"):
        find_patches(folder.parent, contract, None)


moments = st.lists(st.integers(-40, 40), min_size=1, max_size=6).map(sorted)


@settings(max_examples=30)
@given(days=moments, event=st.integers(-40, 40), clear=st.lists(st.booleans(), min_size=6, max_size=6))
def test_chosen_images_are_on_both_sides_of_the_event(days: list[int], event: int, clear: list[bool]) -> None:
    zero = np.datetime64("2023-05-16")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.nc"
        classes = np.array([[[CLEAR if one else CLOUD] * 2] * 2 for one in clear[: len(days)]], np.int16)
        write_cube(
            path,
            {"SCL": classes},
            days=[str(zero + day) for day in days],
            event_date=str(zero + event),
            pre_post_dates=None,
        )
        with open_cube(path) as cube:
            chosen = {moment: cube.choose(moment) for moment in ("pre", "post")}
    before = [number for number, day in enumerate(days) if day < event]
    after = [number for number, day in enumerate(days) if day > event]
    for moment, numbers in (("pre", before[::-1]), ("post", after)):
        fit = [number for number in numbers if clear[number]] or numbers
        assert chosen[moment] == next(iter(fit), None)
