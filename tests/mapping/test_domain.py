"""Tests of the distance of a raster from the training areas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack_files import noise, write_stack
from talud.contract import METADATA_KEY, BandContract, Contract, Difference
from talud.engine.runtime import Model
from talud.errors import ModelError
from talud.mapping.domain import (
    FAR_OVERLAP,
    SIMILAR_OVERLAP,
    DomainDistance,
    DomainVerdict,
    overall_verdict,
    pixel_size_sentence,
    report_lines,
)
from talud.mapping.reader import open_stack
from talud.measurement.samples import MAX_HISTOGRAM_BINS, band_histogram, difference_histograms


def learned(model: Model, values: np.ndarray, name: str = "red") -> BandContract:
    """Return a band that was trained on these values."""
    edges, shares = band_histogram(values)
    stated = {"name": name, "edges": edges, "shares": shares, "minimum": values.min(), "maximum": values.max()}
    return BandContract.model_validate(model.contract.input.bands[0].model_dump() | stated)


def normal(count: int, shift: float = 0, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(100 + 10 * shift, 10, count).astype(np.float32)


@pytest.mark.parametrize("shift", [0, 0.5, 1, 2, 3])
def test_overlap_of_normal_distributions_has_the_closed_form(model: Model, shift: float) -> None:
    """The closed form is 2 Φ(−d / 2); the bins round it up slightly."""
    found = DomainDistance.of(normal(100_000, shift, seed=2), learned(model, normal(100_000)))
    expected = 2 * NormalDist().cdf(-shift / 2)
    assert expected - 0.015 < found.overlap < expected + 0.03


@pytest.mark.parametrize("part", [0, 0.25, 0.5, 1])
def test_overlap_of_uniform_distributions_is_their_common_share(model: Model, part: float) -> None:
    trained, seen = np.linspace(0, 100, 32_001), np.linspace(100 * (1 - part), 100 * (2 - part), 32_001)
    found = DomainDistance.of(seen.astype(np.float32), learned(model, trained))
    assert found.overlap == pytest.approx(part, abs=0.002)
    assert found.outside == pytest.approx(1 - part, abs=0.002)


@given(st.lists(st.floats(-200, 400, width=32), min_size=1, max_size=300))
def test_overlap_with_the_training_values_is_one(values: list[float]) -> None:
    pixels = np.array(values, np.float32)
    edges, shares = band_histogram(pixels)
    assert len(edges) == len(shares) + 1 <= MAX_HISTOGRAM_BINS + 1
    assert sum(shares) == pytest.approx(1)
    assert (edges[0], edges[-1]) == (pixels.min(), pixels.max())
    stated = {
        "name": "red", "group": "optical", "unit": "DN", "lowest": -300, "highest": 500, "mean": 0, "deviation": 1,
        "minimum": edges[0], "maximum": edges[-1], "edges": edges, "shares": shares,
    }  # fmt: skip
    band = BandContract.model_validate(stated)
    assert BandContract.model_validate_json(band.model_dump_json()) == band
    found = DomainDistance.of(pixels, band)
    assert (found.overlap, found.outside) == (pytest.approx(1), 0)


def test_histogram_bins_have_equal_shares() -> None:
    shares = band_histogram(normal(320_000))[1]
    assert len(shares) == MAX_HISTOGRAM_BINS
    assert np.allclose(shares, 1 / MAX_HISTOGRAM_BINS, atol=1e-4)
    assert len(band_histogram(np.repeat(np.arange(5.0), 7))[1]) == 4  # for example 8-bit values of water


@pytest.mark.parametrize(
    ("shift", "found"),
    [
        (0, DomainVerdict.LIKE),
        (0.8, DomainVerdict.LIKE),
        (1.5, DomainVerdict.DIFFERS),
        (2.5, DomainVerdict.FAR),
        (-2.5, DomainVerdict.FAR),
    ],
)
def test_domain_verdict_gets_worse_with_distance(model: Model, shift: float, found: DomainVerdict) -> None:
    """The thresholds are the overlaps at one and two standard deviations."""
    assert 2 * NormalDist().cdf(-0.5) == pytest.approx(SIMILAR_OVERLAP, abs=0.02)
    assert 2 * NormalDist().cdf(-1) == pytest.approx(FAR_OVERLAP, abs=0.02)
    assert DomainDistance.of(normal(50_000, shift), learned(model, normal(50_000))).verdict is found


def test_values_outside_the_training_range_make_a_band_differ(model: Model) -> None:
    pixels = normal(50_000)
    pixels[:5000] = 300
    found = DomainDistance.of(pixels, learned(model, normal(50_000)))
    assert found.outside == pytest.approx(0.1, abs=0.001)
    assert found.overlap > SIMILAR_OVERLAP
    assert found.verdict is DomainVerdict.DIFFERS


def test_worst_band_decides_and_unlike_bands_are_listed() -> None:
    like, differs = DomainDistance("slope", 0.9, 0.0), DomainDistance("vv_pre", 0.5, 0.125)
    empty, unknown = DomainDistance("red", None, None), DomainDistance("red", None, 0.0)
    assert overall_verdict([like, differs, empty]) is DomainVerdict.DIFFERS
    assert report_lines([like, differs]) == [
        "domain: differs from the training areas",
        "  vv_pre: overlap 50%, outside the training range 12.5%",
    ]
    assert report_lines([like, DomainDistance("vv_pre", 0.1, 0.0)])[0] == "domain: far from the training areas"
    assert report_lines([like, empty]) == ["domain: like the training areas"]
    assert report_lines([like], "", (0.23, 0.0431))[1:] == [
        "  landslide: 23% of the map, 4% of the training areas, not plausible"
    ]
    assert report_lines([like], "", (0.012, 0.0431))[1:] == ["  landslide: 1.2% of the map, 4% of the training areas"]
    assert report_lines([empty, unknown]) == ["domain: the model holds no histograms"]
    assert report_lines([empty]) == ["domain: no valid values"]


def stated(model: Model) -> Contract:
    """Return a contract with bands trained on uniform values from 0 to 250."""
    values = np.linspace(0, 250, 10_001)
    bands = tuple(learned(model, values, band.name) for band in model.contract.input.bands)
    return model.contract.replace(bands=bands)


def compared(path: Path, contract: Contract) -> dict[str, DomainDistance]:
    with open_stack(path, contract) as stack:
        return {one.band: one for one in stack.info.distances}


def test_shifted_band_differs(model: Model, tmp_path: Path) -> None:
    values = noise(200, 200)
    values[1] = values[1] / 2 + 200
    values[2, :50] = np.nan
    values[2, 50:60] = 1e30  # implausible, so the map treats it as invalid
    values[2, 50:60, 4:] = np.nan
    found = compared(write_stack(tmp_path / "s.tif", values), stated(model))
    assert found["red"].overlap > 0.95
    assert found["green"].overlap == pytest.approx(0.2, abs=0.02)  # from 200 to 250 of 250
    assert found["green"].outside == pytest.approx(0.6, abs=0.02)
    assert found["blue"].overlap > 0.95
    assert [one.verdict for one in found.values()] == [DomainVerdict.LIKE, DomainVerdict.FAR, DomainVerdict.LIKE]


@pytest.mark.slow
def test_domain_report_does_not_use_averages_of_overviews(model: Model, tmp_path: Path) -> None:
    """Averages of four uniform values overlap with single ones by less than 0.7.

    Most of the raster is invalid.
    """
    values = np.full((3, 2100, 2100), np.nan, np.float32)
    values[:, 1100:, 1000:] = noise(1000, 1100)
    found = compared(write_stack(tmp_path / "s.tif", values), stated(model))
    assert min(one.overlap for one in found.values()) > 0.95


def test_domain_report_without_histograms_or_values(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "s.tif", noise(20, 20))
    assert {one.verdict for one in compared(stack, model.contract).values()} == {DomainVerdict.NO_HISTOGRAM}
    empty = write_stack(tmp_path / "empty.tif", np.full((3, 1100, 20), np.nan, np.float32))
    assert {one.verdict for one in compared(empty, stated(model)).values()} == {DomainVerdict.NO_VALUES}


def test_differences_are_of_neighbouring_bands_in_one_unit() -> None:
    names = ("red", "green", "blue", "slope", "curvature", "vv_pre", "vv_post")
    stack = np.random.default_rng(3).normal(size=(2, 40, 40, 7)).astype(np.float32)
    stack[0, :, :, 1] = np.nan
    found = difference_histograms(stack, names)
    assert [one.bands for one in found] == [("red", "green"), ("green", "blue"), ("vv_pre", "vv_post")]
    red_green = stack[1, ..., 0] - stack[1, ..., 1]
    assert found[0].edges[0] == red_green.min()
    assert found[0].edges[-1] == red_green.max()
    assert np.histogram(red_green, found[0].edges)[0] / 1600 == pytest.approx(found[0].shares)
    stack[..., 5] = np.nan
    assert [one.bands for one in difference_histograms(stack, names)] == [("red", "green"), ("green", "blue")]


def hued(model: Model) -> Contract:
    """Return a contract trained on red and green of constant difference.

    Green is as uniform as red, and darker by a normal number with deviation 10.
    """
    edges, shares = band_histogram(normal(50_000) - 80)
    return stated(model).replace(differences=(Difference(bands=("red", "green"), edges=edges, shares=shares),))


@pytest.mark.parametrize(
    ("shift", "found"), [(0, DomainVerdict.LIKE), (1.5, DomainVerdict.DIFFERS), (-3, DomainVerdict.FAR)]
)
def test_new_hue_is_detected_by_band_differences(
    model: Model, tmp_path: Path, shift: float, found: DomainVerdict
) -> None:
    """The overlap is 2 Φ(−d / 2), as for a band."""
    values = noise(300, 300)
    values[0] = np.random.default_rng(5).uniform(50, 240, (300, 300))
    values[1] = values[0] - (normal(90_000, shift, seed=6) - 80).reshape(300, 300)
    values[1, 0] = 1e30  # implausible, so the difference is too
    by_name = compared(write_stack(tmp_path / "s.tif", values), hued(model))
    assert list(by_name) == ["red", "green", "blue", "red − green"]
    assert {by_name[name].verdict for name in ("red", "green", "blue")} == {DomainVerdict.LIKE}
    hue = by_name["red − green"]
    assert hue.overlap == pytest.approx(2 * NormalDist().cdf(-abs(shift) / 2), abs=0.03)
    assert hue.verdict is found


@pytest.fixture
def damaged(model: Model) -> Callable[..., str]:
    """Return the error message for a contract with a changed first histogram."""

    def message(**changes: object) -> str:
        content = json.loads(stated(model).to_metadata()[METADATA_KEY])
        content["input"]["bands"][0] |= changes
        with pytest.raises(ModelError) as caught:
            Contract.from_metadata({METADATA_KEY: json.dumps(content)}, "m.onnx")
        return str(caught.value)

    return message


@pytest.mark.parametrize(
    "changes",
    [{"edges": [1.0, 2.0]}, {"shares": []}, {"edges": [3.0, 2.0], "shares": [1.0]}, {"edges": [1.0], "shares": []}],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_invalid_histogram_is_a_damaged_contract(damaged: Callable[..., str], changes: dict[str, object]) -> None:
    assert "its contract is damaged at 'input.bands.0" in damaged(**changes)


@pytest.mark.parametrize(
    ("size", "trained", "areas", "said"),
    [
        (12.5, (), {}, ""),
        (
            12.5,
            (),
            {"a": 12.5, "b": 3},
            "pixel size 12.5 m, to which the training areas were resampled (a 12.5 m, b 3 m)",
        ),
        (3.001, (3, 12.5), {"a": 12.5, "b": 3}, "pixel size 3.001 m, as in some training areas (a 12.5 m, b 3 m)"),
        (
            7,
            (3, 12.5),
            {"a": 12.5, "b": 3},
            "pixel size 7 m, between those of the training areas (a 12.5 m, b 3 m): no",
        ),
    ],
)
def test_pixel_size_is_compared_with_the_training_areas(
    model: Model, size: float, trained: tuple[float, ...], areas: dict[str, float], said: str
) -> None:
    sentence = pixel_size_sentence(size, model.contract.replace(pixel_sizes=trained, area_pixel_sizes=areas))
    assert sentence.startswith(said)
    assert bool(sentence) == bool(said)
    assert [line.strip() for line in report_lines([DomainDistance("red", 1, 0)], sentence)[1:]] == (
        [sentence] if said else []
    )
