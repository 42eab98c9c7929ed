"""Tests of scores on a folder of patches, against scikit-learn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import f1_score, matthews_corrcoef

from command_line import Run, runner
from source_files import write_project, write_raster
from talud.data.stack import build_stack
from talud.engine.runtime import Model
from talud.evaluation.scores import assess_area, assess_folder

SIDE = 30  # not a multiple of the tiny model's alignment of 4
NAMES = ("2", "10", "1", "31", "7")


def image(name: str) -> NDArray[np.uint8]:
    """Return a patch (3, side, side) seeded by its name."""
    return np.random.default_rng(int(name)).integers(1, 250, (3, SIDE, SIDE)).astype(np.uint8)


def truth(name: str) -> NDArray[np.uint8]:
    return (np.random.default_rng(int(name) + 100).random((SIDE, SIDE)) < 0.3).astype(np.uint8)


@pytest.fixture
def model(tiny_model: Path) -> Model:
    return Model.load(tiny_model)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of PNG patches outside any project."""
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "patches"
    for kind in ("images", "masks"):
        (found / kind).mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.moveaxis(image(name), 0, -1)).save(found / "images" / f"{name}.png")
        Image.fromarray(255 * truth(name)).save(found / "masks" / f"{name}.png")
    return found


@pytest.fixture
def talud(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Path) -> Run:
    """Runner of `talud evaluate` with the tiny model."""
    return runner(monkeypatch, capsys, "evaluate", str(tiny_model))


def expected(model: Model, names: tuple[str, ...] = NAMES) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return truth and map of all patches, each predicted separately."""
    maps = [model.probability(image(name).astype(np.float32)) >= model.contract.measured.threshold for name in names]
    return np.stack([truth(name) for name in names]), np.stack(maps)


def test_folder_scores_match_scikit_learn(talud: Run, folder: Path, model: Model) -> None:
    code, stdout, stderr = talud("patches", "--json")
    found = json.loads(stdout)
    known, mapped = expected(model)
    assert (code, stderr) == (0, "")
    assert found["f1"] == pytest.approx(f1_score(known.ravel(), mapped.ravel()), abs=1e-6)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(known.ravel(), mapped.ravel()), abs=1e-6)
    assert found["tp"] + found["fp"] + found["fn"] + found["tn"] == known.size
    assert (found["patches"], found["source"], found["not_mapped_share"]) == (5, "patches", 0)
    low, high = found["intervals"]["f1"]
    assert low <= found["f1"] <= high
    share = known.mean()
    everything = 2 * share / (1 + share)  # F1 of the map that calls every pixel a landslide
    assert found["notes"] == [
        "only 5 patches, so the intervals are too narrow",
        f"no better than calling everything a landslide: F1 {found['f1']:.3f} against {everything:.3f}",
    ]


def test_evaluate_json_has_documented_keys(talud: Run, folder: Path) -> None:
    found = json.loads(talud("patches", "--json")[1])
    scores = ["precision", "recall", "f1", "iou", "mcc"]
    assert list(found) == [
        *("model", "source", "pixels", "threshold", "patches", "tp", "fp", "fn", "tn"),
        *scores,
        *("intervals", "not_mapped_pixels", "not_mapped_landslide_pixels", "not_mapped_share", "bootstrap", "notes"),
    ]
    assert list(found["intervals"]) == scores
    assert list(found["model"]) == ["name", "version", "weights", "network"]
    assert found["bootstrap"] == {"level": 0.95, "drawn": "patches", "resamples": 2000, "seed": 0}


def test_evaluate_prints_scores_intervals_and_counts(talud: Run, folder: Path, model: Model) -> None:
    scores = assess_folder(model, folder).scores
    lines = [line for line in talud("patches")[1].splitlines() if "│" in line]
    assert len(lines) == 2
    for score in scores.values():
        assert f"{score.estimate:.3f}" in lines[0]
        assert f"{score.low:.3f} to {score.high:.3f}" in lines[1]
    assert "3band, from a file, unet, threshold 0.50" in talud("patches")[1]
    assert "patches: all patches (5 patches); TP " in talud("patches")[1]


def rewrite(folder: Path, write: Callable[[Path, str], object]) -> None:
    """Rewrite the same patches in another format."""
    for kind in ("images", "masks"):
        shutil.rmtree(folder / kind)
        (folder / kind).mkdir()
    for name in NAMES[::-1]:
        write(folder, name)


def test_tiff_bands_are_matched_by_name(folder: Path, model: Model) -> None:
    def write(folder: Path, name: str) -> None:
        pixels = np.concatenate([image(name)[::-1], image(name)[:1] // 2]).astype(np.float32)
        names = ("blue", "green", "red", "nir")
        write_raster(folder / f"images/image_{name}.tif", pixels, descriptions=names)
        write_raster(folder / f"masks/mask_{name}.tif", truth(name))

    png = assess_folder(model, folder)
    rewrite(folder, write)
    tiff = assess_folder(model, folder)
    assert (tiff.assessment, tiff.scores) == (png.assessment, png.scores)


def test_hdf5_patches_need_channel_names(talud: Run, folder: Path, model: Model) -> None:
    def write(folder: Path, name: str, count: int = 14) -> None:
        channels = np.zeros((SIDE, SIDE, count))
        channels[..., [3, 2, 1]] = np.moveaxis(image(name), 0, -1)
        with h5py.File(folder / f"images/image_{name}.h5", "w") as file:
            file["img"] = channels
        with h5py.File(folder / f"masks/mask_{name}.h5", "w") as file:
            file["mask"] = truth(name)

    png = json.loads(talud("patches", "--json")[1])
    rewrite(folder, write)
    assert json.loads(talud("patches", "--json", "--bands", "red=4,green=3,blue=2")[1]) == png
    assert json.loads(talud("patches", "--json")[1]) == png  # the channels of Landslide4Sense are known
    rewrite(folder, partial(write, count=13))
    code, _, stderr = talud("patches")
    assert code == 1
    assert "has no channel names; give them, for example --bands red=4,green=3,blue=2" in stderr


def test_unknown_and_invalid_pixels_are_not_counted(folder: Path, model: Model) -> None:
    def write(folder: Path, name: str) -> None:
        pixels = image(name).astype(np.float32)
        pixels[1, :5] = np.nan
        mask = truth(name)
        mask[:, :3] = 255
        write_raster(folder / f"images/{name}.tif", pixels)
        write_raster(folder / f"masks/{name}.tif", mask, nodata=255)

    rewrite(folder, write)
    found = assess_folder(model, folder)
    assert found.assessment.not_mapped == 5 * 5 * (SIDE - 3)
    known = np.stack([truth(name) for name in NAMES])
    maps = []
    for name in NAMES:
        pixels = image(name).astype(np.float32)
        pixels[:, :5] = np.nan
        maps.append(model.probability(pixels) >= 0.5)
    counted = np.s_[:, 5:, 3:]
    score = f1_score(known[counted].ravel(), np.stack(maps)[counted].ravel())
    assert found.scores["f1"].estimate == pytest.approx(score, abs=1e-12)


def spoil_missing_mask(folder: Path) -> None:
    (folder / "masks/10.png").unlink()


def spoil_size(folder: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE + 1), np.uint8)).save(folder / "masks/7.png")


def spoil_channel(folder: Path) -> None:
    for name in NAMES:
        Image.fromarray(image(name)[0]).save(folder / f"images/{name}.png")


def spoil_one_channel(folder: Path) -> None:
    Image.fromarray(image("7")[0]).save(folder / "images/7.png")


def spoil_names(folder: Path) -> None:
    for name in NAMES:
        (folder / f"images/{name}.png").unlink()
        write_raster(folder / f"images/{name}.tif", image(name), descriptions=("red", "nir", "blue"))


def spoil_values(folder: Path) -> None:
    for name in NAMES:
        (folder / f"images/{name}.png").unlink()
        write_raster(folder / f"images/{name}.tif", image(name).astype(np.uint16) * 40)


def spoil_picture(folder: Path) -> None:
    (folder / "images/31.png").write_bytes(b"no picture")


def spoil_masks(folder: Path) -> None:
    shutil.rmtree(folder / "masks")


def spoil_all(folder: Path) -> None:
    shutil.rmtree(folder)


BAD = {
    "a missing mask": (spoil_missing_mask, "10.png: has no mask in"),
    "a mask of another size": (spoil_size, "7.png: has 31 columns × 30 rows, but the patches have 30 × 30"),
    "grey images": (spoil_channel, "has 1 channel without names; give them"),
    "one grey image": (spoil_one_channel, "7.png: has 1 channel, but green has the number 2"),
    "no green band": (spoil_names, "has no band green; it has red, nir, blue, the model expects red, green, blue"),
    "values of another scale": (spoil_values, "band 'red' has"),
    "a file that is no picture": (spoil_picture, "31.png: cannot be read as a raster"),
    "no masks": (spoil_masks, "has no mask in"),
    "no folder": (spoil_all, "patches: is not a folder; give a folder with images/ and masks/"),
}


@pytest.mark.parametrize("case", BAD)
def test_evaluate_reports_a_bad_folder_on_one_line(talud: Run, folder: Path, case: str) -> None:
    spoil, words = BAD[case]
    spoil(folder)
    code, stdout, stderr = talud("patches")
    assert (code, stdout) == (1, "")
    assert stderr.count("\n") == 1
    assert words in stderr


def test_channel_numbers_start_at_one(talud: Run, folder: Path) -> None:
    code, _, stderr = talud("patches", "--bands", "red=0,green=1,blue=2")
    assert (code, stderr) == (1, "talud: band red has channel number 0, but channels are numbered from 1\n")
    assert talud("patches", "--bands", "red=4,green=1,blue=2")[0] == 1
    assert talud("patches", "--bands", "red")[0] == 2


def test_folder_and_its_patch_stack_have_equal_scores(tmp_path: Path, model: Model) -> None:
    """Patches that are adjacent in the stack must not influence each other."""
    for kind in ("images", "masks"):
        (tmp_path / "data/valley" / kind).mkdir(parents=True)
    random = np.random.default_rng(1)
    for name in range(7):
        pixels, mask = random.integers(1, 250, (32, 32, 3)), random.random((32, 32)) < 0.3
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"data/valley/images/{name}.png")
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / f"data/valley/masks/{name}.png")
    area = {"role": "transfer", "folder": "data/valley", "patches": {"pixel_size": 12.5}}
    project = write_project(tmp_path, {"valley": area})
    build_stack(project, "valley")
    apart, together = assess_folder(model, tmp_path / "data/valley"), assess_area(model, project, "valley")
    assert (together.unit, together.assessment.windows, together.pixels) == ("patches", 7, "all patches")
    assert (together.assessment, together.scores) == (apart.assessment, apart.scores)


def test_evaluate_warns_of_masks_without_background(talud: Run, folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        values = np.array(Image.open(path))
        path.unlink()
        write_raster(path.with_suffix(".tif"), values, nodata=0)
    code, out, _ = talud(folder)
    assert code == 0
    assert "note: no mapped pixel is known to be background" in out
    code, out, _ = talud(folder, "--json")
    assert any("no mapped pixel is known to be background" in note for note in json.loads(out)["notes"])
