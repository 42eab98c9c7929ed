"""Tests of patch folders: pairing, reading and error messages."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.enums import ColorInterp

from hostile_bytes import cut, flipped
from talud.data.patch_folder import PatchFolder
from talud.data.patch_stack import build_patch_stack, rows_and_columns
from talud.errors import ParamsError, SourceError
from talud.params import Area, Params, PatchData
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
    assert (image.dtype, mask.dtype, folder.unit) == (np.float32, np.uint8, "DN")


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
    with pytest.raises(ParamsError, match="where filters the table of index"):
        Area.create(role="transfer", folder="data", patches={"where": "area = 'a'"})
    with pytest.raises(ParamsError, match="'slope' is not an optical band"):
        Area.create(role="transfer", folder="data", patches={"bands": {"slope": 13}})
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
