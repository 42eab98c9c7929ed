"""Tests of the estimate of the landslide area."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from chromium import chromium, open_page
from stack_files import noise, write_stack
from talud.cli import maps
from talud.contract import Contract, Validation
from talud.engine.runtime import Model
from talud.mapping.domain import DomainVerdict
from talud.mapping.options import MapOptions
from talud.measurement.assessment import Assessment
from talud.metrics import Confusion
from talud.products.area_estimate import AreaEstimate, estimate_area
from talud.products.prediction import Prediction, predict

BLOCKS = Confusion(300, 60, 90, 3550), Confusion(100, 80, 10, 3810), Confusion(0, 20, 40, 3940)


@pytest.fixture(scope="module")
def validated_model(model: Model) -> Model:
    """Return a model that states its errors on the validation blocks."""
    return replace(model, contract=model.contract.replace(validation=Assessment(BLOCKS).validation))


def make_map(model: Model, folder: Path, **options: float) -> Prediction:
    values = noise(60, 80)
    values[0, :12] = np.nan
    return predict(model, write_stack(folder / "s.tif", values), folder / "out", MapOptions(**options))


def test_blocks_without_pixels_are_not_counted() -> None:
    unmapped = Assessment.of(np.zeros((2, 3), np.uint8), np.full((2, 3), np.nan, np.float32), 0.5)
    known = (Assessment(BLOCKS) + unmapped).validation
    assert (known.tp, known.fp, known.fn, known.tn, known.blocks) == (400, 160, 140, 11300, 3)
    assert min(known.design_effects) > 10  # errors within a block are correlated
    assert Assessment().validation == Validation(tp=0, fp=0, fn=0, tn=0, blocks=0, design_effects=(1, 1), correlation=0)


def test_estimate_corrects_for_omissions_and_false_alarms(validated_model: Model) -> None:
    found = estimate_area(
        validated_model.contract, landslide=1_000, background=9_000, pixel_area=100, verdict=DomainVerdict.LIKE
    )
    assert found is not None
    assert found.m2 == pytest.approx(100 * (1_000 * 400 / 560 + 9_000 * 140 / 11_440))
    assert 0 <= found.low_m2 < found.m2 < found.high_m2 <= 1_000_000
    assert found.doubt == ""


def test_estimate_repeats_doubts_of_the_domain_report(validated_model: Model) -> None:
    def doubt(verdict: DomainVerdict) -> str:
        found = estimate_area(validated_model.contract, 10, 90, 100, verdict)
        assert found is not None
        return found.sentence

    assert doubt(DomainVerdict.LIKE).endswith("if the model errs here as on its validation blocks")
    assert doubt(DomainVerdict.FAR).endswith("; it does not hold here because this area is far from the training areas")
    assert "does not hold here" in doubt(DomainVerdict.DIFFERS)
    assert "may not hold" in doubt(DomainVerdict.NO_HISTOGRAM)


def test_estimate_is_printed_recorded_and_on_the_page(
    validated_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = make_map(validated_model, tmp_path)
    maps.print_summary(outcome, validated_model, tmp_path / "out", "stack.tif")
    assert capsys.readouterr().out.splitlines()[-1] == (outcome.estimate and outcome.estimate.sentence)
    with rasterio.open(tmp_path / "out/landslides.tif") as raster:
        classes, pixel = raster.read(1), abs(raster.transform.determinant)
    expected = estimate_area(
        validated_model.contract,
        int((classes == 1).sum()),
        int((classes == 0).sum()),
        pixel,
        DomainVerdict.NO_HISTOGRAM,
    )
    assert expected is not None
    assert outcome.estimate == expected
    record = json.loads((tmp_path / "out/prediction.json").read_text())["landslide_area_estimate"]
    assert record.pop("measure").startswith("stratified estimator")
    assert AreaEstimate(**record) == expected
    html = " ".join((tmp_path / "out/summary.html").read_text(encoding="utf-8").split())
    assert f"Estimated landslide area: {outcome.estimate.m2 / 1e4:,.1f} ha" in html
    assert "if the model errs here as on its validation blocks" in html
    assert "It may not hold here because the model" in html


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1200, 900), (400, 800)])
def test_estimate_has_space_below_the_figures(validated_model: Model, tmp_path: Path, size: tuple[int, int]) -> None:
    make_map(validated_model, tmp_path)
    with chromium() as browser, open_page(browser, (tmp_path / "out/summary.html").as_uri(), size) as tab:
        gap = tab.evaluate(
            "document.querySelector('.figures + p').getBoundingClientRect().top"
            " - document.querySelector('.figures').getBoundingClientRect().bottom"
        )
    # As much as between the rows of figures, or more.
    assert gap >= 16


@pytest.mark.slow
def test_minimum_area_does_not_change_the_estimate(validated_model: Model, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "large").mkdir()
    every, large = (
        make_map(validated_model, tmp_path / "all"),
        make_map(validated_model, tmp_path / "large", minimum_area=10_000),
    )
    assert large.landslide_area_m2 < every.landslide_area_m2
    assert large.estimate == every.estimate is not None


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"threshold": 0.4}, {"tta": True}, {"tile": 32, "halo": 8}])
def test_map_with_other_settings_has_no_estimate(
    validated_model: Model, tmp_path: Path, options: dict[str, float]
) -> None:
    assert make_map(validated_model, tmp_path, **options).estimate is None
    assert "landslide_area_estimate" not in json.loads((tmp_path / "out/prediction.json").read_text())
    assert "Estimated" not in (tmp_path / "out/summary.html").read_text(encoding="utf-8")


def test_model_without_counts_gives_no_estimate(model: Model, tmp_path: Path) -> None:
    older = json.loads(next(iter(model.contract.to_metadata().values())))
    del older["measured"]["validation"], older["measured"]["calibration"]
    contract = Contract.model_validate(older)
    assert contract.measured.validation is contract.measured.calibration is None
    assert estimate_area(contract, 10, 90, 100, DomainVerdict.LIKE) is None
    assert make_map(model, tmp_path).estimate is None


@pytest.mark.parametrize("blocks", [BLOCKS[:1], (Confusion(tn=50), Confusion(fn=3, tn=50))])
def test_too_few_blocks_or_pixels_give_no_estimate(model: Model, blocks: tuple[Confusion, ...]) -> None:
    contract = model.contract.replace(validation=Assessment(blocks).validation)
    assert estimate_area(contract, 10, 90, 100, DomainVerdict.LIKE) is None
