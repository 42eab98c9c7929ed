from __future__ import annotations

import json

import pytest

from talud.bands import Group
from talud.contract import (
    METADATA_KEY,
    BandContract,
    Calibration,
    Contract,
    FineTuning,
    Measurements,
    ModelInput,
    ModelOrigin,
    Validation,
)
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
    return Contract(
        input=ModelInput(
            bands=(slope,),
            required_groups=(Group.TERRAIN,),
            pixel_size=12.5,
            halo=112,
            alignment=16,
            stack={"slope": "horn"},
        ),
        origin=ModelOrigin(
            name="terrain",
            weights="0" * 64,
            data_version="abc",
            areas=("here",),
            commit="def",
            run_id="1",
            hyperparameters={"filters": 16},
        ),
        measured=Measurements(threshold=0.5, scores={"f1": 0.7}),
    )


def read(content: object) -> Contract:
    return Contract.from_metadata({METADATA_KEY: json.dumps(content)}, "a.onnx")


def test_contract_survives_a_file_round_trip() -> None:
    assert Contract.from_metadata(contract().to_metadata(), "a.onnx") == contract()


def test_training_share_falls_back_to_validation_counts() -> None:
    counts = Validation(tp=30, fp=5, fn=10, tn=955, blocks=8, design_effects=(1, 1), correlation=0)
    tuned = FineTuning(
        weights="0",
        model="terrain",
        version="1",
        area="there",
        labels="0",
        patches=2,
        cells=((0, 0), (0, 16)),
        side=16,
        landslide_pixels=128,
        seed=1,
        steps=1,
        learning_rate=0.1,
        recipe="study",
        rehearsed=(),
        f1_before=None,
        f1_after=None,
    )
    assert contract().training_share is None
    assert contract().replace(validation=counts).training_share == 0.04
    assert contract().replace(validation=counts, landslide_share=0.1).training_share == 0.1
    assert contract().replace(landslide_share=0.1, finetuned=tuned).training_share == 0.25
    assert contract().replace(landslide_share=0.3, finetuned=tuned).training_share == 0.3


def test_file_without_a_contract_is_refused_with_advice() -> None:
    with pytest.raises(ModelError, match=r"a\.onnx: contains no talud contract"):
        Contract.from_metadata({"author": "me"}, "a.onnx")


def test_optional_measurements_round_trip_and_may_be_missing() -> None:
    known = {
        "halo_errors": {0: 0.5, 16: 0.031},
        "calibration": Calibration(slope=0.05, offset=-1.5, error_before=0.03, error_after=0.01),
        "validation": Validation(tp=5, fp=2, fn=1, tn=90, blocks=3, design_effects=(40.0, 10.0), correlation=0.5),
    }
    stated = contract().replace(**known)
    content = json.loads(stated.to_metadata()[METADATA_KEY])
    assert read(content) == stated
    assert stated.measured.halo_errors == known["halo_errors"]
    for name in known:
        del content["measured"][name]
    assert read(content) == contract()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("measured", {"threshold": 2}),
        ("input", {"halo": -1}),
        ("input", {"bands": None}),
        ("origin", {"surprise": 1}),
        ("measured", {"calibration": {"slope": 0, "offset": 0, "error_before": 0, "error_after": 0}}),
        ("measured", {"halo_errors": {"16": -1}}),
        ("measured", {"halo_errors": {"16": "NaN"}}),
        ("measured", {"halo_errors": {"-8": 0.5}}),
        ("input", {"differences": [{"bands": ["red", "green"], "edges": [1, 0], "shares": [1]}]}),
    ],
)
def test_damaged_contract_is_refused_with_the_field(part: str, change: dict[str, object]) -> None:
    content = json.loads(contract().to_metadata()[METADATA_KEY])
    content[part] |= change
    with pytest.raises(ModelError, match=rf"damaged at '{part}\.{next(iter(change))}\b"):
        read(content)


def test_replace_refuses_unknown_fields_and_invalid_values() -> None:
    assert contract().replace(threshold=0.25, precision="int8").measured.threshold == 0.25
    with pytest.raises(ValueError, match="surprise"):
        contract().replace(surprise=1)
    with pytest.raises(ValueError, match="threshold"):
        contract().replace(threshold=2)


@pytest.mark.parametrize("content", [[], 1, "trust me", {}, {"schema_version": "2"}, {"schema_version": True}])
def test_other_json_content_is_a_damaged_contract(content: object) -> None:
    with pytest.raises(ModelError, match=r"a\.onnx: its contract is damaged"):
        read(content)


def test_newer_contract_is_refused_in_one_line() -> None:
    content = json.loads(contract().to_metadata()[METADATA_KEY]) | {"schema_version": 3, "surprise": 1}
    with pytest.raises(ModelError) as caught:
        read(content)
    assert str(caught.value) == (
        "a.onnx: its contract has schema version 3, and this talud supports versions up to 2; "
        "install a newer talud, or export the model with this one"
    )
