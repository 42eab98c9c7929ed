"""Tests of migration and round trips of contracts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from talud import load_model
from talud.bands import Group
from talud.contract import (
    METADATA_KEY,
    SCHEMA_VERSION,
    Adaptation,
    BandContract,
    Calibration,
    Contract,
    Derivations,
    FineTuning,
    FlatContract,
    Measurements,
    ModelInput,
    ModelOrigin,
    Validation,
    migrate,
)
from talud.errors import ModelError
from talud.evaluation.registration import fingerprint

RECORDED = Path(__file__).parent / "contracts"
KINDS = sorted(path.stem for path in RECORDED.glob("*.json") if path.stem != "fingerprints")

# Fields that were added after these files were recorded, with the values that they have in them.
LATER = {"pixel_sizes": [], "area_pixel_sizes": {}, "landslide_share": None, "network": None, "memory": None}


def recorded(kind: str) -> str:
    return (RECORDED / f"{kind}.json").read_text().rstrip("\n")


def read(text: str) -> Contract:
    return Contract.from_metadata({METADATA_KEY: text}, "old.onnx")


@pytest.mark.parametrize("kind", KINDS)
def test_migration_keeps_each_field_of_version_1(kind: str) -> None:
    contract = read(recorded(kind))
    assert contract.schema_version == SCHEMA_VERSION
    assert to_json(contract.flat()).decode() == recorded(kind)
    content = json.loads(recorded(kind))
    for name, value in content.items():
        if name != "version":
            (part,) = (
                part for part in ("input", "origin", "measured", "derived") if hasattr(getattr(contract, part), name)
            )
            assert json.loads(to_json(getattr(getattr(contract, part), name))) == value, name


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_of_registered_versions_are_stable(kind: str) -> None:
    assert fingerprint(read(recorded(kind))) == json.loads((RECORDED / "fingerprints.json").read_text())[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_published_form_is_version_1(kind: str) -> None:
    published = FlatContract.of(read(recorded(kind)))
    assert json.loads(published.model_dump_json()) == json.loads(recorded(kind)) | LATER


@pytest.mark.parametrize("kind", KINDS)
def test_migrated_contract_round_trips(kind: str) -> None:
    contract = read(recorded(kind))
    text = contract.to_metadata()[METADATA_KEY]
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
    assert read(text) == contract
    assert migrate(json.loads(text)) == json.loads(text)


def test_recorded_contracts_have_every_field() -> None:
    assert {*json.loads(recorded("every_field")), *LATER} == set(FlatContract.model_fields)
    assert all(json.loads(recorded("every_field")).values())


def test_missing_fields_of_old_contracts_have_defaults() -> None:
    content = json.loads(recorded("every_field"))
    later = {"differences", "subsets", "halo_errors", "parity", "calibration", "validation", "precision", "loss"}
    oldest = {name: value for name, value in content.items() if name not in later | {"version", "adapted", "finetuned"}}
    contract = read(json.dumps(oldest))
    assert contract.input.subsets == contract.input.differences == ()
    assert contract.measured.halo_errors == contract.measured.parity == contract.measured.loss == {}
    assert contract.measured.calibration is contract.measured.validation is None
    assert contract.derived == Derivations()


def test_later_fields_are_written_only_if_set() -> None:
    contract = read(recorded("plain"))
    assert not set(LATER) & set(contract.flat())
    assert not any(name in contract.to_metadata()[METADATA_KEY] for name in LATER)
    size = contract.input.pixel_size
    mixed = contract.replace(pixel_sizes=(size / 4, size), area_pixel_sizes={"here": size / 4, "there": size})
    assert read(mixed.to_metadata()[METADATA_KEY]) == mixed == Contract.model_validate(migrate(mixed.flat()))
    assert fingerprint(mixed) != fingerprint(contract)
    assert mixed.input.pixel_size_range == (size / 4, size)
    assert contract.input.pixel_size_range == (size, size)


@pytest.mark.parametrize("sizes", [(12.5, 3), (3, 3, 12.5), (3, 10), (-3, 12.5)])
def test_impossible_pixel_sizes_are_refused(sizes: tuple[float, ...]) -> None:
    content = json.loads(recorded("plain")) | {"pixel_sizes": sizes, "pixel_size": 12.5}
    with pytest.raises(ModelError, match="its contract is damaged at 'input"):
        read(json.dumps(content))


@pytest.mark.parametrize("change", [{"surprise": 1}, {"version": 2}, {"threshold": 2}])
def test_damaged_version_1_contract_names_the_field(change: dict[str, object]) -> None:
    content = json.loads(recorded("plain")) | change
    with pytest.raises(Exception, match=rf"its contract is damaged at '(measured\.)?{next(iter(change))}'"):
        read(json.dumps(content))


def test_model_file_of_version_1_runs() -> None:
    model = load_model(RECORDED / "subsets_and_calibration.onnx")
    assert model.contract == read(recorded("subsets_and_calibration"))
    assert model.contract.input.band_names == ("slope", "red")
    probability = model.run(np.full((2, 8, 8), 30, np.float32))
    assert probability.shape == (8, 8)
    assert np.isfinite(probability).all()


FINITE = st.floats(-1e6, 1e6)
SHARES = st.floats(0, 1)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
COUNTS = st.integers(0, 10**9)


@st.composite
def bands(draw: st.DrawFn, name: str) -> BandContract:
    low, high = sorted((draw(FINITE), draw(FINITE)))
    edges = sorted(draw(st.lists(FINITE, min_size=2, max_size=4)))
    shares = [draw(SHARES) for _ in edges[1:]]
    histogram = draw(st.sampled_from([{}, {"edges": edges, "shares": shares}]))
    return BandContract(
        name=name,
        group=draw(st.sampled_from(Group)),
        unit=draw(TEXTS),
        lowest=low,
        highest=high,
        mean=draw(FINITE),
        deviation=draw(st.floats(0, 1e6)),
        minimum=low,
        maximum=high,
        **histogram,
    )


@st.composite
def inputs(draw: st.DrawFn) -> ModelInput:
    names = draw(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
    read_bands = tuple(draw(bands(name)) for name in names)
    groups = sorted({band.group for band in read_bands})
    return ModelInput(
        bands=read_bands,
        required_groups=tuple(draw(st.sets(st.sampled_from(groups)))),
        pixel_size=draw(st.floats(1e-3, 1e3)),
        halo=draw(COUNTS),
        alignment=draw(st.integers(1, 4096)),
        stack=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
    )


ORIGINS = st.builds(
    ModelOrigin,
    name=TEXTS, weights=TEXTS, data_version=TEXTS, commit=TEXTS, run_id=TEXTS,
    areas=st.lists(TEXTS, max_size=3).map(tuple),
    hyperparameters=st.dictionaries(TEXTS, FINITE | st.integers(-(10**9), 10**9) | TEXTS, max_size=3),
)  # fmt: skip
MEASUREMENTS = st.builds(
    Measurements,
    threshold=st.floats(0, 1, exclude_min=True, exclude_max=True),
    scores=st.dictionaries(TEXTS, FINITE, max_size=3),
    halo_errors=st.dictionaries(COUNTS, SHARES, max_size=3),
    parity=st.dictionaries(st.sampled_from(["difference", "allowed"]), st.floats(0, 1)),
    calibration=st.none()
    | st.builds(
        Calibration, slope=st.floats(1e-3, 10), offset=FINITE, error_before=SHARES, error_after=SHARES, declined=TEXTS
    ),
    validation=st.none()
    | st.builds(
        Validation, tp=COUNTS, fp=COUNTS, fn=COUNTS, tn=COUNTS, blocks=COUNTS,
        design_effects=st.tuples(st.floats(1, 1e3), st.floats(1, 1e3)), correlation=st.floats(-1, 1),
    ),
    loss=st.dictionaries(TEXTS, FINITE, max_size=3),
)  # fmt: skip
DERIVATIONS = st.builds(
    Derivations,
    precision=st.sampled_from(["float32", "float16", "int8"]),
    adapted=st.sampled_from([None, Adaptation.model_validate(json.loads(recorded("adapted"))["adapted"])]),
    finetuned=st.sampled_from([None, FineTuning.model_validate(json.loads(recorded("finetuned"))["finetuned"])]),
)


@pytest.mark.slow
@given(st.builds(Contract, input=inputs(), origin=ORIGINS, measured=MEASUREMENTS, derived=DERIVATIONS))
def test_any_contract_round_trips_in_both_forms(contract: Contract) -> None:
    assert Contract.from_metadata(contract.to_metadata(), "new.onnx") == contract
    assert read(to_json(contract.flat()).decode()) == contract
    assert read(FlatContract.of(contract).model_dump_json()) == contract
