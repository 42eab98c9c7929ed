from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rio_cogeo import cog_validate

from talud.errors import OutputError, SourceError
from talud.files import atomic_replace
from talud.grid import Grid
from talud.process import stderr_suppressed
from talud.raster import Layout, open_raster, write_cog

GRID = Grid(CRS.from_epsg(32618), Affine(12.5, 0, 4e5, 0, -12.5, 6e5), 700, 1100)
LAYOUT = Layout("float32", float("nan"), ["slope", "red"], ["degree", "1"], {"TALUD_AREA": "here"})


def write(path: Path, grid: Grid = GRID, layout: Layout = LAYOUT) -> np.ndarray:
    values = np.random.default_rng(1).random((len(layout.bands), *grid.shape)).astype(layout.dtype)
    with write_cog(path, grid, layout) as writer:
        for window in grid.windows(512):
            writer.write(values[(slice(None), *window.toslices())], window=window)
    return values


def test_raster_written_by_windows_is_a_valid_cog(tmp_path: Path) -> None:
    values = write(tmp_path / "a.tif")
    valid, errors, warnings = cog_validate(tmp_path / "a.tif", strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with open_raster(tmp_path / "a.tif") as dataset:
        assert np.array_equal(dataset.read(), values)
        assert dataset.descriptions == ("slope", "red")
        assert dataset.units == ("degree", "1")
        assert dataset.tags()["TALUD_AREA"] == "here"
        assert Grid.of(dataset) == GRID


def test_equal_pixels_give_equal_cog_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    write(tmp_path / "b.tif")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_failed_write_keeps_only_the_earlier_file(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    before = (tmp_path / "a.tif").read_bytes()
    with pytest.raises(ZeroDivisionError), write_cog(tmp_path / "a.tif", GRID, LAYOUT):
        raise ZeroDivisionError
    assert (tmp_path / "a.tif").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]


def test_uncreatable_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "a.tif")


def test_full_disk_is_reported_and_leaves_no_file(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic_replace(tmp_path / "a.txt") as scratch:
            scratch.symlink_to("/dev/full")
            scratch.write_text("x" * 100_000)

    with pytest.raises(OutputError, match="No space left"):
        fill_the_disk()
    assert not list(tmp_path.iterdir())


def test_truncated_tiff_raises_when_pixels_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"a\.tif"), open_raster(tmp_path / "a.tif") as dataset:
        dataset.read()


def test_other_file_is_a_one_line_source_error(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("hello")
    with pytest.raises(SourceError) as caught, open_raster(tmp_path / "a.tif"):
        pass
    assert "\n" not in str(caught.value)


def test_class_raster_keeps_its_colours(tmp_path: Path) -> None:
    layout = Layout("uint8", 255, ["landslides"], colours={0: (0, 0, 0, 0), 1: (200, 30, 30, 255)}, overviews="mode")
    with write_cog(tmp_path / "a.tif", GRID, layout) as writer:
        writer.write(np.ones((1, *GRID.shape), np.uint8))
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert dataset.colormap(1)[1] == (200, 30, 30, 255)


@pytest.mark.parametrize("limit", [1_000_000, 4_500_000, 5_000_000, 5_200_000, 5_244_000])
def test_disk_full_at_any_point_leaves_no_truncated_raster(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], limit: int
) -> None:
    """Write noise, whose COG (5.24 MB) is larger than its scratch file (4.19 MB)."""
    grid, layout = Grid(GRID.crs, GRID.transform, 1024, 1024), Layout("uint32", None, ["red"])
    values = np.random.default_rng(1).integers(0, 2**32, grid.shape, np.uint32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with (
            pytest.raises(OutputError, match="cannot be written"),
            write_cog(tmp_path / "a.tif", grid, layout) as writer,
            stderr_suppressed(),
        ):
            writer.write(values, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""
