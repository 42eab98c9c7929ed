"""Tests of docs/tutorials/own-patches.md on some of the real patches."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import yaml
from PIL import Image

from fresh_clone import ROOT
from talud.cli.main import main
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.project import Project

pytestmark = [pytest.mark.real, pytest.mark.slow]

SIDE = 128
COUNTS = {"a": 26, "b": 7}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Project:
    """Return a project after all steps of the tutorial.

    Its index selects a few patches.
    """
    root = tmp_path_factory.mktemp("landslide4sense")
    folder = root / "data" / "landslide4sense_rgb"
    folder.mkdir(parents=True)
    for name in ("images", "masks"):
        (folder / name).symlink_to(real_data / "landslide4sense_rgb" / name)
    with (real_data / "landslide4sense_rgb" / "areas.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    chosen = [row for area, count in COUNTS.items() for row in [row for row in rows if row["area"] == area][:count]]
    lines = ["patch,area", *(f"{row['patch']},{row['area']}" for row in reversed(chosen))]
    (folder / "areas.csv").write_text("\n".join(lines) + "\n")
    params = yaml.safe_load((ROOT / "configs" / "landslide4sense.yaml").read_text())
    params["searches"]["aligned"] |= {"filters": [2], "batch_size": [4], "epochs": 2, "seeds": [1]}
    params["reference"] = "study"
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    for command in ("init", "add params.yaml", "-c user.name=nobody -c user.email=nobody@localhost commit -m start"):
        subprocess.run(["git", *command.split()], cwd=root, check=True, capture_output=True)  # the gate asks for it
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("TF_NUM_INTRAOP_THREADS", "1")
        for command in (
            "stack country_a country_b",
            "train 3band",
            "predict models/3band.onnx stacks/country_a.tif --out predictions/3band/country_a",
            "predict models/3band.onnx stacks/country_b.tif --out predictions/3band/country_b",
            "evaluate 3band",
            "register 3band",
            "baseline 3band",
            "report",
        ):
            patch.setattr(sys, "argv", ["talud", *command.split()])
            with pytest.raises(SystemExit) as exit_:
                main()
            assert not exit_.value.code, command
    return Project.find(root)


def names(project: Project, area: str) -> list[str]:
    return json.loads(project.stack_record(area).read_text())["patches"]


def cell(path: Path, number: int) -> np.ndarray:
    with rasterio.open(path) as raster:
        row, column = divmod(number, raster.width // SIDE)
        return raster.read(window=rasterio.windows.Window(column * SIDE, row * SIDE, SIDE, SIDE))


def test_stack_contains_each_patch_as_pillow_reads_it(project: Project) -> None:
    for area, count in (("country_a", COUNTS["a"]), ("country_b", COUNTS["b"])):
        folder = project.folder(project.params.area(area))
        assert names(project, area) == sorted(names(project, area))
        assert len(names(project, area)) == count
        for number, name in enumerate(names(project, area)):
            image = np.asarray(Image.open(folder / "images" / f"{name}.png"))[..., :3]
            truth = np.asarray(Image.open(folder / "masks" / f"{name}.png").convert("L"))
            np.testing.assert_array_equal(cell(project.stack(area), number), np.moveaxis(image, -1, 0))
            np.testing.assert_array_equal(cell(project.mask(area), number)[0], truth == 255)


def test_map_of_a_patch_does_not_depend_on_its_neighbours(project: Project) -> None:
    model = Model.load(project.model("3band"))
    for number in range(COUNTS["b"]):
        alone = model.run(cell(project.stack("country_b"), number))
        mapped = cell(project.prediction("3band", "country_b") / "probability.tif", number)[0]
        np.testing.assert_array_equal(mapped, alone)


def test_splits_are_ranges_of_patch_numbers(project: Project) -> None:
    blocks = split_blocks(project.mask("country_a"), project.params.split, project.params.seed)
    assert [block.part for block in blocks] == ["training"] * 18 + ["validation"] * 4 + ["test"] * 4


def test_scores_count_labelled_pixels_of_the_other_region(project: Project) -> None:
    scores = json.loads(project.scores("3band").read_text())["areas"]["country_b"]
    truth = np.stack([cell(project.mask("country_b"), number)[0] for number in range(COUNTS["b"])])
    assert scores["tp"] + scores["fn"] == np.count_nonzero(truth == 1)
    assert sum(scores[count] for count in ("tp", "fp", "fn", "tn")) == truth.size


def test_landslide_polygons_do_not_cross_patches(project: Project) -> None:
    frame = pyogrio.read_dataframe(project.prediction("3band", "country_b") / "landslides.gpkg", layer="landslides")
    bounds = frame.geometry.bounds / (10 * SIDE)
    assert len(frame)
    assert np.all(np.ceil(bounds.maxx - 1e-9) - np.floor(bounds.minx + 1e-9) == 1)
    assert np.all(np.ceil(bounds.maxy - 1e-9) - np.floor(bounds.miny + 1e-9) == 1)


def test_patch_model_is_registered_and_reported(project: Project) -> None:
    registration = json.loads(project.registration("3band").read_text())
    assert (registration["name"], registration["alias"]) == ("landslide-unet-3band", "champion")
    assert "country_b" in project.report.read_text()
    assert Model.load(project.model("3band")).contract.measured.halo_errors == {}


def test_baseline_trains_and_scores_the_second_recipe(project: Project) -> None:
    chosen, other = (Model.load(project.root / folder / "3band.onnx") for folder in ("models", "baselines"))
    said = [model.contract.origin.hyperparameters for model in (chosen, other)]
    assert [each["recipe"] for each in said] == ["aligned", "study"]
    assert [each["loss"] for each in said] == ["dice_cross_entropy", "dice"]
    for name in ("filters", "learning_rate", "batch_size", "epochs", "training_seed", "depth"):
        assert said[0][name] == said[1][name]
    scored = json.loads((project.root / "baselines" / "3band.json").read_text())["scored"]
    assert [(row["area"], row["recipe"]) for row in scored] == [
        (area, recipe) for area in ("country_a", "country_b") for recipe in ("aligned", "study")
    ]
    away = json.loads(project.scores("3band").read_text())["areas"]["country_b"]
    assert [scored[2][name] for name in ("f1", "precision", "recall")] == [
        away[name] for name in ("f1", "precision", "recall")
    ]
    for row in scored:
        low, high = row["intervals"]["f1"]
        assert low <= row["f1"] <= high
    html = project.report.read_text()
    section = html[html.index('<section id="recipes">') : html.index('<section id="configurations">')]
    assert section.count('<td class="text">study') == section.count("<b>aligned</b>") == 2
    assert f"{scored[3]['f1']:.3f}" in section
