"""Tests of the checks of a raster against a contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from stack_files import grid_of, noise, write_stack
from talud.bands import Group
from talud.contract import Contract
from talud.engine.runtime import Model
from talud.errors import MismatchError, SourceError, TaludError
from talud.grid import Grid
from talud.mapping import reader
from talud.mapping.reader import open_stack


def refusal(raster: Path, contract: Contract, kind: type[TaludError] = MismatchError) -> str:
    with pytest.raises(kind) as caught, open_stack(raster, contract):
        pass
    message = str(caught.value)
    assert raster.name in message
    assert "\n" not in message
    return message


def contract_of(model: Model, **changes: object) -> Contract:
    """Return the model's contract with its first band changed."""
    first, *others = model.contract.input.bands
    return model.contract.replace(bands=(first.model_copy(update=changes), *others))


def test_error_on_a_missing_band_lists_found_and_expected_ones(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "s.tif", noise(20, 20), ("red", "nir", "blue"))
    message = refusal(raster, model.contract)
    assert "no band green" in message
    assert "it has red, nir, blue" in message
    assert "expects red, green, blue" in message


def test_bands_without_names_are_not_recognised(model: Model, tmp_path: Path) -> None:
    raster = tmp_path / "s.tif"
    with rasterio.open(
        raster, "w", driver="GTiff", dtype="float32", count=3, height=9, width=9, crs="EPSG:32618",
        transform=grid_of(1, 1).transform,
    ) as dataset:  # fmt: skip
        dataset.write(noise(9, 9))
    assert "(unnamed), (unnamed), (unnamed)" in refusal(raster, model.contract)


def test_duplicate_band_name_is_refused(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "s.tif", noise(9, 9, bands=4), ("red", "green", "blue", "red"))
    assert "several bands red" in refusal(raster, model.contract)


@pytest.mark.parametrize(
    ("crs", "transform", "said"),
    [
        ("EPSG:32618", Affine(10, 0, 0, 0, -10, 0), "10 × 10 m, the model expects 12.5 m"),
        ("EPSG:32618", Affine(12.5, 0, 0, 0, -12.6, 0), "12.5 × 12.6 m"),
        ("EPSG:32618", Affine(12.52, 0, 0, 0, -12.52, 0), "12.52"),
        ("EPSG:2263", Affine(12.5, 0, 0, 0, -12.5, 0), "3.81001 × 3.81001 m"),  # US survey feet
        ("EPSG:4326", Affine(0.0001, 0, -76, 0, -0.0001, 6), "is not projected"),
    ],
)
def test_other_pixel_size_is_refused(model: Model, tmp_path: Path, crs: str, transform: Affine, said: str) -> None:
    grid = Grid(CRS.from_string(crs), transform, 20, 20)
    assert said in refusal(write_stack(tmp_path / "s.tif", noise(20, 20), grid=grid), model.contract)


def test_web_mercator_pixel_size_is_refused(model: Model, tmp_path: Path) -> None:
    """At 45 degrees north a metre of the CRS is cos 45° = 0.71 m on the ground."""
    grid = Grid(CRS.from_epsg(3857), Affine(12.5, 0, 800_000, 0, -12.5, 5_621_521), 20, 20)
    message = refusal(write_stack(tmp_path / "s.tif", noise(20, 20), grid=grid), model.contract)
    assert "12.5 m on the map but 8.8" in message


@pytest.mark.parametrize("side", [12.5 * 1.0005, 12.5 / 0.3048006096])
def test_pixel_size_within_a_thousandth_is_accepted(model: Model, tmp_path: Path, side: float) -> None:
    grid = grid_of(20, 20, epsg=2263 if side > 20 else 32618, pixel=side)
    with open_stack(write_stack(tmp_path / "s.tif", noise(20, 20), grid=grid), model.contract) as stack:
        assert stack.grid == grid


# Width and height of a pixel in metres, and if a model trained at 3 m and 12.5 m maps it.
SIZES = [
    (3, 3, True),
    (2.9985, 2.9985, True),
    (7, 7, True),
    (12.51, 12.51, True),
    (2.98, 2.98, False),
    (12.6, 12.6, False),
    (7, 7.1, False),
]


@pytest.mark.parametrize(("width", "height", "fits"), SIZES)
def test_any_pixel_size_between_those_of_training_is_accepted(
    model: Model, tmp_path: Path, width: float, height: float, fits: bool
) -> None:
    contract = model.contract.replace(pixel_sizes=(3, 12.5))
    grid = Grid(CRS.from_epsg(32618), Affine(width, 0, 400_000, 0, -height, 650_000), 20, 20)
    raster = write_stack(tmp_path / "s.tif", noise(20, 20), grid=grid)
    if fits:
        with open_stack(raster, contract) as stack:
            assert stack.grid == grid
    else:
        assert f"{width:g} × {height:g} m, the model expects 3 to 12.5 m" in refusal(raster, contract)


@pytest.mark.parametrize(
    ("crs", "transform", "said"),
    [
        (None, Affine(12.5, 0, 0, 0, -12.5, 0), "no coordinate reference system"),
        ("EPSG:32618", Affine(12.5, 1, 0, 1, -12.5, 0), "rotated"),
    ],
)
def test_raster_without_crs_or_rotated_is_refused(
    model: Model, tmp_path: Path, crs: str | None, transform: Affine, said: str
) -> None:
    raster = tmp_path / "s.tif"
    with rasterio.open(
        raster, "w", driver="GTiff", dtype="float32", count=3, height=9, width=9, crs=crs, transform=transform
    ) as dataset:
        dataset.write(noise(9, 9))
        dataset.descriptions = ("red", "green", "blue")
    assert said in refusal(raster, model.contract, SourceError)


def test_other_stated_unit_is_refused(model: Model, tmp_path: Path) -> None:
    stated = write_stack(tmp_path / "stated.tif", noise(20, 20), units=("reflectance", "dn", ""))
    assert "'red' is in reflectance, the model expects DN" in refusal(stated, model.contract)
    silent = write_stack(tmp_path / "silent.tif", noise(20, 20), units=("", "dn", "DN"))
    with open_stack(silent, model.contract):
        pass


def test_stack_of_other_processing_is_refused(model: Model, tmp_path: Path) -> None:
    made = {"curvature": "profile", "slope": "zevenbergen_thorne", "lee_window": "0"}
    contract = contract_of(model, name="curvature", group=Group.TERRAIN).replace(stack=made)
    bands = ("curvature", "green", "blue")
    for tags, said in (
        ({"TALUD_CURVATURE": "contour"}, "made with curvature contour, the model expects curvature profile"),
        (
            {"TALUD_CURVATURE": "profile", "TALUD_SLOPE": "horn", "TALUD_LEE_WINDOW": "5"},
            None,
        ),  # of bands that it lacks
        ({}, None),
    ):
        raster = write_stack(tmp_path / "s.tif", noise(20, 20), bands, tags=tags)
        if said:
            assert said in refusal(raster, contract)
        else:
            with open_stack(raster, contract):
                pass


@pytest.mark.parametrize(
    ("unit", "group", "lowest", "highest", "values", "cause"),
    [
        ("dB", Group.SAR, -60, 20, (25, 900), "amplitude or power"),
        ("amplitude", Group.SAR, 0, 2000, (-20, -5), "look like dB"),
        ("degree", Group.TERRAIN, 0, 90, (0, 300), "percent"),
        ("DN", Group.OPTICAL, -250, 500, (2000, 9000), "another scale"),
        ("m", Group.TERRAIN, -500, 9000, (-9999, -9000), "undeclared nodata"),
    ],
)
def test_implausible_values_are_refused_with_a_cause(
    model: Model, tmp_path: Path, unit: str, group: Group, lowest: float, highest: float,
    values: tuple[float, float], cause: str,
) -> None:  # fmt: skip
    contract = contract_of(model, unit=unit, group=group, lowest=lowest, highest=highest)
    stack = noise(80, 80)
    stack[0] = np.random.default_rng(1).uniform(*values, (80, 80))
    message = refusal(write_stack(tmp_path / "s.tif", stack), contract)
    assert f"expects {lowest} to {highest} {unit}" in message
    assert cause in message
    found = [float(word) for word in message.split(" has ")[1].split(" (")[0].split(" to ")]
    assert found == pytest.approx(np.percentile(stack[0], (1, 99)), rel=1e-4)


def test_one_percent_of_implausible_values_is_accepted(model: Model, tmp_path: Path) -> None:
    stack = noise(100, 100)
    stack[2].flat[:100] = 1e20
    with open_stack(write_stack(tmp_path / "few.tif", stack), model.contract) as reader:
        assert np.isnan(reader.read(Window(0, 0, 100, 100))[2]).sum() == 100
    stack[2].flat[:101] = np.inf
    assert "'blue' has" in refusal(write_stack(tmp_path / "more.tif", stack), model.contract)


@pytest.mark.slow
def test_plausibility_sample_covers_a_large_raster(model: Model, tmp_path: Path) -> None:
    stack = noise(1500, 1500)
    stack[0, 1300:] = 40_000
    assert "13%" in refusal(write_stack(tmp_path / "s.tif", stack), model.contract)


def test_reader_returns_nan_outside_and_where_invalid(model: Model, tmp_path: Path) -> None:
    values = noise(30, 40)
    values[1, 20, 35] = np.nan
    raster = write_stack(tmp_path / "s.tif", values[::-1], ("blue", "green", "red"))
    with open_stack(raster, model.contract) as stack:
        read = stack.read(Window(32, 16, 16, 16))
    expected = np.full((3, 16, 16), np.nan, np.float32)
    expected[:, :14, :8] = values[:, 16:, 32:]
    assert np.array_equal(read, expected, equal_nan=True)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_text(path: Path) -> None:
    path.write_text("red green blue")


def a_complex_raster(path: Path) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", dtype="complex64", count=3, height=9, width=9, crs="EPSG:32618",
        transform=grid_of(1, 1).transform,
    ) as dataset:  # fmt: skip
        dataset.descriptions = ("red", "green", "blue")


@pytest.mark.parametrize("make", [a_folder, a_text, a_complex_raster, lambda path: None])
def test_input_that_is_not_a_numeric_raster_is_refused(
    model: Model, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "s.tif")
    refusal(tmp_path / "s.tif", model.contract, TaludError)


@pytest.mark.parametrize(
    ("raster", "name"),
    [
        ("a?b=1.tif", "a?b=1.tif"),
        ("folder?x/a?b=1.tif", "a?b=1.tif"),
        (Path("/data/a?b=1.tif"), "a?b=1.tif"),
        ("/vsizip/a.zip/in?side.tif", "in?side.tif"),
        ("C:/data/a?b=1.tif", "a?b=1.tif"),
        ("https://example.org/a.tif?X-Amz-Signature=0/1", "a.tif"),
        ("/vsicurl/https://example.org/a.tif?sig=0/1", "a.tif"),
        ("/vsis3/bucket/a.tif?versionId=0/1", "a.tif"),
        ("/vsizip//vsicurl/https://example.org/a.zip/b.tif?sig=0", "b.tif"),
    ],
)
def test_raster_name_omits_the_query_of_a_url(raster: str | Path, name: str) -> None:
    assert reader._name(raster) == name


def test_raster_name_keeps_a_question_mark_of_a_file(tmp_path: Path, tiny_model: Path) -> None:
    path = write_stack(tmp_path / "a?b=1.tif", noise(32, 32))
    with open_stack(path, Model.load(tiny_model).contract) as stack:
        assert stack.info.provenance["TALUD_RASTER"] == "a?b=1.tif"
