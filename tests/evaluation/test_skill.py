"""Tests of models that are no better than a constant map."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from small_projects import EVERYTHING, SOMETHING, pixels, write_area, write_model, write_params
from talud.contract import Validation
from talud.engine.runtime import Model
from talud.errors import PromotionError
from talud.evaluation import gate, promotion, report
from talud.evaluation.results import BandSetResult, Scores, ScoreTable
from talud.evaluation.scores import evaluate
from talud.measurement.assessment import Assessment
from talud.metrics import Confusion, lack_of_skill
from talud.project import Project


def counted(tp: int, fp: int, fn: int, tn: int) -> Validation:
    return Validation(tp=tp, fp=fp, fn=fn, tn=tn, blocks=8, design_effects=(1, 1), correlation=0)


ALL_LANDSLIDE, ALL_BACKGROUND, SKILLED = counted(100, 900, 0, 0), counted(0, 0, 100, 900), counted(80, 40, 20, 860)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((100, 900, 0, 0), "no better than calling everything a landslide: F1 0.182 against 0.182"),
        ((99, 880, 1, 20), "no better than calling everything a landslide: F1 0.184 against 0.182"),
        ((5, 45, 95, 855), "no better than calling everything a landslide: F1 0.067 against 0.182"),
        ((0, 0, 100, 900), "no better than calling nothing a landslide: F1 0.000"),
        ((0, 30, 100, 870), "no better than calling nothing a landslide: F1 0.000"),
        ((80, 40, 20, 860), ""),
        ((0, 0, 0, 1000), ""),  # no landslide, so skill is unknown
        ((1000, 0, 0, 0), ""),
        ((0, 0, 0, 0), ""),
    ],
)
def test_lack_of_skill_compares_f1_with_constant_maps(counts: tuple[int, ...], words: str) -> None:
    assert lack_of_skill(Confusion(*counts)) == words


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = write_params(tmp_path / "3band")
    rows, _ = np.indices((128, 128))
    write_area(found, "basin", rows % 10 == 0)
    return found


register = partial(promotion.register, band_set="3band")
NAME = "landslide-unet-3band"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": ALL_LANDSLIDE}, "no better than calling everything a landslide: F1 0.182 against 0.182"),
        ({"validation": ALL_BACKGROUND}, "no better than calling nothing a landslide: F1 0.000"),
        (
            {"scores": {"precision": 0.1, "recall": 1.0, "f1": 0.18, "iou": 0.1, "mcc": 0.0}},
            "than a constant map",
        ),
        (
            {"scores": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "iou": 0.0}},
            "than a constant map: F1 0.000",
        ),
    ],
)
def test_model_without_skill_does_not_become_champion(
    project: Project, tiny_model: Path, changes: dict[str, object], words: str
) -> None:
    write_model(project, tiny_model, SOMETHING, **changes)
    done = register(project)
    assert done.alias == "challenger"
    assert words in done.reason
    assert done.file_faults == ""  # a result of training, not a fault of the file
    assert [words in warning for warning in done.warnings] == [True]
    with pytest.raises(PromotionError, match="does not pass the gate: skill: on the validation blocks no better than"):
        promotion.promote(project, NAME, "1")
    allowed = write_params(project.root, {"require_skill": False})
    assert promotion.promote(allowed, NAME, "1").alias == "champion"


@pytest.mark.slow
def test_model_with_skill_becomes_champion(project: Project, tiny_model: Path) -> None:
    write_model(project, tiny_model, SOMETHING, validation=SKILLED)
    done = register(project)
    assert (done.alias, done.warnings) == ("champion", ())


@pytest.mark.slow
def test_model_without_skill_on_gate_area_stays_challenger(project: Project, tiny_model: Path) -> None:
    project = write_params(project.root, gate={"role": "gate", "folder": "data/gate"})
    model = Model.load(write_model(project, tiny_model, SOMETHING, validation=SKILLED))
    write_area(project, "gate", model.probability(pixels(96, 96)) < SOMETHING)  # all pixels that it does not map
    done = register(project)
    assert done.alias == "challenger"
    assert "skill on gate: no better than calling nothing a landslide: F1 0.000" in done.reason


@pytest.mark.slow
def test_challenger_does_not_win_on_few_blocks(project: Project, tiny_model: Path) -> None:
    write_model(project, tiny_model, SOMETHING)
    model = Model.load(project.model("3band"))
    register(project)
    write_area(project, "basin", model.probability(pixels(64, 64)) >= model.contract.measured.threshold - 0.1)
    write_model(project, tiny_model, SOMETHING - 0.1)  # right everywhere, on two blocks
    done = register(project)
    assert done.gate.f1[gate.VALIDATION_BLOCKS]["model"] > done.gate.f1[gate.VALIDATION_BLOCKS]["champion"]
    assert done.alias == "challenger"
    assert f"{done.gate.blocks} blocks, but at least {gate.MINIMUM_GATE_BLOCKS} are needed" in done.reason
    assert 0 < done.gate.blocks < gate.MINIMUM_GATE_BLOCKS
    assert promotion.promote(project, NAME, "2").alias == "champion"  # a person may


def test_registration_warns_of_areas_without_skill(small_project: Project) -> None:
    evaluate(small_project, "3band")
    path = small_project.scores("3band")
    table = ScoreTable.read(path)
    none = Scores.of(Assessment((Confusion(0, 10, 100, 890),)), "transfer")
    table.model_copy(update={"areas": {"away": none}}).write(path)
    contract = Model.load(small_project.model("3band")).contract
    assert promotion._warnings(small_project, contract) == (
        "on away no better than calling nothing a landslide: F1 0.000",
    )


def test_summary_states_a_lack_of_skill(small_project: Project) -> None:
    evaluate(small_project, "3band")
    result = BandSetResult.read(small_project, "3band")
    home, away = (Scores.of(Assessment((Confusion(tp, 1000 - tp, 0, 0),)), "transfer") for tp in (100, 120))
    scores = result.scores.model_copy(update={"test": {"home": home}, "areas": {"away": away}})
    sentences = report.summary_sentences([replace(result, scores=scores)], ["away"])
    assert not any("costs" in sentence for sentence in sentences)
    assert sentences[0] == (
        "3band shows no skill: on the test blocks of the training areas it is no better than calling everything a "
        "landslide: F1 0.182 against 0.182."
    )
    assert "on away it is no better than calling everything a landslide: F1 0.214" in sentences[1]
    skilled = report.summary_sentences([result], ["away"])
    assert any("Transfer to away" in sentence for sentence in skilled)


def test_map_of_only_landslide_lacks_skill(project: Project, tiny_model: Path) -> None:
    model = Model.load(write_model(project, tiny_model, EVERYTHING))
    truth = np.indices((128, 128))[0] % 10 == 0
    mapped = model.probability(pixels(128, 128)) >= EVERYTHING
    tp, fp = int((mapped & truth).sum()), int((mapped & ~truth).sum())
    assert lack_of_skill(Confusion(tp, fp, int(truth.sum()) - tp, int((~truth).sum()) - fp)).startswith("no better")
