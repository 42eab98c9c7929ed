"""Tests of a band set's scores against an independent count."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import onnx
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rio_cogeo.cogeo import cog_validate
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from talud.confusion_map import PIXEL_CLASS_COLOURS, PixelClass, classify_pixels
from talud.data.patches import split_blocks
from talud.engine.runtime import Model
from talud.errors import MismatchError, ParamsError, StudyError
from talud.evaluation.comparison import compare_blocks, compare_maps
from talud.evaluation.scores import evaluate
from talud.mapping.options import MapOptions
from talud.measurement.assessment import Assessment
from talud.metrics import Confusion
from talud.products.prediction import predict
from talud.project import Project
from talud.training import export

BIAS, THRESHOLD = -2.0, 0.6
WEIGHTS = np.array([9.0, -4.0, 0.0])[:, np.newaxis, np.newaxis]


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def logistic(project: Project, area: str):
    """Return the small model's probabilities by NumPy."""
    return 1 / (1 + np.exp(-((read(project.stack(area))[:3] * WEIGHTS).sum(axis=0) + BIAS)))


def counted(truth, found, where) -> Confusion:
    """Count by scikit-learn."""
    tn, fp, fn, tp = confusion_matrix(truth[where] == 1, found[where], labels=[False, True]).ravel()
    return Confusion(int(tp), int(fp), int(fn), int(tn))


def confusions(found: tuple[Assessment, ...]) -> tuple[Confusion, ...]:
    return tuple(each.confusion for each in found)


@pytest.mark.slow
def test_compare_blocks_counts_only_blocks_of_the_part(small_project: Project):
    truth, probability = read(small_project.mask("home"))[0], logistic(small_project, "home")
    model = Model.load(small_project.model("3band"))
    blocks = split_blocks(small_project.mask("home"), small_project.params.split, small_project.params.seed)
    for part in ("validation", "test"):
        inside = np.zeros(truth.shape, dtype=bool)
        for block in blocks:
            if block.part == part:
                inside[block.window.toslices()] = True
        where = inside & (truth != 255) & np.isfinite(probability)
        expected = counted(truth, probability >= THRESHOLD, where)
        assert expected.tp > 0
        assert expected.fp + expected.fn > 0
        assert confusions(compare_blocks([model], small_project, ["home"], part)) == (expected,)
        assert confusions(compare_blocks([model], small_project, ["home", "away"], part)) != (expected,)


@pytest.mark.slow
def test_models_are_compared_on_commonly_mapped_pixels(small_project: Project):
    rgb, terrain = (Model.load(small_project.model(band_set)) for band_set in ("3band", "terrain"))
    truth, stack = read(small_project.mask("away"))[0], read(small_project.stack("away"))
    steep = 1 / (1 + np.exp(-(0.08 * stack[3] + BIAS))) >= THRESHOLD
    both = (truth != 255) & np.isfinite(stack).all(axis=0)
    assert both.sum() < (truth != 255).sum() - 1000  # clouds hide pixels that terrain alone would map
    expected = counted(truth, logistic(small_project, "away") >= THRESHOLD, both), counted(truth, steep, both)
    assert confusions(compare_maps([rgb, terrain], small_project, "away")) == expected
    ours, theirs = confusions(compare_blocks([rgb, terrain], small_project, ["away"], "validation"))
    assert (ours.tp + ours.fn, ours.fp + ours.tn) == (theirs.tp + theirs.fn, theirs.fp + theirs.tn)
    assert confusions(compare_blocks([terrain], small_project, ["away"], "validation")) != (theirs,)


def test_evaluate_scores_areas_from_map_files(small_project: Project):
    table = evaluate(small_project, "3band")
    truth = read(small_project.mask("away"))[0]
    mapped = read(small_project.prediction("3band", "away") / "landslides.tif")[0]
    where = (truth != 255) & (mapped != 255)
    expected = counted(truth, mapped == 1, where)
    scores = table.areas["away"]
    assert scores.assessment.confusion == expected
    precision, recall, f1, _ = precision_recall_fscore_support(truth[where], mapped[where], average="binary")
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((precision, recall, f1), abs=1e-6)
    cloud = (truth != 255) & (mapped == 255)
    assert scores.not_mapped_pixels == cloud.sum() > 1000
    assert scores.not_mapped_landslide_pixels == (truth[cloud] == 1).sum() > 0
    assert scores.not_mapped_share == pytest.approx(cloud.sum() / (truth != 255).sum(), abs=1e-6)


@pytest.mark.slow
def test_evaluate_scores_training_areas_by_test_blocks(small_project: Project):
    table = evaluate(small_project, "3band")
    model = Model.load(small_project.model("3band"))
    assert (table.test["home"].assessment.confusion,) == confusions(
        compare_blocks([model], small_project, ["home"], "test")
    )
    assert list(table.areas) == ["away"]
    assert small_project.confusion_map("3band", "home").is_file()
    written = json.loads(small_project.scores("3band").read_text())
    assert written["threshold"] == THRESHOLD
    assert written["areas"]["away"]["role"] == "transfer"
    assert written["test"]["home"]["f1"] == pytest.approx(table.test_assessment.confusion.f1, abs=1e-6)


def test_metrics_file_holds_f1_precision_and_recall(small_project: Project):
    table = evaluate(small_project, "3band")
    counts = table.areas["away"]
    metrics = json.loads(small_project.metrics("3band").read_text())
    assert metrics == {
        "test": {
            name: pytest.approx(table.test_assessment.confusion.scores()[name], abs=1e-6)
            for name in ("f1", "precision", "recall")
        },
        "areas": {
            "away": {
                "precision": pytest.approx(counts.tp / (counts.tp + counts.fp), abs=1e-6),
                "recall": pytest.approx(counts.tp / (counts.tp + counts.fn), abs=1e-6),
                "f1": pytest.approx(2 * counts.tp / (2 * counts.tp + counts.fp + counts.fn), abs=1e-6),
            }
        },
    }


def test_confusion_map_holds_the_four_counts(small_project: Project):
    scores = evaluate(small_project, "3band").areas["away"]
    path = small_project.confusion_map("3band", "away")
    assert cog_validate(path, quiet=True)[0]
    with rasterio.open(path) as raster:
        pixels, colours, tags = raster.read(1), raster.colormap(1), raster.tags()
        assert raster.nodata == 255
        assert all(outcome.label in raster.descriptions[0] for outcome in PixelClass)
    counts = {outcome: int((pixels == outcome).sum()) for outcome in PixelClass}
    assert counts[PixelClass.TRUE_POSITIVE] == scores.tp
    assert counts[PixelClass.FALSE_POSITIVE] == scores.fp
    assert counts[PixelClass.FALSE_NEGATIVE] == scores.fn
    assert counts[PixelClass.TRUE_NEGATIVE] == scores.tn
    assert set(np.unique(pixels)) <= {0, 1, 2, 3, 255}
    assert {value: colours[value] for value in PIXEL_CLASS_COLOURS} == PIXEL_CLASS_COLOURS
    assert tags["CLASS_2"] == "false positive"
    assert tags["TALUD_BAND_SET"] == "3band"


def test_curve_contains_the_scores_at_the_threshold(small_project: Project):
    scores = evaluate(small_project, "3band").areas["away"]
    with small_project.curve("3band", "away").open() as stream:
        rows = {float(row["threshold"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 99
    assert float(rows[THRESHOLD]["f1"]) == pytest.approx(scores.f1, abs=1e-6)
    recalls = [float(row["recall"]) for row in rows.values()]
    assert recalls == sorted(recalls, reverse=True)
    assert small_project.curve("3band", "test").is_file()
    assert not small_project.curve("3band", "home").exists()


def test_evaluate_skips_areas_without_inventory(small_project: Project):
    with rasterio.open(small_project.mask("away"), "r+", IGNORE_COG_LAYOUT_BREAK="YES") as mask:
        mask.write(np.full((1, mask.height, mask.width), 255, np.uint8))
    assert evaluate(small_project, "3band").areas == {}
    assert not small_project.confusion_map("3band", "away").exists()


@pytest.mark.slow
def test_evaluate_is_reproducible_and_reports_progress(small_project: Project):
    evaluate(small_project, "3band")
    before = {path: path.read_bytes() for path in (small_project.root / "evaluation").rglob("*") if path.is_file()}
    reports: list[tuple[int, int]] = []
    evaluate(small_project, "3band", lambda done, total: reports.append((done, total)))
    assert len(before) == 6
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [done for done, _ in reports] == list(range(1, reports[-1][1] + 1))


def test_evaluate_names_a_missing_map_and_keeps_scores(small_project: Project):
    evaluate(small_project, "3band")
    before = small_project.scores("3band").read_bytes()
    (small_project.prediction("3band", "away") / "landslides.tif").unlink()
    with pytest.raises(StudyError, match=r"no map of away; run talud predict models/3band.onnx stacks/away.tif"):
        evaluate(small_project, "3band")
    assert small_project.scores("3band").read_bytes() == before
    with pytest.raises(ParamsError, match="no band set '4band'"):
        evaluate(small_project, "4band")


@pytest.mark.slow
def test_evaluate_refuses_maps_of_other_models_or_thresholds(small_project: Project):
    model, away = Model.load(small_project.model("3band")), small_project.prediction("3band", "away")
    predict(model, small_project.stack("away"), away, MapOptions(threshold=0.3))
    with pytest.raises(MismatchError, match=r"was not made by 3band.onnx with its threshold of 0.6"):
        evaluate(small_project, "3band")
    changed = model.contract.replace(weights="1" * 64)
    predict(dataclasses.replace(model, contract=changed), small_project.stack("away"), away)
    with pytest.raises(MismatchError, match="run talud predict"):
        evaluate(small_project, "3band")
    assert not small_project.scores("3band").exists()


@pytest.mark.slow
def test_evaluate_refuses_maps_with_other_options(small_project: Project):
    """Test-time augmentation gives another map than the default options."""
    model, away = Model.load(small_project.model("3band")), small_project.prediction("3band", "away")
    predict(model, small_project.stack("away"), away, MapOptions(tta=True))
    with pytest.raises(MismatchError, match="and default options; run talud predict"):
        evaluate(small_project, "3band")


@pytest.mark.parametrize(("choice", "words"), [("seed", "seed"), ("split_block", "split.block")])
def test_evaluate_refuses_test_blocks_of_another_split(small_project: Project, choice: str, words: str):
    path, present = small_project.model("3band"), small_project.params.split_hyperparameters
    graph, contract = onnx.load(path), Model.load(path).contract
    export.save_model(graph, contract.replace(hyperparameters={**present, choice: 64}), path)
    with pytest.raises(
        StudyError, match=rf"was trained with {words} 64, but params.yaml states .* run talud train 3band"
    ):
        evaluate(small_project, "3band")
    export.save_model(graph, contract.replace(hyperparameters=present), path)
    assert evaluate(small_project, "3band").test_assessment.confusion.tp > 0


def test_evaluate_refuses_a_changed_inventory(small_project: Project):
    record = small_project.stack_record("home")
    stated = json.loads(record.read_text()) | {"mask_md5": "0" * 32}
    record.write_text(json.dumps(stated))
    with pytest.raises(StudyError, match="other stacks or inventories than the present ones of home"):
        evaluate(small_project, "3band")
    assert not small_project.scores("3band").exists()


def test_evaluate_refuses_models_of_former_training_areas(small_project: Project):
    path = small_project.model("3band")
    contract = Model.load(path).contract.replace(areas=("home", "former"))
    export.save_model(onnx.load(path), contract, path)
    with pytest.raises(
        StudyError, match=r"was trained on former, .* remove stacks/training/former.json and run dvc repro"
    ):
        evaluate(small_project, "3band")


def test_evaluate_refuses_maps_on_another_grid(small_project: Project):
    path = small_project.prediction("3band", "away") / "landslides.tif"
    with rasterio.open(path) as raster:
        profile, pixels = raster.profile, raster.read()
    profile |= {"driver": "GTiff", "transform": Affine.translation(12.5, 0) * profile["transform"]}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(pixels)
    with pytest.raises(MismatchError, match="run talud predict on the current stack again"):
        evaluate(small_project, "3band")
    assert not small_project.scores("3band").exists()


pixels = arrays.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 255]))


@given(mapped=pixels, truth=pixels)
def test_confusion_map_and_assessment_count_pixels_once(mapped, truth):
    outcome, tally = classify_pixels(mapped, truth), Assessment.of_class_map(truth, mapped)
    counts = tally.confusion
    assert (outcome == PixelClass.TRUE_POSITIVE).sum() == counts.tp == ((mapped == 1) & (truth == 1)).sum()
    assert (outcome == PixelClass.FALSE_POSITIVE).sum() == counts.fp
    assert (outcome == PixelClass.FALSE_NEGATIVE).sum() == counts.fn
    assert (outcome == PixelClass.TRUE_NEGATIVE).sum() == counts.tn
    assert tally.pixels == (truth != 255).sum()
    assert tally.landslide_pixels == (truth == 1).sum()
    both = Assessment.of_class_map(truth[:2], mapped[:2]) + Assessment.of_class_map(truth[2:], mapped[2:])
    assert (both.confusion, both.pixels) == (counts, tally.pixels)
    assert (both.not_mapped, both.not_mapped_landslide) == (tally.not_mapped, tally.not_mapped_landslide)
