"""Tests of masks in the formats of common tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from source_files import CORNER, UTM, write_project, write_raster
from talud.data.masks import read_classes
from talud.data.patch_stack import build_patch_stack
from talud.data.patches import split_blocks
from talud.data.stack import build_stack as build_area
from talud.errors import SourceError, StudyError, TaludWarning
from talud.params import SplitOptions

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
assert NotGeoreferencedWarning

SIDE = 16
TRUTH = np.random.default_rng(3).random((SIDE, SIDE)) < 0.3
ONES = TRUTH.astype(np.uint8)
GREYS = [level for level in range(256) for _ in range(3)]


def palette(path: Path, numbers: np.ndarray, *colours: int, **options: object) -> None:
    image = Image.fromarray(numbers.astype(np.uint8), "P")
    image.putpalette(list(colours))
    image.save(path, **options)


def tiff(path: Path, values: np.ndarray, colours: dict[int, tuple[int, ...]] | None = None, **profile: object) -> None:
    bands = values if values.ndim == 3 else values[np.newaxis]
    shape = {"count": len(bands), "height": SIDE, "width": SIDE, "dtype": bands.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **shape, **profile) as raster:
        raster.write(bands)
        if colours:
            raster.write_colormap(1, colours)


def grey(factor: int, dtype: str = "uint8") -> np.ndarray:
    return (TRUTH * factor).astype(dtype)


def pictured(path: Path, red: int, green: int, blue: int) -> None:
    Image.fromarray(TRUTH[..., np.newaxis] * np.array([red, green, blue], np.uint8)).save(path)


READ: dict[str, tuple[str, Callable[[Path], None]]] = {
    "palette black, white": ("png", lambda path: palette(path, ONES, 0, 0, 0, 255, 255, 255)),
    "palette white, black": ("png", lambda path: palette(path, 1 - ONES, 255, 255, 255, 0, 0, 0)),
    "palette white, black in TIFF": ("tif", lambda path: palette(path, 1 - ONES, 255, 255, 255, 0, 0, 0)),
    "palette black, maroon": ("png", lambda path: palette(path, ONES, 0, 0, 0, 128, 0, 0)),
    "palette red, black": ("png", lambda path: palette(path, 1 - ONES, 255, 0, 0, 0, 0, 0)),
    "palette of all greys, 0 and 1": ("png", lambda path: palette(path, ONES, *GREYS)),
    "palette of all greys, 0 and 255": ("png", lambda path: palette(path, ONES * 255, *GREYS)),
    "colours of talud's own masks": (
        "tif", lambda path: tiff(path, ONES, {0: (224, 224, 224, 255), 1: (204, 51, 17, 255), 255: (0, 0, 0, 0)})
    ),
    "one bit": ("png", lambda path: Image.fromarray(TRUTH).save(path)),
    "one bit in TIFF": ("tif", lambda path: Image.fromarray(TRUTH).save(path)),
    "one bit, 0 is white": ("tif", lambda path: tiff(path, 1 - ONES, nbits=1, photometric="MINISWHITE")),
    "eight bits, 0 is white": ("tif", lambda path: tiff(path, 255 - grey(255), photometric="MINISWHITE")),
    "sixteen bits, white": ("png", lambda path: Image.fromarray(grey(65_535, "uint16")).save(path)),
    "sixteen bits, 1": ("png", lambda path: Image.fromarray(grey(1, "uint16")).save(path)),
    "sixteen bits, 255": ("tif", lambda path: tiff(path, grey(255, "uint16"))),
    "floats": ("tif", lambda path: tiff(path, grey(1, "float32"))),
    "RGB": ("png", lambda path: pictured(path, 255, 255, 255)),
    "RGB, red on black": ("png", lambda path: pictured(path, 255, 0, 0)),
    "RGB, 1": ("tif", lambda path: tiff(path, np.stack([ONES] * 3), photometric="RGB")),
    "grey and alpha": (
        "png", lambda path: Image.fromarray(np.stack([grey(255), np.full_like(ONES, 255)], axis=-1), "LA").save(path)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_bright_pixels_are_landslides_in_any_mask_format(tmp_path: Path, case: str) -> None:
    suffix, save = READ[case]
    path = tmp_path / f"mask.{suffix}"
    save(path)
    np.testing.assert_array_equal(read_classes(path), TRUTH)


def test_transparent_entry_of_a_palette_is_unknown(tmp_path: Path) -> None:
    three = ONES.copy()
    three[0] = 2
    palette(tmp_path / "a.png", three, 0, 0, 0, 255, 255, 255, 0, 0, 255, transparency=bytes([255, 255, 0]))
    expected = ONES.copy()
    expected[0] = 255
    np.testing.assert_array_equal(read_classes(tmp_path / "a.png"), expected)


UNCLEAR: dict[str, tuple[str, Callable[[Path], None]]] = {
    "palette green, red": ("png", lambda path: palette(path, ONES, 0, 128, 0, 255, 0, 0)),
    "palette white, red": ("png", lambda path: palette(path, ONES, 255, 255, 255, 255, 0, 0)),
    "palette of three": ("png", lambda path: palette(path, ONES + 2 * ONES.T, *(0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 9))),
    "RGB, green and red": ("png", lambda path: Image.fromarray(
        np.where(TRUTH[..., np.newaxis], np.array([255, 0, 0], np.uint8), np.array([0, 255, 0], np.uint8))).save(path)),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCLEAR)
def test_mask_of_several_colours_is_refused(tmp_path: Path, case: str) -> None:
    suffix, save = UNCLEAR[case]
    path = tmp_path / f"mask.{suffix}"
    save(path)
    with pytest.raises(SourceError, match=r"mask\.png: is a coloured picture .*save it in grey"):
        read_classes(path)


def patch_folder(root: Path, role: str, masks: list[np.ndarray], nodata: int | None) -> Path:
    for number, mask in enumerate(masks):
        image = np.random.default_rng(number).integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
        write_raster(root / f"data/images/{number}.tif", image)
        write_raster(root / f"data/masks/{number}.tif", mask, nodata=nodata)
    write_project(root, {"there": {"role": role, "folder": "data", "patches": {}}})
    return root


def test_masks_with_nodata_0_are_refused_for_training(tmp_path: Path) -> None:
    from talud.project import Project

    patch_folder(tmp_path, "training", [ONES, ONES.T], nodata=0)
    with pytest.raises(SourceError, match=r"masks of area 'there': no pixel is known to be background.*-unsetnodata"):
        build_patch_stack(Project.find(tmp_path), "there")
    assert not (tmp_path / "stacks").exists() or not list((tmp_path / "stacks").rglob("*.*"))
    patch_folder(tmp_path, "transfer", [ONES, ONES.T], nodata=0)
    with pytest.warns(TaludWarning, match="no pixel is known to be background"):
        build_patch_stack(Project.find(tmp_path), "there")
    patch_folder(tmp_path, "transfer", [0 * ONES], nodata=None)
    for number in (1,):
        (tmp_path / f"data/images/{number}.tif").unlink()
        (tmp_path / f"data/masks/{number}.tif").unlink()
    with pytest.warns(TaludWarning, match="no pixel is known to be landslide"):
        build_patch_stack(Project.find(tmp_path), "there")
    patch_folder(tmp_path, "training", [ONES], nodata=255)
    assert build_patch_stack(Project.find(tmp_path), "there").landslide_pixels == TRUTH.sum()


def test_boundary_without_background_is_refused(tmp_path: Path) -> None:
    import geopandas
    import shapely

    folder = tmp_path / "data"
    write_raster(folder / "optical.tif", np.random.default_rng(0).integers(30, 220, (3, 64, 64)).astype(np.uint8))
    square = shapely.box(CORNER[0] + 100, CORNER[1] - 300, CORNER[0] + 300, CORNER[1] - 100)
    for name in ("inventory", "boundary"):
        geopandas.GeoDataFrame(geometry=[square], crs=UTM).to_file(folder / f"{name}.gpkg")
    project = write_project(tmp_path, {"here": {"role": "training", "folder": "data"}})
    with pytest.raises(SourceError, match="mask of area 'here': no pixel is known to be background"):
        build_area(project, "here")


def test_split_refuses_a_mask_without_background(tmp_path: Path) -> None:
    mask = np.full((64, 64), 255, np.uint8)
    mask[::3] = 1
    path = write_raster(tmp_path / "mask.tif", mask, nodata=255)
    with pytest.raises(StudyError, match="no pixel is known to be background"):
        split_blocks(path, SplitOptions(block=16, patch=16, stride=16), seed=1)
