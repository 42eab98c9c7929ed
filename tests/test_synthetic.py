"""Tests of the synthetic sample basins: reproducible and realistic."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

import synthetic
from synthetic import SEED as SEED_OF_THE_SAMPLE_DATA
from synthetic import storage
from synthetic.__main__ import main
from synthetic.basin import Basin, make_basin
from synthetic.drainage import Drainage
from synthetic.land_cover import Cover, simulate_land_cover
from synthetic.profiles import ARGELIA, BASINS, LIBORIANA
from talud.errors import OutputError
from talud.files import md5

ROOT = Path(__file__).resolve().parents[1]
SIZE = 240
SEED = 7


@pytest.fixture(scope="module")
def argelia() -> Basin:
    return make_basin(ARGELIA, SEED, SIZE)


@pytest.fixture(scope="module")
def liboriana() -> Basin:
    return make_basin(LIBORIANA, SEED, SIZE)


@pytest.fixture(scope="module")
def folder(argelia: Basin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / argelia.profile.name
    storage.write(argelia, folder)
    return folder


def burnt(basin: Basin, polygons: tuple[shapely.Polygon, ...]) -> NDArray[np.bool_]:
    return rasterize(polygons, out_shape=basin.grid.shape, transform=basin.grid.transform).astype(bool)


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    again = storage.write(make_basin(ARGELIA, SEED, SIZE), tmp_path)
    assert [md5(path) for path in again] == [md5(folder / path.name) for path in again]


@pytest.mark.slow
def test_other_seed_gives_another_basin() -> None:
    other = make_basin(ARGELIA, SEED + 1, 40)
    same = make_basin(ARGELIA, SEED, 40)
    assert not np.array_equal(other.dtm, same.dtm)
    assert not np.array_equal(other.optical, same.optical)


def test_every_file_states_that_it_is_synthetic(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(storage.FILES)
    for path in folder.glob("*.tif"):
        with rasterio.open(path) as dataset:
            assert dataset.tags()["TALUD_SYNTHETIC"] == "yes"
            assert dataset.tags()["TIFFTAG_IMAGEDESCRIPTION"].startswith("synthetic")
    for path in folder.glob("*.gpkg"):
        assert geopandas.read_file(path)["source"].str.startswith("synthetic").all()


def test_rasters_have_physical_values_with_scale_and_unit(folder: Path, argelia: Basin) -> None:
    expected = {"optical": "reflectance", "dtm": "m", "sar_pre": "amplitude", "sar_post": "amplitude"}
    values = {}
    for name, unit in expected.items():
        with rasterio.open(folder / f"{name}.tif") as dataset:
            assert set(dataset.units) == {unit}
            assert dataset.crs.to_epsg() == 32618
            assert dataset.res == (12.5, 12.5)
            values[name] = dataset.read() * dataset.scales[0] + dataset.offsets[0]
            if name == "optical":
                assert dataset.descriptions == ("red", "green", "blue")
    assert np.abs(values["dtm"][0] - argelia.terrain.elevation).max() < 6  # metres
    assert 0.02 < np.median(values["optical"]) < 0.15
    assert -12 < 20 * np.log10(np.median(values["sar_pre"][0])) < -5  # dB: forest


def test_landslides_start_on_steep_slopes_and_run_downhill(argelia: Basin, liboriana: Basin) -> None:
    for basin in (argelia, liboriana):
        assert 0.01 < np.mean(basin.landslides.label > 0) < 0.08
        for slide in basin.landslides.slides:
            row, column = slide.start
            around = np.s_[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert basin.terrain.slope[around].mean() > 25
            # The scar's own rim reaches a little above its start.
            assert basin.terrain.elevation[slide.rows, slide.columns].mean() < basin.terrain.elevation[row, column] + 5
        heads = np.array([basin.terrain.elevation[slide.start] for slide in basin.landslides.slides])
        toes = np.array([basin.terrain.elevation[slide.rows, slide.columns].min() for slide in basin.landslides.slides])
        assert np.median(heads - toes) > 50


def test_inventory_is_accurate_but_not_perfect(argelia: Basin, liboriana: Basin) -> None:
    for basin in (argelia, liboriana):
        assert all(polygon.is_valid and not polygon.is_empty for polygon in basin.inventory)
        drawn, true = burnt(basin, basin.inventory), basin.landslides.label > 0
        f1 = 2 * np.sum(drawn & true) / (np.sum(drawn) + np.sum(true))
        assert 0.75 < f1 < 0.98


def test_clouds_cover_little_of_the_training_basin_only(argelia: Basin, liboriana: Basin) -> None:
    few, many = burnt(argelia, argelia.cloud), burnt(liboriana, liboriana.cloud)
    assert few.mean() < 0.06
    assert 0.15 < many.mean() < 0.30
    blue = liboriana.optical[2] * 0.002
    assert np.median(blue[many]) > 3 * np.median(blue[~many])
    thick = liboriana.clouds.cover > 0.5
    assert np.mean(many[thick]) > 0.9  # what is seen as cloud is outlined


def test_cloud_shadows_are_opposite_the_sun(liboriana: Basin) -> None:
    cover, shadow = liboriana.clouds.cover, liboriana.clouds.shadow
    # The sun stands in the north-east, so a shadow lies south-west of its cloud.
    shift = round(900 / np.tan(np.radians(46)) / 12.5)
    south, west = round(shift * np.cos(np.radians(58))), round(shift * np.sin(np.radians(58)))
    moved = shadow[south:, : SIZE - west]
    assert np.corrcoef(moved.ravel(), cover[: SIZE - south, west:].ravel())[0, 1] > 0.95


def test_slopes_that_face_the_sun_are_bright(argelia: Basin) -> None:
    terrain, azimuth = argelia.terrain, np.radians(ARGELIA.sun_azimuth)
    toward = -terrain.east * np.sin(azimuth) - terrain.north * np.cos(azimuth)
    clear = ~burnt(argelia, argelia.cloud)
    green = argelia.optical[1]
    assert np.median(green[clear & (toward > 0.4)]) > 1.5 * np.median(green[clear & (toward < -0.4)])


def test_vv_is_low_on_landslides_and_high_facing_the_radar(argelia: Basin) -> None:
    before, after = (20 * np.log10(scene[0] * 0.01) for scene in (argelia.sar_pre, argelia.sar_post))
    fresh = argelia.landslides.label > 0
    fall = np.mean((after - before)[fresh]) - np.mean((after - before)[~fresh])
    assert -6 < fall < -1.5
    azimuth = np.radians(ARGELIA.look_azimuth)
    toward = -argelia.terrain.east * np.sin(azimuth) - argelia.terrain.north * np.cos(azimuth)
    assert np.mean(before[toward > 0.4]) > np.mean(before[toward < -0.4]) + 4


def test_vh_is_lowest_on_bare_ground_and_falls_on_landslides(argelia: Basin) -> None:
    (vv, before), (_, after) = (20 * np.log10(scene * 0.01) for scene in (argelia.sar_pre, argelia.sar_post))
    root = np.random.default_rng([SEED, zlib.crc32(ARGELIA.name.encode())])
    _, growth, *_ = root.spawn(8)
    kind = simulate_land_cover(ARGELIA, argelia.terrain, growth).kind
    ratio = before - vv
    # Sentinel-1 over forest: VH is 5 to 7 dB below VV; over bare soil 8 dB and more, as far as the noise lets it.
    assert -7 < np.median(ratio[kind == Cover.FOREST]) < -5
    assert np.median(ratio[kind == Cover.BARE]) < np.median(ratio[kind == Cover.FOREST]) - 1
    fresh = argelia.landslides.label > 0
    assert np.mean((after - before)[fresh]) - np.mean((after - before)[~fresh]) < -1.5


def test_vh_has_speckle_of_its_own() -> None:
    basin = make_basin(ARGELIA, SEED, 60)
    difference = np.diff(np.log(basin.sar_pre.astype(float)), axis=0)
    # That of two independent Rayleigh amplitudes is 0.91, less where noise is added; of equal ones, it would be 0.
    assert 0.6 < difference.std() < 0.95


def test_speckle_has_single_look_statistics() -> None:
    from synthetic import radar

    counts = radar._speckle(np.full((400, 400), -7.0), np.random.default_rng(1))
    power = (counts * radar.SCALE) ** 2
    assert 10 * np.log10(power.mean()) == pytest.approx(-7, abs=0.25)
    # Amplitude of one look is Rayleigh: deviation / mean = sqrt(4 / pi - 1).
    assert counts.std() / counts.mean() == pytest.approx(np.sqrt(4 / np.pi - 1), abs=0.04)


def test_bare_fields_and_river_beds_are_as_bright_as_landslides(argelia: Basin) -> None:
    root = np.random.default_rng([SEED, 0])
    cover = simulate_land_cover(ARGELIA, argelia.terrain, root)
    assert set(np.unique(cover.kind)) >= {Cover.FOREST, Cover.PASTURE, Cover.CROP, Cover.BARE}
    clear = ~burnt(argelia, argelia.cloud)
    red = argelia.optical[0].astype(float)
    fresh = (argelia.landslides.label > 0) & clear
    bright = clear & ~fresh & (red > np.median(red[fresh]))
    assert bright.sum() > 0.3 * fresh.sum()  # a threshold on red alone finds as many look-alikes


def test_drainage_of_a_tilted_plane_is_straight() -> None:
    plane = np.repeat(np.arange(20.0)[:, None], 12, axis=1)
    drainage = Drainage.from_elevation(plane, 10.0)
    inner = drainage.receiver.reshape(plane.shape)[1:-1, 1:-1]
    assert np.array_equal(inner, np.arange(plane.size).reshape(plane.shape)[:-2, 1:-1])
    assert np.array_equal(drainage.accumulate()[1:-1, 1:-1], np.repeat(np.arange(18, 0, -1.0)[:, None], 10, axis=1))


def test_sink_drains_over_its_lowest_pass() -> None:
    bowl = np.full((9, 9), 5.0)
    bowl[2:7, 2:7] = 1.0 + 0.01 * np.arange(25).reshape(5, 5)
    bowl[0], bowl[-1], bowl[:, 0], bowl[:, -1] = 9, 9, 9, 9
    bowl[4, 7], bowl[4, 8] = 2.0, 0.0  # the pass, in the east
    drainage = Drainage.from_elevation(bowl, 10.0)
    for start in (2 * 9 + 2, 6 * 9 + 6, 4 * 9 + 4):
        path = drainage.path(start, 100)
        assert 4 * 9 + 7 in path
        assert path[-1] == 4 * 9 + 8


def test_all_water_leaves_over_the_border(argelia: Basin) -> None:
    drained = argelia.terrain.drainage.accumulate()
    outlets = argelia.terrain.drainage.distance.reshape(drained.shape) == 0
    assert drained[outlets].sum() == drained.size
    assert not outlets[1:-1, 1:-1].any()


def test_basins_differ(argelia: Basin, liboriana: Basin) -> None:
    def median_area(basin: Basin) -> float:
        return float(np.median([slide.rows.size for slide in basin.landslides.slides]))

    assert median_area(liboriana) < median_area(argelia)
    assert {profile.name for profile in BASINS} == {"synthetic_argelia", "synthetic_liboriana"}
    clear = [~burnt(basin, basin.cloud) for basin in (argelia, liboriana)]
    blue = [np.percentile(basin.optical[2][seen], 5) for basin, seen in zip((argelia, liboriana), clear, strict=True)]
    assert blue[1] > 1.3 * blue[0]  # haze


def test_existing_file_is_an_error_and_is_kept(argelia: Basin, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(OutputError, match="data"):
        storage.write(argelia, tmp_path / "data")
    assert (tmp_path / "data").read_text() == "mine"


@pytest.mark.parametrize(("option", "value"), [("--seed", "-1"), ("--seed", "1.5"), ("--out", ""), ("--out", " ")])
def test_command_refuses_invalid_arguments(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([option, value])
    assert stopped.value.code == 2
    assert f"argument {option}:" in capsys.readouterr().err


@pytest.mark.slow
def test_command_does_not_replace_a_basin_of_the_user(tmp_path: Path) -> None:
    """Run the command as the documentation does, in the root of the repository."""
    folder = tmp_path / ARGELIA.name
    folder.mkdir()
    (folder / "inventory.gpkg").write_bytes(b"mine")
    command = [sys.executable, "-m", "synthetic", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"synthetic: .*contains inventory\.gpkg.*\n", result.stderr)
    assert [path.read_bytes() for path in tmp_path.rglob("*.*")] == [b"mine"]


@pytest.mark.slow
def test_command_writes_all_files_of_both_basins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Write basins of the size of the other tests: whole ones take most of a minute."""
    monkeypatch.setattr(synthetic, "make_basin", partial(make_basin, size=SIZE // 2))
    assert main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [str(tmp_path / each.name) for each in BASINS]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        tmp_path / each.name / file for each in BASINS for file in storage.FILES
    )
    assert SEED_OF_THE_SAMPLE_DATA == 20150518


def test_sample_data_is_small_enough_for_a_repository() -> None:
    """The repository holds the files of both basins, by their checksums, and the list of each version of them."""
    files = [path for path in (ROOT / "sample-data").rglob("*") if path.is_file()]
    assert len(files) > 2 * len(storage.FILES)
    assert sum(path.stat().st_size for path in files) < 20e6
