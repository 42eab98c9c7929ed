"""Tests of training areas that differ in pixel size, patch side and origin."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import rasterio
import yaml
from affine import Affine
from PIL import Image
from rasterio.crs import CRS

from patch_cubes import POST, PRE, synthetic_patch
from talud.data.stack import build_stack
from talud.data.stack_record import check_current_stack, describe_resampling
from talud.engine.runtime import Model
from talud.errors import MismatchError, StudyError
from talud.evaluation.gate import missing_facts
from talud.files import md5
from talud.grid import Grid
from talud.mapping.options import MapOptions
from talud.measurement.features import FeatureStatistics
from talud.measurement.sites import Site
from talud.params import Area, StackOptions, TrainingOptions
from talud.products.prediction import predict
from talud.project import Project
from talud.raster import Layout, write_cog
from talud.training.checkpoint import TrialState, trial_key
from talud.training.dataset import Dataset
from talud.training.export import ExportOrigin, export_model
from talud.training.search import Hyperparameters, recorded_hyperparameters
from talud.training.trial import TrialConfig, train

COUNT = 10  # patches of an area: six for training, two for validation, two for the test
GRID = {"filters": [2], "learning_rate": [0.001], "batch_size": [4], "epochs": 1}


def write_patches(folder: Path, side: int, seed: int, channels: int = 3) -> None:
    """Write images of noise with a brighter square of landslide each."""
    generator = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(COUNT):
        truth = np.zeros((side, side), np.uint8)
        row, column = generator.integers(0, side // 2, 2)
        truth[row : row + side // 3, column : column + side // 3] = 1
        pixels = generator.integers(20, 120, (side, side, channels)) + 100 * truth[..., np.newaxis]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        Image.fromarray(truth * 255).save(folder / "masks" / f"{number}.png")


def write_basin(project: Project, area: str, size: float, unit: str = "DN", **tags: str) -> None:
    """Write a stack that another program may have made, with its mask and the MD5s of both."""
    generator = np.random.default_rng(11)
    truth = np.zeros((128, 128), np.uint8)
    for row, column in generator.integers(0, 118, (50, 2)):
        truth[row : row + 8, column : column + 8] = 1
    grid = Grid(CRS.from_epsg(32618), Affine(size, 0, 400_000, 0, -size, 650_000), 128, 128)
    with write_cog(
        project.stack(area), grid, Layout("float32", np.nan, ("red", "green", "blue"), (unit,) * 3, tags)
    ) as to:
        to.write(generator.uniform(20, 120, (3, 128, 128)).astype(np.float32) + 100 * truth)
    with write_cog(project.mask(area), grid, Layout("uint8", 255, ("landslide",))) as to:
        to.write(truth, 1)
    record = project.stack_record(area)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"stack_md5": md5(project.stack(area)), "mask_md5": md5(project.mask(area))}))


def project_of(root: Path, stack: dict[str, object], sizes: dict[str, float | None], **changes: object) -> Project:
    """Write a project with areas of patches, given by their pixel size, and of basins, given as None."""
    described = {
        name: {"role": "training", "folder": name} | ({"patches": {"pixel_size": size}} if size else {})
        for name, size in sizes.items()
    }
    params = {
        "seed": 7, "areas": described, "band_sets": {"rgb": ["red", "green", "blue"]}, "stack": stack,
        "split": {"block": 64, "patch": 32, "stride": 32}, "training": {"depth": 2},
        "search": "one", "searches": {"one": GRID},
    }  # fmt: skip
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params | changes, sort_keys=False))
    return Project.find(root)


def two_patch_sets(root: Path, **stack: object) -> Project:
    """Write a project with patches of 10 m and of 3 m."""
    write_patches(root / "coarse", 64, seed=1)
    write_patches(root / "fine", 128, seed=2)
    project = project_of(root, {"resolution": 10, **stack}, {"coarse": 10, "fine": 3})
    for area in ("coarse", "fine"):
        build_stack(project, area)
        resampled = "patches resampled from 3 m to 10 m, in cells of 64 pixels" if stack and area == "fine" else ""
        assert describe_resampling(project.stack(area)) == resampled
    return project


@pytest.fixture(scope="module")
def resampled(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return two_patch_sets(tmp_path_factory.mktemp("resampled"), pixel_sizes="resample")


def test_patches_are_resampled_one_by_one(resampled: Project) -> None:
    with rasterio.open(resampled.stack("fine")) as stack, rasterio.open(resampled.mask("fine")) as mask:
        tags = stack.tags()
        assert [tags[f"TALUD_{name}"] for name in ("PATCH", "RESOLUTION", "SOURCE_RESOLUTION")] == ["64", "10", "3"]
        assert stack.transform.a == 10
        for number in (0, 4, COUNT - 1):
            row, column = divmod(number, stack.width // 64)
            window = rasterio.windows.Window(64 * column, 64 * row, 64, 64)
            values, truth = stack.read(1, window=window), mask.read(1, window=window)
            pixels = np.asarray(Image.open(resampled.root / "fine" / "images" / f"{number}.png"))[:120, :120, 0]
            # Three new pixels have the width of ten; the middle one takes two thirds of the pixels at its ends.
            weights = np.zeros((36, 120))
            for new in range(36):
                low, high = new * 10 / 3, (new + 1) * 10 / 3
                weights[new] = np.clip(np.minimum(np.arange(120) + 1, high) - np.maximum(np.arange(120), low), 0, None)
            np.testing.assert_allclose(values[:36, :36], weights @ pixels @ weights.T * 0.09, rtol=1e-4)
            assert np.isnan(values[38:]).all()
            assert np.isnan(values[:, 38:]).all()
            np.testing.assert_array_equal(truth == 255, np.isnan(values))
            own = np.asarray(Image.open(resampled.root / "fine" / "masks" / f"{number}.png")) > 0
            assert abs((truth == 1).sum() * 100 - own.sum() * 9) < 0.15 * own.sum() * 9
    with rasterio.open(resampled.stack("coarse")) as stack:
        assert "TALUD_SOURCE_RESOLUTION" not in stack.tags()


def test_resampled_areas_share_one_dataset(resampled: Project) -> None:
    dataset = Dataset.load(resampled, "rgb")
    assert dataset.training.area_sizes[0] == 6 * 4
    assert dataset.training.area_sizes[1] == 6 * 4  # at 0 and 6 of the 38 pixels
    assert dataset.stack_format.pixel_size == 10
    assert dataset.stack_format.trained_sizes == ()
    assert dataset.stack_format.differing_sizes == {"coarse": 10, "fine": 3}
    assert not np.isnan(dataset.training.stack).any()
    assert not np.isnan(dataset.validation.stack).any()
    # Each pixel of a validation patch counts once, although the cuts overlap.
    assert np.count_nonzero(dataset.validation.mask != 255) == 2 * (64**2 + 38**2)
    assert {block.window.height for block in dataset.blocks["fine"]} == {38}
    assert sum(dataset.validation.area_sizes) == len(dataset.validation)


def test_patches_of_all_sensors_are_resampled(tmp_path: Path) -> None:
    own = [synthetic_patch(tmp_path / "cubes", f"italy_{number}", number) for number in range(COUNT)]
    patches = {"images": "s2", "sar": "s1asc", "bands": ["red", "elevation", "vv_pre"], "pixel_size": 10}
    described = {"role": "training", "folder": "cubes", "sar_unit": "db", "patches": patches}
    options = {"pixel_sizes": "resample", "resolution": 20}
    bands = {"rgb": ["red", "slope", "vv_pre"]}
    project = project_of(tmp_path, options, {}, areas={"cubes": described}, band_sets=bands)
    build_stack(project, "cubes")
    with rasterio.open(project.stack("cubes")) as stack:
        assert stack.tags()["TALUD_PATCH"] == "32"
        assert stack.tags()["TALUD_SAR_UNIT"] == "db"
        found = dict(zip(stack.descriptions, stack.read(window=rasterio.windows.Window(0, 0, 16, 16)), strict=True))
    red, backscatter = own[0]["B04"][POST] / 1e4, 10 ** (own[0]["VV"][PRE].astype(float) / 10)
    np.testing.assert_allclose(found["red"], red.reshape(16, 2, 16, 2).mean(axis=(1, 3)), rtol=1e-5)
    power = backscatter.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(found["vv_pre"], 10 * np.log10(power), rtol=1e-4)
    assert np.isfinite(found["slope"]).any()
    dataset = Dataset.load(project, "rgb")
    assert dataset.stack_format.differing_sizes == {"cubes": 10}
    assert dataset.stack_format.pixel_size == 20


def test_other_resampling_makes_the_stack_outdated(resampled: Project) -> None:
    check_current_stack(resampled, "fine")
    params = yaml.safe_load((resampled.root / "params.yaml").read_text())
    file = resampled.root / "params.yaml"
    for stack in ({"resolution": 10}, {"resolution": 12, "pixel_sizes": "resample"}):
        file.write_text(yaml.safe_dump(params | {"stack": stack}, sort_keys=False))
        with pytest.raises(StudyError, match=r"fine.tif: was made with patches resampled to \[10.0"):
            check_current_stack(Project.find(resampled.root), "fine")
    file.write_text(yaml.safe_dump(params, sort_keys=False))


def test_areas_of_other_pixel_size_need_an_option(tmp_path: Path) -> None:
    project = two_patch_sets(tmp_path)
    with pytest.raises(StudyError, match=r"'coarse' and 'fine' differ in pixel size: 10 m and 3 m; set stack.pixel_si"):
        Dataset.load(project, "rgb")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project with a basin of 10 m next to patches of 3 m, each at its own pixel size."""
    root = tmp_path_factory.mktemp("mixed")
    write_patches(root / "fine", 48, seed=2)
    areas = {"fine": 3, "basin": None}
    stack = {"pixel_sizes": "native", "resolution": 10}
    project = project_of(root, stack, areas, training={"depth": 1, "balance": "area", "calibrate": False})
    build_stack(project, "fine")
    write_basin(project, "basin", 10, TALUD_SLOPE="zevenbergen_thorne", TALUD_LEE_WINDOW="0")
    return project


def test_basin_and_patches_train_at_their_own_size(mixed: Project) -> None:
    dataset = Dataset.load(mixed, "rgb")
    assert dataset.stack_format.pixel_size == 10  # stack.resolution, though the patches come first
    assert dataset.stack_format.trained_sizes == (3, 10)
    assert dataset.stack_format.differing_sizes == {"fine": 3, "basin": 10}
    assert dataset.stack_format.processing == {"resolution": "10", "slope": "zevenbergen_thorne", "lee_window": "0"}
    assert all(dataset.training.area_sizes)
    assert not np.isnan(dataset.training.stack).any()


@pytest.mark.parametrize(
    ("size", "unit", "message"),
    [(10, "reflectance", "unit of red: DN and reflectance"), (3, "", "unit of red: DN and none")],
)
def test_areas_of_other_unit_are_refused(mixed: Project, tmp_path: Path, size: float, unit: str, message: str) -> None:
    (tmp_path / "fine").symlink_to(mixed.root / "fine")
    project = project_of(tmp_path, {"pixel_sizes": "native", "resolution": 10}, {"fine": 3, "basin": None})
    build_stack(project, "fine")
    write_basin(project, "basin", size, unit)
    with pytest.raises(StudyError, match=message):
        Dataset.load(project, "rgb")


def test_smaller_patches_are_padded_as_unknown(mixed: Project, tmp_path: Path) -> None:
    (tmp_path / "fine").symlink_to(mixed.root / "fine")
    split = {"block": 96, "patch": 96, "stride": 96}
    project = project_of(tmp_path, {}, {"fine": 3}, split=split)
    build_stack(project, "fine")
    patches = Site.of(project, "fine").cut_patches(("red", "green", "blue"), "training")
    assert patches.stack.shape == (6, 96, 96, 3)
    assert np.isnan(patches.stack[:, 48:]).all()
    assert np.isnan(patches.stack[:, :, 48:]).all()
    np.testing.assert_array_equal(patches.mask == 255, np.isnan(patches.stack[..., 0]))
    with pytest.raises(StudyError, match=r"split\.patch is 96 pixels, but the patches of fine have at most 48"):
        Dataset.load(project, "rgb")
    own = np.asarray(Image.open(tmp_path / "fine" / "images" / "0.png"))
    np.testing.assert_array_equal(patches.stack[0, :48, :48], own)


def test_balance_identifies_a_trial_only_if_set(tmp_path: Path) -> None:
    chosen, keys, recorded = Hyperparameters(2, 0.001, 4, 1, None), [], []
    for balance in ({}, {"balance": "none"}, {"balance": "area"}):
        project = project_of(tmp_path, {}, {"basin": None}, training={"depth": 1, **balance})
        keys.append(trial_key(project, ("red",), "data", chosen))
        recorded.append(recorded_hyperparameters(project.params, chosen, ("red",)).get("balance"))
    assert keys[0] == keys[1] != keys[2]
    assert recorded == [None, None, "area"]


def test_settings_of_the_guide_are_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/train-on-several-areas.md").read_text()
    areas, stack, training = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert {Area.create(**area).role for area in areas["areas"].values()} == {"training"}
    assert StackOptions(**stack["stack"]).resamples(3)
    assert TrainingOptions(**training["training"]).balance == "area"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
@pytest.mark.usefixtures("eager_tensorflow")
def test_model_of_mixed_areas_states_and_maps_their_sizes(mixed: Project, tmp_path: Path) -> None:
    dataset = Dataset.load(mixed, "rgb")
    config = TrialConfig.of(mixed, Hyperparameters(2, 0.001, 4, 1, None), dataset.bands)
    assert len(config.training_batches(dataset)) == -(-2 * -(-len(dataset.training) // 2) // 4)
    state = train(dataset, config, tmp_path / "one.npz", state=TrialState(), max_epochs=1)
    network = config.build(dataset.statistics)
    network.set_weights(state.best)
    path = tmp_path / "model.onnx"
    origin = ExportOrigin(config.network, "rgb", "c0ffee", "run", {"filters": 2})
    contract = export_model(network, dataset, mixed, origin, path)
    assert contract.input.pixel_sizes == (3, 10)
    assert contract.origin.area_pixel_sizes == {"fine": 3, "basin": 10}
    assert not missing_facts(contract)
    assert FeatureStatistics.of(onnx.load(path)).side == 48
    blocks = [block for area in dataset.blocks.values() for block in area if block.part == "validation"]
    assert contract.measured.validation.blocks == len(blocks)
    model = Model.load(path, provider="cpu")
    assert model.contract == contract
    elsewhere = project_of(tmp_path / "elsewhere", {}, {"away": None})
    for size, said in ((5, "between those"), (10, "as in some")):
        write_basin(elsewhere, "away", size)
        found = predict(model, elsewhere.stack("away"), tmp_path / f"map_{size}", MapOptions(tta=False))
        record = json.loads((tmp_path / f"map_{size}" / "prediction.json").read_text())
        assert said in found.pixel_size
        assert record["domain"]["pixel_size"] == found.pixel_size
        assert "fine 3 m, basin 10 m" in (tmp_path / f"map_{size}" / "summary.html").read_text()
        assert "several sizes" in found.no_estimate
    write_basin(elsewhere, "away", 12.5)
    with pytest.raises(MismatchError, match="the model expects 3 to 10 m"):
        predict(model, elsewhere.stack("away"), tmp_path / "none", MapOptions(tta=False))
