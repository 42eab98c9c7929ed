"""Tests of patch folders: pairing, reading and error messages."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from hostile_bytes import cut, flipped
from talud.bands import Group, groups_of
from talud.data.patch_folder import PatchFolder
from talud.data.patch_stack import build_patch_stack, rows_and_columns
from talud.data.stack_record import check_current_stack
from talud.errors import ParamsError, SourceError, StudyError
from talud.params import Area, Params, PatchData, StackOptions
from talud.project import Project

SIDE = 16


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def truth(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side)) < 0.2


def png_pair(folder: Path, name: str, seed: int, side: int = SIDE, landslide: int = 255) -> None:
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(folder / "images" / f"{name}.png")
    Image.fromarray((truth(seed, side) * landslide).astype(np.uint8)).save(folder / "masks" / f"{name}.png")


def read_all(folder: Path, data: PatchData) -> None:
    found = PatchFolder.find(folder, data)
    for pair in found.pairs:
        found.read(pair)


def refusal(folder: Path, **data: object) -> str:
    """Return the error message on a folder when all of it is read."""
    with pytest.raises(SourceError) as caught:
        read_all(folder, PatchData.model_validate(data))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_patch_names_are_sorted_by_number(tmp_path: Path) -> None:
    for seed, name in enumerate(("10", "9", "100", "2b", "2a")):
        png_pair(tmp_path, name, seed)
    assert [pair.name for pair in PatchFolder.find(tmp_path, PatchData()).pairs] == ["2a", "2b", "9", "10", "100"]


@pytest.mark.parametrize("landslide", [1, 255])
def test_pair_is_read_unchanged(tmp_path: Path, landslide: int) -> None:
    png_pair(tmp_path, "7", 3, landslide=landslide)
    folder = PatchFolder.find(tmp_path, PatchData(bands={"blue": 3, "red": 1}))
    image, mask = folder.read(folder.pairs[0])
    np.testing.assert_array_equal(image, np.moveaxis(pixels(3)[..., [2, 0]], -1, 0))
    np.testing.assert_array_equal(mask, truth(3))
    assert (image.dtype, mask.dtype, folder.bands.units) == (np.float32, np.uint8, ("DN", "DN"))


def test_transparent_pixels_are_invalid_and_unknown(tmp_path: Path) -> None:
    png_pair(tmp_path, "7", 3)
    alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
    alpha[:4] = 0
    Image.fromarray(np.concatenate([pixels(3), alpha], axis=2)).save(tmp_path / "images" / "7.png")
    grey = np.repeat((truth(3) * 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)
    Image.fromarray(np.concatenate([grey, alpha], axis=2)).save(tmp_path / "masks" / "7.png")
    folder = PatchFolder.find(tmp_path, PatchData())
    image, mask = folder.read(folder.pairs[0])
    assert np.isnan(image[:, :4]).all()
    assert not np.isnan(image[:, 4:]).any()
    assert (mask[:4] == 255).all()
    np.testing.assert_array_equal(mask[4:], truth(3)[4:])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_alpha_band_masks_patches_of_five_bands(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(1, 3000, (5, SIDE, SIDE)).astype(np.uint16)
    values[4] = 65_535
    values[4, :, :5] = 0
    (tmp_path / "images").mkdir()
    with rasterio.open(
        tmp_path / "images/1.tif", "w", driver="GTiff", dtype="uint16", count=5, height=SIDE, width=SIDE
    ) as raster:
        raster.write(values)
    with rasterio.open(tmp_path / "images/1.tif", "r+") as raster:
        raster.colorinterp = (*(ColorInterp.undefined,) * 4, ColorInterp.alpha)
    folder = PatchFolder.find(tmp_path, PatchData(bands={"red": 1, "green": 2, "blue": 3, "nir": 4}))
    image, _ = folder.read(folder.pairs[0])
    assert np.isnan(image[:, :, :5]).all()
    np.testing.assert_array_equal(image[:, :, 5:], values[:4, :, 5:])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiff_pairs_keep_values_beyond_8_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(2000, 500, (4, SIDE, SIDE)).astype(np.float32)
    for place, array in (("images", values), ("masks", truth(1)[np.newaxis].astype(np.float32))):
        (tmp_path / place).mkdir()
        with rasterio.open(
            tmp_path / place / "scene-4.tif", "w", driver="GTiff", dtype="float32", count=len(array), height=SIDE,
            width=SIDE, nodata=-9,
        ) as raster:  # fmt: skip
            raster.write(array)
    folder = PatchFolder.find(tmp_path, PatchData(bands={"near_infrared": 4}))
    image, mask = folder.read(folder.pairs[0])
    np.testing.assert_array_equal(image, values[3:])
    np.testing.assert_array_equal(mask, truth(1))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_bands_of_patches_are_found_by_description(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(1, 3000, (3, SIDE, SIDE)).astype(np.uint16)
    (tmp_path / "images").mkdir()

    def write(name: str, *descriptions: str) -> None:
        with rasterio.open(
            tmp_path / "images" / name, "w", driver="GTiff", dtype="uint16", count=3, height=SIDE, width=SIDE
        ) as raster:
            raster.write(values)
            raster.descriptions = descriptions

    write("1.tif", "B02", "B03", "B04")
    folder = PatchFolder.find(tmp_path, PatchData())
    assert folder.data.bands == {"red": 3, "green": 2, "blue": 1}
    np.testing.assert_array_equal(folder.read(folder.pairs[0])[0], values[::-1])
    explicit = PatchFolder.find(tmp_path, PatchData(bands={"red": 1, "green": 2, "blue": 3}))
    np.testing.assert_array_equal(explicit.read(explicit.pairs[0])[0], values)
    write("2.tif", "red", "green", "blue")
    assert "2.tif: describes its bands as red, green, blue, in another order than 1.tif" in refusal(tmp_path)
    write("2.tif", "nir", "red", "green")
    assert "has no band blue among its bands, described as nir, red, green" in refusal(tmp_path)


def hdf5_pair(folder: Path, number: int, seed: int) -> np.ndarray:
    """Write a synthetic pair in the layout of Landslide4Sense.

    It has 14 channels as the last axis, float64. Returns the image.
    """
    image = np.random.default_rng(seed).normal(1, 0.3, (SIDE, SIDE, 14))
    for place in ("img", "mask"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "img" / f"image_{number}.h5", "w") as file:
        file["img"] = image
    with h5py.File(folder / "mask" / f"mask_{number}.h5", "w") as file:
        file["mask"] = truth(seed).astype(np.uint8)
    return image


HDF5 = {"images": "img", "masks": "mask/*.h5", "bands": {"red": 4, "green": 3, "blue": 2}}


def test_hdf5_pairs_of_landslide4sense_layout_are_read(tmp_path: Path) -> None:
    images = {number: hdf5_pair(tmp_path, number, number) for number in (12, 3)}
    folder = PatchFolder.find(tmp_path, PatchData.model_validate(HDF5))
    assert [pair.name for pair in folder.pairs] == ["3", "12"]
    for pair in folder.pairs:
        image, mask = folder.read(pair)
        np.testing.assert_array_equal(image, np.moveaxis(images[int(pair.name)], -1, 0)[[3, 2, 1]].astype(np.float32))
        np.testing.assert_array_equal(mask, truth(int(pair.name)))


@pytest.mark.real
def test_real_landslide4sense_files_are_read(real_data: Path) -> None:
    data = PatchData(images="image_*.h5", bands={"red": 4, "green": 3, "blue": 2})
    folder = PatchFolder.find(real_data / "landslide4sense_h5", data)
    assert [(pair.name, pair.mask) for pair in folder.pairs] == [("31", None), ("37", None), ("39", None)]
    for pair in folder.pairs:
        image, mask = folder.read(pair)
        with h5py.File(pair.image) as file:
            np.testing.assert_array_equal(image[0], file["img"][:, :, 3].astype(np.float32))
        assert (mask == 255).all()
        assert image.shape == (3, 128, 128)


def test_index_selects_patches(tmp_path: Path) -> None:
    for seed, name in enumerate(("0001", "0002", "0010", "0011")):
        png_pair(tmp_path, name, seed)
    (tmp_path / "areas.csv").write_text("patch,area\n0011,a\n0002,a\n0001,b\n")
    chosen = PatchFolder.find(tmp_path, PatchData(index="areas.csv", where="area = 'a'"))
    assert [pair.name for pair in chosen.pairs] == ["0002", "0011"]
    assert "area = 'c'" in refusal(tmp_path, index="areas.csv", where="area = 'c'")
    assert "areas.csv" in refusal(tmp_path, index="areas.csv", where="no such column = 1")
    (tmp_path / "areas.csv").write_text("patch,area\n0012,a\n")
    assert "names patch '0012', which is not among the 4 images" in refusal(tmp_path, index="areas.csv")
    assert "none.csv" in refusal(tmp_path, index="none.csv")


def test_inconsistent_patch_folder_is_refused(tmp_path: Path) -> None:
    png_pair(tmp_path, "1", 1)
    assert "expected" not in refusal(tmp_path / "nowhere")
    assert "has no image" in refusal(tmp_path, images="elsewhere")
    assert "neither a folder in it nor a pattern" in refusal(tmp_path, images="/images/*.png")
    assert "red has the number 4" in refusal(tmp_path, bands={"red": 4})
    png_pair(tmp_path, "2", 2, side=SIDE + 1)
    assert "2.png: has 17 pixels a side, but 1.png has 16" in refusal(tmp_path)
    Image.fromarray(pixels(2)[:9]).save(tmp_path / "images" / "2.png")
    assert "2.png: has 16 columns × 9 rows" in refusal(tmp_path)
    Image.fromarray(pixels(2)).save(tmp_path / "images" / "2.png")
    assert "masks/2.png: has 17 columns × 17 rows, but the patches have 16 × 16" in refusal(tmp_path)


def test_invalid_mask_is_refused(tmp_path: Path) -> None:
    png_pair(tmp_path, "1", 1)
    mask = tmp_path / "masks" / "1.png"
    Image.fromarray(pixels(1)).save(mask)
    assert "coloured picture" in refusal(tmp_path)
    Image.fromarray(np.full((SIDE, SIDE), 7, np.uint8)).save(mask)
    assert "has the value 7; a mask is 0 or 1, or 0 or 255" in refusal(tmp_path)
    Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 2 * 254 + 1).save(mask)
    assert "has the values 0, 1 and 255" in refusal(tmp_path)
    mask.rename(tmp_path / "masks" / "one.png")
    assert "no mask has the name of an image (1.png, one.png)" in refusal(tmp_path)


def test_duplicate_patch_names_are_refused(tmp_path: Path) -> None:
    png_pair(tmp_path, "1", 1)
    png_pair(tmp_path, "image_1", 1)
    assert "both are named as patch 1" in refusal(tmp_path)


def test_patch_without_a_mask_is_unknown(tmp_path: Path) -> None:
    for name in ("1", "2"):
        png_pair(tmp_path, name, 1)
    (tmp_path / "masks" / "2.png").unlink()
    folder = PatchFolder.find(tmp_path, PatchData())
    assert folder.labelled_count == 1
    assert (folder.read(folder.pairs[1])[1] == 255).all()


def test_hostile_hdf5_is_refused(tmp_path: Path) -> None:
    hdf5_pair(tmp_path, 1, 1)
    path = tmp_path / "img" / "image_1.h5"
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file["img"] = np.zeros((SIDE, SIDE, 14))

    def write(fill) -> str:
        with h5py.File(path, "w") as file:
            fill(file)
        return refusal(tmp_path, **HDF5)

    assert "it has: image" in write(lambda file: file.create_dataset("image", data=np.zeros((SIDE, SIDE, 14))))
    assert "has no data under 'img'" in write(lambda file: file.create_group("img"))
    assert "3 dimensions" in write(lambda file: file.create_dataset("img", data=np.zeros((SIDE, SIDE))))
    assert "array of numbers" in write(lambda file: file.create_dataset("img", data=np.full((2, 2, 2), "x", "S1")))
    assert "more than a patch" in write(lambda file: file.create_dataset("img", (2000, 2000, 2000), "f8", chunks=True))
    link = h5py.ExternalLink(str(outside), "img")
    assert "has no data under 'img'" in write(lambda file: file.__setitem__("img", link))


@pytest.mark.parametrize("suffix", ["h5", "png", "tif"])
def test_damaged_patch_files_are_refused(tmp_path: Path, suffix: str) -> None:
    hdf5_pair(tmp_path, 1, 1)
    Image.fromarray(pixels(1)).save(tmp_path / "whole.png")
    Image.fromarray(pixels(1)).save(tmp_path / "whole.tif")
    whole = tmp_path / "img" / "image_1.h5" if suffix == "h5" else tmp_path / f"whole.{suffix}"
    content = whole.read_bytes()
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / f"1.{suffix}"
    chance = np.random.default_rng(1)
    for bad in (b"", b"x" * 100, *(damage(content, chance) for _ in range(30) for damage in (cut, flipped))):
        path.write_bytes(bad)
        try:
            folder = PatchFolder.find(tmp_path, PatchData())
            folder.read(folder.pairs[0])
        except SourceError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert path.name in str(error)  # noqa: PT017


@given(st.integers(1, 5000))
def test_patch_layout_has_few_empty_cells(count: int) -> None:
    rows, columns = rows_and_columns(count)
    assert (rows - 1) * columns < count <= rows * columns
    side = np.sqrt(count)
    square = int(np.ceil(side))
    assert rows * columns <= -(-count // square) * square
    # At most twice as wide as high, or as high as wide, before the number of columns is rounded.
    assert side / np.sqrt(2) - 1 < columns < side * np.sqrt(2) + 1


def params(**area: object) -> Params:
    return Params.model_validate(
        {
            "seed": 1,
            "areas": {"there": {"role": "training", "folder": "data", **area}},
            "band_sets": {"3band": ["red", "green", "blue"]},
            "stack": {},
            "split": {"block": 16, "patch": 16},
            "training": {},
            "search": "one",
            "searches": {"one": {"filters": [2], "learning_rate": [1], "batch_size": [1], "epochs": 1}},
        }
    )


def test_params_refuse_patches_together_with_rasters() -> None:
    with pytest.raises(ParamsError, match="an area with patches cannot have crs, bounds, which apply to rasters"):
        Area.create(role="transfer", folder="data", patches={}, crs="EPSG:32618", bounds=(0, 0, 1, 1))
    with pytest.raises(ParamsError, match="where refers to the table of index"):
        Area.create(role="transfer", folder="data", patches={"where": "area = 'a'"})
    with pytest.raises(ParamsError, match="'cloud' is a mask, which patches do not have"):
        Area.create(role="transfer", folder="data", patches={"bands": {"cloud": 13}})
    with pytest.raises(ParamsError, match="lists 'red' twice"):
        Area.create(role="transfer", folder="data", patches={"bands": ["red", "red"]})
    with pytest.raises(ParamsError, match=r"split refers to a table, but splits\.json is not one"):
        Area.create(role="transfer", folder="data", patches={"index": "splits.json", "split": "part"})
    again = Params.model_validate_json(params(patches={}).model_dump_json())
    assert again == params(patches={})


def test_patch_area_must_meet_its_role_and_band_sets(tmp_path: Path) -> None:
    png_pair(tmp_path / "data", "1", 1)
    with pytest.raises(SourceError, match="band set '3band' needs green"):
        build_patch_stack(Project(tmp_path, params(patches={"bands": {"red": 1, "blue": 3}})), "there")
    (tmp_path / "data" / "masks" / "1.png").unlink()
    with pytest.raises(SourceError, match="contain no landslide"):
        build_patch_stack(Project(tmp_path, params(patches={})), "there")
    assert not (tmp_path / "stacks" / "there.tif").exists()
    record = build_patch_stack(Project(tmp_path, params(patches={}, role="transfer")), "there")
    assert (record.landslide_pixels, record.unlabelled_patches, record.patches) == (None, 1, ("1",))


def geotiff(path: Path, bands: dict[str, np.ndarray], crs: str | None = "EPSG:32632", size: float = 3.0) -> None:
    """Write a GeoTIFF patch with described bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.stack(list(bands.values())).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", dtype="float32", count=len(values), height=SIDE, width=SIDE, crs=crs,
        transform=Affine(size, 0, 500_000, 0, -size, 4_000_000),
    ) as raster:  # fmt: skip
        raster.write(values)
        raster.descriptions = list(bands)


def all_bands(seed: int) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    ground = 900 + 0.5 * 3.0 * np.mgrid[:SIDE, :SIDE][1]
    optical = {name: chance.uniform(1, 2000, (SIDE, SIDE)) for name in ("blue", "green", "red", "nir")}
    return optical | {"VV pre": chance.normal(-9, 1, (SIDE, SIDE)), "dem": ground}


def test_geotiff_patches_have_terrain_sar_and_pixel_size(tmp_path: Path) -> None:
    geotiff(tmp_path / "images/1.tif", all_bands(1))
    geotiff(tmp_path / "images/2.tif", all_bands(2), crs="EPSG:32633")  # patches may be in several zones
    data = PatchData(bands=["red", "nir", "elevation", "vv_pre"])
    folder = PatchFolder.find(tmp_path, data, "db", StackOptions(sar_unit="amplitude"))
    assert folder.bands.names == ("red", "nir", "elevation", "vv_pre", "slope", "curvature")
    assert folder.bands.units == ("DN", "DN", "m", "amplitude", "degree", "1/100m")
    assert (folder.bands.pixel_size, folder.data.pixel_size) == (3.0, 3.0)
    assert folder.bands.processing_tags["TALUD_SAR_UNIT"] == "amplitude"
    image, _ = folder.read(folder.pairs[1])
    written = all_bands(2)
    np.testing.assert_allclose(image[1], written["nir"], rtol=1e-6)
    np.testing.assert_allclose(image[3], 10 ** (written["VV pre"] / 20), rtol=1e-5)
    np.testing.assert_allclose(image[4], np.degrees(np.arctan(0.5)), rtol=1e-4)
    computed = PatchFolder.find(tmp_path, PatchData(bands=["red", "slope"]))
    np.testing.assert_array_equal(computed.read(computed.pairs[1])[0], image[[0, 4]])
    numbered = PatchFolder.find(tmp_path, PatchData(bands={"elevation": 6}))
    np.testing.assert_array_equal(numbered.read(numbered.pairs[1])[0], image[[2, 4, 5]])


def test_invalid_terrain_leaves_other_groups_valid(tmp_path: Path) -> None:
    bands = all_bands(1)
    bands["dem"][4, 4] = -32_768
    bands["red"][0, 0] = np.nan
    geotiff(tmp_path / "images/1.tif", bands)
    folder = PatchFolder.find(tmp_path, PatchData(bands=["red", "green", "elevation"]))
    holes = np.isnan(folder.read(folder.pairs[0])[0]).sum(axis=(1, 2))
    np.testing.assert_array_equal(holes, [1, 1, 9, 9, 9])


def test_georeferenced_patches_must_agree(tmp_path: Path) -> None:
    first, second = tmp_path / "images/1.tif", tmp_path / "images/2.tif"
    geotiff(first, all_bands(1))
    geotiff(second, all_bands(2), size=10.0)
    assert "2.tif: has pixels of 10 m, but 1.tif has pixels of 3 m" in refusal(tmp_path)
    geotiff(second, all_bands(2), crs=None)
    assert "2.tif: has no projected CRS, but 1.tif has pixels of 3 m" in refusal(tmp_path)
    second.unlink()
    assert "has pixels of 3 m, but pixel_size is 10" in refusal(tmp_path, pixel_size=10)
    assert PatchFolder.find(tmp_path, PatchData(pixel_size=3)).bands.pixel_size == 3
    geotiff(first, all_bands(1), crs="EPSG:4326", size=1e-4)
    assert "has coordinates in degrees; set patches.pixel_size" in refusal(tmp_path)
    assert PatchFolder.find(tmp_path, PatchData(pixel_size=11)).bands.pixel_size == 11
    geotiff(first, all_bands(1), crs="EPSG:2263")  # in feet
    assert PatchFolder.find(tmp_path, PatchData()).bands.pixel_size == pytest.approx(3 * 0.3048, rel=1e-4)


def test_wrong_units_of_patch_bands_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images/1.tif"
    geotiff(path, all_bands(1) | {"slope": np.full((SIDE, SIDE), 250.0)})
    assert "slope has values from 250 to 250, expected 0 to 90 degree" in refusal(tmp_path, bands=["slope"])
    assert "does not state the unit of its SAR bands" in refusal(tmp_path, bands=["vv_pre"])
    assert "has no band vv_post; name its channel" in refusal(tmp_path, bands=["vv_post"])
    assert "patches.bands has 'B04' for red, but its channels have numbers" in refusal(tmp_path, bands={"red": "B04"})
    with rasterio.open(path, "r+") as raster:
        raster.units = ("", "", "", "", "dB", "ft", "")
    assert "elevation in 'ft'; convert it to metres" in refusal(tmp_path, bands=["elevation"])
    stated = PatchFolder.find(tmp_path, PatchData(bands=["vv_pre"]))
    np.testing.assert_allclose(stated.read(stated.pairs[0])[0][0], all_bands(1)["VV pre"], rtol=1e-5)
    wrong = PatchFolder.find(tmp_path, PatchData(bands=["vv_pre"]), "power")
    with pytest.raises(SourceError, match="states dB for vv_pre"):
        wrong.read(wrong.pairs[0])


def test_landslide4sense_channels_have_their_own_names(tmp_path: Path) -> None:
    image = np.moveaxis(hdf5_pair(tmp_path, 1, 1), -1, 0).astype(np.float32)
    places = {"images": "img", "masks": "mask"}

    def read(**data: object) -> tuple[PatchFolder, np.ndarray]:
        folder = PatchFolder.find(tmp_path, PatchData.model_validate(places | data))
        return folder, folder.read(folder.pairs[0])[0]

    np.testing.assert_array_equal(read()[1], image[[3, 2, 1]])
    folder, values = read(bands=["nir", "slope_rescaled", "elevation_rescaled"])
    np.testing.assert_array_equal(values, image[[7, 12, 13]])
    assert folder.bands.units == ("1", "1", "1")
    assert groups_of(folder.bands.names) == (Group.OPTICAL, Group.TERRAIN)
    assert "name it slope_rescaled instead of slope" in refusal(tmp_path, **places, bands={"slope": 13})
    assert "name it elevation_rescaled instead of elevation" in refusal(tmp_path, **places, bands={"elevation": 14})
    assert "has no band slope" in refusal(tmp_path, **places, bands=["slope"])


@pytest.mark.real
def test_real_landslide4sense_channels_are_named(real_data: Path) -> None:
    data = PatchData(images="image_*.h5", bands=["red", "swir2", "slope_rescaled"])
    folder = PatchFolder.find(real_data / "landslide4sense_h5", data)
    image, _ = folder.read(folder.pairs[0])
    with h5py.File(folder.pairs[0].image) as file:
        np.testing.assert_array_equal(image, np.moveaxis(file["img"][..., [3, 11, 12]], -1, 0).astype(np.float32))


def test_records_of_older_patch_stacks_stay_current(tmp_path: Path) -> None:
    png_pair(tmp_path / "data", "1", 1)
    project = Project(tmp_path, params(patches={}))
    record = build_patch_stack(project, "there")
    assert record.settings is not None
    assert record.settings["patches"].keys() == {"images", "masks", "index", "where", "bands", "pixel_size"}
    assert "slope" not in record.settings
    changed = project.params.model_copy(update={"stack": StackOptions(slope="horn")})
    check_current_stack(Project(tmp_path, changed), "there")


def test_patches_with_terrain_and_sar_are_resampled(tmp_path: Path) -> None:
    written = all_bands(1)
    written["VV pre"][...] = np.where(np.mgrid[:SIDE, :SIDE].sum(axis=0) % 2, -20, -10)
    geotiff(tmp_path / "data/images/1.tif", written, size=5.0)
    area = {"patches": {"bands": ["red", "green", "blue", "elevation", "vv_pre"]}, "sar_unit": "db", "role": "transfer"}
    stack_options = StackOptions(pixel_sizes="resample", resolution=10)
    project = Project(tmp_path, params(**area).model_copy(update={"stack": stack_options}))
    build_patch_stack(project, "there")
    with rasterio.open(project.stack("there")) as stack:
        values = dict(zip(stack.descriptions, stack.read()[:, : SIDE // 2, : SIDE // 2], strict=True))
        assert (stack.transform.a, stack.units[4]) == (10, "dB")
    np.testing.assert_allclose(values["vv_pre"], 10 * np.log10((0.1 + 0.01) / 2), rtol=1e-5)  # the mean of power
    coarse = written["red"].reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(values["red"], coarse, rtol=1e-4)
    np.testing.assert_allclose(values["slope"], np.degrees(np.arctan(0.5 * 3 / 5)), rtol=1e-4)
    check_current_stack(project, "there")


def test_patch_stack_with_terrain_depends_on_its_options(tmp_path: Path) -> None:
    geotiff(tmp_path / "data/images/1.tif", all_bands(1))
    area = {"patches": {"bands": ["red", "green", "blue", "elevation", "vv_pre"]}, "sar_unit": "db", "role": "transfer"}
    project = Project(tmp_path, params(**area))
    build_patch_stack(project, "there")
    with rasterio.open(project.stack("there")) as stack:
        assert stack.descriptions == ("red", "green", "blue", "elevation", "vv_pre", "slope", "curvature")
        assert stack.units == ("DN", "DN", "DN", "m", "dB", "degree", "1/100m")
        assert stack.tags()["TALUD_SLOPE"] == "zevenbergen_thorne"
        assert stack.transform.a == 3
    check_current_stack(project, "there")
    changed = project.params.model_copy(update={"stack": StackOptions(slope="horn")})
    with pytest.raises(StudyError, match=r"was made with slope zevenbergen_thorne, but params\.yaml states horn"):
        check_current_stack(Project(tmp_path, changed), "there")


@pytest.mark.real
def test_slope_of_a_patch_is_that_of_saga(tmp_path: Path, real_data: Path) -> None:
    with rasterio.open(real_data / "ecuador" / "ta.tif") as raster:
        names = list(raster.descriptions)
        window = Window(100, 100, 64, 64)
        elevation, saga = (raster.read(names.index(name) + 1, window=window) for name in ("elev", "slope"))
        (tmp_path / "images").mkdir()
        profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": 64, "width": 64, "crs": raster.crs}
        transform = raster.window_transform(window)
    with rasterio.open(tmp_path / "images/1.tif", "w", transform=transform, **profile) as patch:
        patch.write(elevation, 1)
        patch.set_band_description(1, "elevation")
    folder = PatchFolder.find(tmp_path, PatchData(bands=["elevation"]))
    slope = folder.read(folder.pairs[0])[0][1]
    assert folder.bands.pixel_size == 10
    np.testing.assert_allclose(slope[1:-1, 1:-1], saga[1:-1, 1:-1], atol=1e-3)
    border = np.abs(slope - saga)[[0, -1]]  # without the surroundings that SAGA had
    assert border.mean() < 5
