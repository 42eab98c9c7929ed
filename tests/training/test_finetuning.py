"""Tests of fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import rasterio

from small_projects import write_area, write_model, write_params
from talud import registry
from talud.contract import Calibration, Contract, Validation
from talud.engine.runtime import Model
from talud.errors import ModelError, StudyError
from talud.evaluation import model_card, promotion, registration
from talud.evaluation.scores import assess_area
from talud.grid import Grid
from talud.metrics import ThresholdHistogram, best_threshold
from talud.project import Project
from talud.raster import Layout, open_raster, write_cog
from talud.registry import Store
from talud.training.finetuning import FineTuningOptions, finetune


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    """Return a project with a registered model and a new labelled area."""
    found = write_params(tmp_path / "project", valley={"role": "transfer", "folder": "data/valley"})
    rows, _ = np.indices((128, 128))
    write_area(found, "basin", rows % 10 == 0)
    write_area(found, "valley", rows % 10 == 0)
    with open_raster(found.stack("valley")) as stack:
        bright = stack.read(1) > 200
    write_area(found, "valley", bright)
    write_model(found, tiny_model, 0.5, areas=("basin",))
    promotion.register(found, "project")
    return found


@pytest.mark.slow
def test_finetuning_improves_f1_and_registers_a_version(project: Project) -> None:
    source = registration.open_model(project.root, "landslide-unet-project")
    made = finetune(project, source, "valley", FineTuningOptions(6, seed=3, steps=150, learning_rate=1e-2))
    tuning = made.contract.derived.finetuned
    assert tuning is not None
    assert tuning.f1_after is not None
    assert tuning.f1_before is not None
    assert tuning.f1_after > tuning.f1_before + 0.2
    assert (tuning.area, tuning.patches, len(set(tuning.cells)), tuning.side) == ("valley", 6, 6, 16)
    assert tuning.rehearsed == ()  # the original area has no record, so it may have changed
    version = registration.register_derived(project.root, source, made.graph, made.contract, alias="challenger")
    store = Store.open(project.root)
    card = model_card.model_card(store, "landslide-unet-project@challenger")
    assert (card.version.version, card.contract["finetuned"]["version"]) == ("2", "1")
    assert store.models.look_up(version.uri).tags["finetuned_from"] == "models:/landslide-unet-project/1"
    again = registration.register_derived(project.root, source, made.graph, made.contract, alias="challenger")
    assert again.version == version.version
    kept = Model.load(registry.fetch(version.uri, project.root).path)
    assert kept.contract.origin.weights == made.contract.origin.weights != source.contract.origin.weights


def best_on(graph: onnx.ModelProto, contract: Contract, project: Project) -> float:
    """Return the best threshold of a fine-tuned model on all pixels of its patches."""
    assert contract.derived.finetuned is not None
    path = project.root / "tried.onnx"
    registration.write_model(path, graph, contract)
    model, side = Model.load(path), contract.derived.finetuned.side
    cuts = [np.s_[row : row + side, column : column + side] for row, column in contract.derived.finetuned.cells]
    with rasterio.open(project.stack("valley")) as stack, rasterio.open(project.mask("valley")) as mask:
        image, truth = stack.read(), mask.read(1)
    found = np.stack([model.probability(image[:, *cut]) for cut in cuts])
    return best_threshold(ThresholdHistogram.of(found, np.stack([truth[cut] for cut in cuts])))


@pytest.mark.slow
def test_finetuning_on_patches_resets_measurements(project: Project, tiny_model: Path) -> None:
    """Use the 32-pixel patches of a patch data set instead of split.patch."""
    stack, mask = project.stack("valley"), project.mask("valley")
    for path in (stack, mask):
        with rasterio.open(path) as raster:
            values, grid = raster.read(), Grid.of(raster)
            layout = Layout(raster.dtypes[0], raster.nodata, raster.descriptions, raster.units, {"TALUD_PATCH": "32"})
        with write_cog(path, grid, layout) as writer:
            writer.write(values)
    known = {
        "calibration": Calibration(slope=0.5, offset=0, error_before=0.2, error_after=0.1),
        "validation": Validation(tp=9, fp=3, fn=2, tn=90, blocks=3, design_effects=(1.5, 1.5), correlation=0),
    }
    write_model(
        project, tiny_model, 0.5, areas=("basin",), **{name: entry.model_dump() for name, entry in known.items()}
    )
    model = Model.load(project.model("project"))
    assert model.contract.measured.calibration is not None
    made = finetune(project, model, "valley", FineTuningOptions(3, seed=3, steps=2))
    tuning = made.contract.derived.finetuned
    assert tuning is not None
    assert (tuning.side, len(tuning.cells), tuning.recipe) == (32, 3, "study")
    assert all(row % 32 == column % 32 == 0 for row, column in tuning.cells)
    assert (
        made.contract.measured.calibration,
        made.contract.measured.validation,
        made.contract.measured.halo_errors,
    ) == (None, None, {})
    assert made.contract.measured.threshold == best_on(made.graph, made.contract, project)
    path = project.root / "tuned.onnx"
    registration.write_model(path, made.graph, made.contract)
    found = assess_area(Model.load(path), project, "valley")
    assert (found.assessment.windows, found.assessment.pixels) == (13, 13 * 32**2)  # of the 16 patches
    assert found.scores["f1"].estimate == pytest.approx(tuning.f1_after)
    with pytest.raises(ModelError, match=r"was already fine-tuned on valley; fine-tune its original"):
        finetune(project, Model.load(path), "valley", FineTuningOptions(5, seed=3))
    write_area(project, "valley", np.eye(128, dtype=bool))
    for path_of in (stack, mask):
        with rasterio.open(path_of, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
            raster.update_tags(TALUD_PATCH="32")
    with pytest.raises(StudyError, match="have changed since it was fine-tuned on them"):
        assess_area(Model.load(path), project, "valley")


@pytest.mark.slow
def test_finetuning_applies_augmentation_of_the_recipe(project: Project, monkeypatch: Any) -> None:
    """Use the gain of the recipe, which makes the brightness of patches vary."""
    seen: list[float] = []

    def watched(network: keras.Model, stack: np.ndarray, mask: np.ndarray) -> float:
        seen.append(float(np.nanstd(stack.mean(axis=(1, 2, 3)))))
        return 0.0

    monkeypatch.setattr(keras.Model, "train_on_batch", watched)
    text = (project.root / "params.yaml").read_text()
    model = Model.load(project.model("project"))
    finetune(project, model, "valley", FineTuningOptions(3, seed=1, steps=1))
    lit = "recipe: lit\nrecipes: {lit: {augmentation: {gain: 1.0}}}\n"
    (project.root / "params.yaml").write_text(text + lit)
    finetune(Project.find(project.root), model, "valley", FineTuningOptions(3, seed=1, steps=1))
    assert seen[1] > 3 * seen[0]


def test_finetuning_refuses_few_patches_and_known_areas(project: Project) -> None:
    model = Model.load(project.model("project"))
    with pytest.raises(StudyError, match="64 of its 64 labelled patches hold landslides, fewer than the 65 requested"):
        finetune(project, model, "valley", FineTuningOptions(65, seed=1))
    with pytest.raises(StudyError, match="was trained on it; choose a new area"):
        finetune(project, model, "basin", FineTuningOptions(1, seed=1))
    text = (project.root / "params.yaml").read_text()
    split = project.params.split.model_copy(update={"patch": model.contract.input.alignment - 1})
    small = replace(project, params=project.params.model_copy(update={"split": split}))
    with pytest.raises(StudyError, match=r"a side of \d+ pixels, but the network of the model needs at least"):
        finetune(small, model, "valley", FineTuningOptions(1, seed=1))
    (project.root / "params.yaml").write_text(text.replace("role: transfer", "role: gate"))
    with pytest.raises(StudyError, match="its role is gate"):
        finetune(Project.find(project.root), model, "valley", FineTuningOptions(1, seed=1))
