from __future__ import annotations

import json

import pytest

from talud.bands import Group
from talud.contract import METADATA_KEY, BandContract, Calibration, Contract, Validation
from talud.errors import ModelError


def contract() -> Contract:
    slope = BandContract(
        name="slope",
        group=Group.TERRAIN,
        unit="degree",
        lowest=0,
        highest=90,
        mean=30,
        deviation=10,
        minimum=0,
        maximum=80,
    )
    return Contract.model_validate(
        dict.fromkeys(())
        | {
            "name": "terrain",
            "bands": (slope,),
            "required_groups": (Group.TERRAIN,),
            "pixel_size": 12.5,
            "halo": 112,
            "alignment": 16,
            "threshold": 0.5,
            "stack": {"slope": "horn"},
            "weights": "0" * 64,
            "data_version": "abc",
            "areas": ("here",),
            "commit": "def",
            "run_id": "1",
            "hyperparameters": {"filters": 16},
            "scores": {"f1": 0.7},
        }
    )


def test_a_contract_survives_the_way_through_a_file() -> None:
    assert Contract.from_metadata(contract().to_metadata(), "a.onnx") == contract()


def test_a_file_without_a_contract_is_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"a\.onnx: carries no talud contract"):
        Contract.from_metadata({"author": "me"}, "a.onnx")


def test_errors_of_smaller_halos_are_read_again_and_may_be_missing() -> None:
    assert contract().halo_errors == {}
    measured = contract().model_copy(update={"halo_errors": {0: 0.5, 16: 0.031}})
    assert Contract.from_metadata(measured.to_metadata(), "a.onnx").halo_errors == {0: 0.5, 16: 0.031}
    older = json.loads(contract().to_metadata()[METADATA_KEY])
    del older["halo_errors"]
    assert Contract.from_metadata({METADATA_KEY: json.dumps(older)}, "a.onnx") == contract()


def test_calibration_and_counts_are_read_again_and_may_be_missing() -> None:
    line = Calibration(slope=0.05, offset=-1.5, error_before=0.03, error_after=0.01)
    counts = Validation(tp=5, fp=2, fn=1, tn=90, blocks=3, design_effects=(40.0, 10.0), correlation=0.5)
    stated = contract().model_copy(update={"calibration": line, "validation": counts})
    assert Contract.from_metadata(stated.to_metadata(), "a.onnx") == stated
    older = json.loads(stated.to_metadata()[METADATA_KEY])
    del older["calibration"], older["validation"]
    assert Contract.from_metadata({METADATA_KEY: json.dumps(older)}, "a.onnx") == contract()


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 2},
        {"halo": -1},
        {"bands": None},
        {"surprise": 1},
        {"calibration": {"slope": 0, "offset": 0, "error_before": 0, "error_after": 0}},
        {"halo_errors": {"16": -1}},
        {"halo_errors": {"16": "NaN"}},
        {"halo_errors": {"-8": 0.5}},
        {"differences": [{"bands": ["red", "green"], "edges": [1, 0], "shares": [1]}]},
    ],
)
def test_a_damaged_contract_is_refused_and_the_place_named(change: dict[str, object]) -> None:
    content = json.loads(contract().to_metadata()[METADATA_KEY]) | change
    with pytest.raises(ModelError, match=rf"damaged at '{next(iter(change))}\b"):
        Contract.from_metadata({METADATA_KEY: json.dumps(content)}, "a.onnx")
