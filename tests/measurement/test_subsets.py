"""Tests of models that map with a subset of their band groups."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from stack_files import noise, window_probabilities, write_stack
from talud.bands import OCCLUSION_MASKS, Group
from talud.contract import METADATA_KEY, Contract, Subset
from talud.engine.coverage import available_groups, compute_coverage, describe_code, unmapped_codes
from talud.engine.runtime import Model
from talud.errors import MismatchError, ModelError
from talud.mapping.options import MapOptions
from talud.mapping.reader import open_stack
from talud.measurement import subsets
from talud.measurement.assessment import Assessment
from talud.measurement.sites import Site
from talud.metrics import Confusion, confusion
from talud.params import SplitOptions
from talud.products.prediction import predict

OPTICAL, TERRAIN, SAR = Group.OPTICAL, Group.TERRAIN, Group.SAR
BANDS = ("red", "green", "blue", "slope", "curvature", "vv_pre", "vv_post")
PLACES = {OPTICAL: [0, 1, 2], TERRAIN: [3, 4], SAR: [5, 6]}
ALL = [chosen for count in (3, 2, 1) for chosen in itertools.combinations((OPTICAL, TERRAIN, SAR), count)]


def stated(*supported: tuple[Group, ...]) -> tuple[Subset, ...]:
    return tuple(
        Subset(groups=groups, precision=0.5, recall=0.5, f1=0.2 * len(groups), supported=groups in supported)
        for groups in ALL
    )


def shared(*supported: tuple[Group, ...]) -> tuple[Group, ...]:
    return tuple(group for group in (OPTICAL, TERRAIN, SAR) if all(group in groups for groups in supported))


@pytest.fixture(scope="module")
def model(exporter) -> Model:
    """Model that needs optical bands, or terrain and SAR."""
    supported = ((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN), (OPTICAL, SAR), (TERRAIN, SAR), (OPTICAL,))
    return Model.load(
        exporter(2, BANDS, shared(*supported), subsets=stated(*supported), stack={"slope": "horn"}, threshold=0.5)
    )


def values(height: int = 40, width: int = 70) -> np.ndarray:
    """Return values that are plausible for every band."""
    return noise(height, width, len(BANDS)) * np.float32(0.3)


def products(out: Path) -> dict[str, bytes]:
    return {name: rasterio.open(out / name).read().tobytes() for name in ("probability.tif", "landslides.tif")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacking", "left"), [((TERRAIN, SAR), (OPTICAL,)), ((SAR,), (OPTICAL, TERRAIN)), ((OPTICAL,), (TERRAIN, SAR))]
)
def test_missing_groups_are_mapped_like_nan_groups(
    model: Model, tmp_path: Path, lacking: tuple[Group, ...], left: tuple[Group, ...]
) -> None:
    whole = values()
    whole[[place for group in lacking for place in PLACES[group]]] = np.nan
    rest = [place for group in left for place in PLACES[group]]
    order = rest[::-1]
    full = write_stack(tmp_path / "full.tif", whole, BANDS)
    part = write_stack(tmp_path / "part.tif", whole[order], [BANDS[place] for place in order])
    first, second = predict(model, full, tmp_path / "a", MapOptions(tile=16)), predict(model, part, tmp_path / "b")
    assert products(tmp_path / "a") == products(tmp_path / "b")
    assert np.isfinite(rasterio.open(tmp_path / "b" / "probability.tif").read()).all()
    for found in (first, second):
        (reduced,) = found.reduced
        assert (reduced.groups, reduced.pixels, reduced.f1) == (left, 40 * 70, pytest.approx(0.2 * len(left)))
        assert (found.share_reduced, found.not_mapped) == (1, {})
    written = json.loads((tmp_path / "b" / "prediction.json").read_text())
    assert written["reduced"][0]["groups"] == [str(group) for group in left]
    summary = (tmp_path / "b" / "summary.html").read_text()
    assert f"use only {' + '.join(left)}" in summary


@pytest.mark.slow
def test_incomplete_group_counts_as_missing(model: Model, tmp_path: Path) -> None:
    full = values()
    part = write_stack(tmp_path / "part.tif", full[:6], BANDS[:6])
    none = write_stack(tmp_path / "none.tif", full[:5], BANDS[:5])
    with open_stack(part, model.contract) as found:
        assert found.info.missing_groups == (SAR,)
    predict(model, part, tmp_path / "a")
    predict(model, none, tmp_path / "b")
    assert products(tmp_path / "a") == products(tmp_path / "b")


def test_predict_refuses_unsupported_subsets_with_options(model: Model, tmp_path: Path) -> None:
    raster = write_stack(tmp_path / "slope.tif", values()[3:5], BANDS[3:5])
    with pytest.raises(
        MismatchError, match=r"has no band red, .* or all bands of optical \+ terrain or .* or optical;"
    ):
        predict(model, raster, tmp_path / "map")
    assert not (tmp_path / "map").exists()


def test_available_bands_are_checked_against_the_contract(model: Model, tmp_path: Path) -> None:
    wrong = write_stack(tmp_path / "s.tif", values()[:5], BANDS[:5], units=["DN"] * 3 + ["percent", "1/100m"])
    with pytest.raises(MismatchError, match="'slope' is in percent"):
        predict(model, wrong, tmp_path / "map")
    other = write_stack(tmp_path / "o.tif", values()[:5], BANDS[:5], tags={"TALUD_SLOPE": "zevenbergen_thorne"})
    with pytest.raises(MismatchError, match="was made with slope"):
        predict(model, other, tmp_path / "map")
    left = write_stack(tmp_path / "l.tif", values()[:3], BANDS[:3], tags={"TALUD_SLOPE": "zevenbergen_thorne"})
    predict(model, left, tmp_path / "map")  # no slope is read


@pytest.mark.slow
def test_tiling_is_exact_under_partial_cloud(model: Model, tmp_path: Path) -> None:
    cloudy = values(90, 120)
    cloudy[:3, :, 61:] = np.nan
    cloudy[5, 20:30] = np.nan  # one SAR band: the whole group is missing there
    cloud = np.zeros((1, 90, 120), np.float32)
    cloud[0, :, 61:] = 1
    raster = write_stack(tmp_path / "s.tif", np.concatenate([cloudy, cloud]), (*BANDS, "cloud"))
    found = predict(model, raster, tmp_path / "a", MapOptions(tile=24))
    predict(model, raster, tmp_path / "b")
    assert products(tmp_path / "a") == products(tmp_path / "b")
    probability = rasterio.open(tmp_path / "a" / "probability.tif").read(1)
    radar, clouded = np.isnan(cloudy[5]), np.isnan(cloudy[0])
    cloudy[6, 20:30] = np.nan
    expected = model.probability(cloudy)
    both = radar & clouded  # terrain alone is not supported
    np.testing.assert_array_equal(np.isnan(probability), both)
    np.testing.assert_array_equal(probability[~both], expected[~both])
    assert found.not_mapped == {"cloud and no data: vv_pre": 10 * 59}
    assert {(one.groups, one.why): one.pixels for one in found.reduced} == {
        ((TERRAIN, SAR), "cloud"): 80 * 59,
        ((OPTICAL, TERRAIN), "no data: vv_pre"): 10 * 61,
    }
    assert found.share_reduced == pytest.approx((80 * 59 + 10 * 61) / (90 * 120 - 10 * 59))
    assert json.loads((tmp_path / "a" / "prediction.json").read_text())["share_reduced"] == found.share_reduced


@pytest.mark.slow
def test_area_is_not_estimated_from_partial_groups(model: Model, tmp_path: Path) -> None:
    counts = Assessment((Confusion(300, 60, 90, 3550), Confusion(100, 80, 10, 3810))).validation
    counted = replace(model, contract=model.contract.replace(validation=counts))
    pixels = values()
    pixels[:, 3, 3] = np.nan  # not mapped
    whole = predict(counted, write_stack(tmp_path / "whole.tif", pixels, BANDS), tmp_path / "a")
    assert whole.estimate is not None
    pixels[0, 5, 5] = np.nan
    reduced = predict(counted, write_stack(tmp_path / "reduced.tif", pixels, BANDS), tmp_path / "b")
    assert sum(one.pixels for one in reduced.reduced) == 1
    assert reduced.estimate is None
    assert "landslide_area_estimate" not in json.loads((tmp_path / "b/prediction.json").read_text())


def test_scored_pixels_equal_mapped_pixels(model: Model, tmp_path: Path) -> None:
    cloudy = values()
    cloudy[:3, :10] = np.nan
    cloudy[5:, 5:15] = np.nan
    raster = write_stack(tmp_path / "s.tif", cloudy, BANDS)
    (probability,) = window_probabilities(model, raster, [Window(0, 0, 70, 40)])
    predict(model, raster, tmp_path / "map")
    mapped = rasterio.open(tmp_path / "map" / "landslides.tif").read(1) != 255
    np.testing.assert_array_equal(np.isfinite(probability), mapped)
    assert np.flatnonzero(~mapped.all(axis=1)).tolist() == [5, 6, 7, 8, 9]


def test_score_subsets_uses_the_same_pixels(model: Model, tmp_path: Path) -> None:
    stack, truth = values(), (np.random.default_rng(3).random((40, 70)) < 0.4).astype(np.uint8)
    stack[0, :7] = np.nan
    truth[:, :4] = 255
    raster = write_stack(tmp_path / "s.tif", stack, BANDS)
    mask = write_stack(tmp_path / "m.tif", truth[np.newaxis].astype(np.float32), ("landslide",))
    sites = [Site("here", raster, mask, SplitOptions(), seed=0)]
    found = subsets.score_subsets(model, sites, (TERRAIN, SAR), 0.1, part=None)
    assert [one.groups for one in found] == ALL
    for one in found:
        alone = np.full_like(stack, np.nan)
        members = [place for group in one.groups for place in PLACES[group]]
        alone[members] = stack[members]
        alone[:3, :7] = np.nan  # the whole group, where one of its bands is missing
        counts = confusion(model.probability(alone)[7:] >= 0.5, truth[7:])
        assert (one.precision, one.recall, one.f1) == (counts.precision, counts.recall, counts.f1)
        assert one.supported == (OPTICAL in one.groups and one.f1 >= found[0].f1 - 0.1)
    none = subsets.score_subsets(model, sites, (), 1, part=None)
    assert [one.groups for one in none if one.supported] == [(OPTICAL, TERRAIN, SAR)]
    assert subsets.required_groups(none) == (OPTICAL, TERRAIN, SAR)


def with_subsets(model: Model, *supported: tuple[Group, ...]) -> Contract:
    return model.contract.replace(subsets=stated(*supported), required_groups=shared(*supported))


@pytest.mark.parametrize(
    ("supported", "absent", "shades", "why_not", "left"),
    [
        (((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN)), (), (), None, None),
        (((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN)), (SAR,), (), None, (OPTICAL, TERRAIN)),
        (((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN)), (OPTICAL,), (), "no data: red, green, blue", None),
        # SAR is not a reason, because it is optional
        (((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN)), (OPTICAL, SAR), ("cloud",), "cloud", None),
        (
            ((OPTICAL, TERRAIN, SAR), (OPTICAL, TERRAIN), (TERRAIN, SAR)),
            (OPTICAL, SAR),
            ("cloud",),
            "cloud and no data: vv_pre, vv_post",
            None,
        ),
        (
            ((OPTICAL, TERRAIN, SAR), (OPTICAL,)),
            (TERRAIN,),
            (),
            "no data: slope, curvature",
            None,
        ),  # as stated: OPTICAL + SAR was not measured
        (ALL, (OPTICAL, TERRAIN), ("cloud",), None, (SAR,)),
        (ALL, (OPTICAL, TERRAIN, SAR), (), "no data: red, green, blue, slope, curvature, vv_pre, vv_post", None),
    ],
)
def test_coverage_requires_a_supported_subset(
    model: Model,
    supported: tuple[tuple[Group, ...], ...],
    absent: tuple[Group, ...],
    shades: tuple[str, ...],
    why_not: str | None,
    left: tuple[Group, ...] | None,
) -> None:
    contract = with_subsets(model, *supported)
    stack = np.zeros((len(BANDS), 1, 2), np.float32)
    stack[[place for group in absent for place in PLACES[group]], 0, 1] = np.nan
    hidden = {name: np.array([[False, name in shades]]) for name in OCCLUSION_MASKS}
    found = compute_coverage(stack, contract, hidden)
    assert found.partial is not None
    assert found.unmapped[0, 0] == found.partial[0, 0] == 0
    code, lessened = int(found.unmapped[0, 1]), int(found.partial[0, 1])
    assert (describe_code(code, contract) if code else None) == why_not
    assert (available_groups(lessened, contract) if lessened else None) == left
    np.testing.assert_array_equal(unmapped_codes(stack, contract, hidden), found.unmapped)


def test_model_without_subsets_has_no_partial_coverage(model: Model) -> None:
    whole = model.contract.without_optional_groups()
    stack = np.zeros((len(BANDS), 1, 2), np.float32)
    stack[5, 0, 1] = np.nan
    found = compute_coverage(stack, whole)
    assert found.partial is None
    assert describe_code(int(found.unmapped[0, 1]), whole) == "no data: vv_pre"


def test_subsets_survive_a_file_and_default_in_old_files(model: Model) -> None:
    assert Contract.from_metadata(model.contract.to_metadata(), "a.onnx") == model.contract
    older = json.loads(model.contract.to_metadata()[METADATA_KEY])
    del older["input"]["subsets"]
    older["input"]["required_groups"] = ["optical", "terrain"]
    contract = Contract.from_metadata({METADATA_KEY: json.dumps(older)}, "a.onnx")
    assert contract.input.supported == {frozenset({OPTICAL, TERRAIN}), frozenset({OPTICAL, TERRAIN, SAR})}


ENTRY = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "supported": True}
FULL = {"groups": ["optical", "terrain", "sar"]} | ENTRY


@pytest.mark.parametrize(
    ("entries", "required", "why"),
    [
        ([FULL, {"groups": ["shade"]} | ENTRY], [], "a group without bands"),
        ([FULL, {"groups": ["radar"]} | ENTRY], [], "subsets.1.groups.0"),
        ([FULL, {"groups": []} | ENTRY], [], "subsets.1.groups"),
        ([FULL, FULL], ["optical", "terrain", "sar"], "a subset is listed twice"),
        ([FULL, {"groups": ["sar", "sar"]} | ENTRY], ["sar"], "lists a group twice"),
        ([{"groups": ["optical"]} | ENTRY], ["optical"], "the subset of all groups is missing"),
        ([FULL | {"supported": False}], [], "the subset of all groups is missing or not supported"),
        ([FULL, {"groups": ["optical"]} | ENTRY], [], "required groups are not those"),
        ([FULL | {"f1": 1.5}], ["optical", "terrain", "sar"], "subsets.0.f1"),
        ([FULL] * 8, ["optical", "terrain", "sar"], "'input.subsets'"),
        ([FULL | {"code": "x"}], ["optical", "terrain", "sar"], "subsets.0.code"),
    ],
)
def test_contract_refuses_invalid_subsets(
    model: Model, entries: list[dict[str, object]], required: list[str], why: str
) -> None:
    content = json.loads(model.contract.to_metadata()[METADATA_KEY])
    content["input"] |= {"subsets": entries, "required_groups": required}
    with pytest.raises(ModelError, match="contract is damaged") as error:
        Contract.from_metadata({METADATA_KEY: json.dumps(content)}, "a.onnx")
    assert why in str(error.value)
    assert "\n" not in str(error.value)
