"""Tests of band numbers found by descriptions or by position."""

from __future__ import annotations

from pathlib import Path

import pytest

from talud.data import band_names
from talud.data.band_names import BandDescriptions, MissingBandError
from talud.errors import TaludWarning

RGB = ("red", "green", "blue")
DEFAULT = {"red": 1, "green": 2, "blue": 3}


def described(*descriptions: str, path: str = "image.tif", colours: tuple[str, ...] = ()) -> BandDescriptions:
    colours = colours or ("undefined",) * len(descriptions)
    return BandDescriptions(path, descriptions, colours, (Path(path).stem,), (Path(path).stem,))


def numbers(file: BandDescriptions, *names: str) -> list[int]:
    return [*band_names.find_optical_bands(file, names or RGB, DEFAULT).numbers.values()]


SENTINEL_2 = tuple(f"B{number}" for number in ("1", "2", "3", "4", "5", "6", "7", "8", "8A", "9", "10", "11", "12"))


@pytest.mark.parametrize(
    ("descriptions", "names", "expected"),
    [
        (("blue", "green", "red", "nir"), RGB, [3, 2, 1]),
        (("Blue", "GREEN", " red "), RGB, [3, 2, 1]),
        (("B02", "B03", "B04"), RGB, [3, 2, 1]),
        (("B02", "B03", "B04", "B08"), (*RGB, "near_infrared"), [3, 2, 1, 4]),
        (("B2", "B3", "B4"), RGB, [3, 2, 1]),
        (("T48PXS_20200101T030541_B02_10m", "T48PXS_20200101T030541_B03_10m", "T48PXS_20200101T030541_B04_10m"), RGB,
         [3, 2, 1]),
        (SENTINEL_2, (*RGB, "nir", "swir1", "red_edge_1"), [4, 3, 2, 8, 12, 5]),
        (("B4, central wavelength 665 nm", "B3, central wavelength 560 nm", "B2, central wavelength 490 nm"), RGB,
         [1, 2, 3]),
        (("SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"), (*RGB, "nir"), [4, 3, 2, 5]),
        (("sr_band2", "sr_band3", "sr_band4"), RGB, [3, 2, 1]),
        (("Band 4 - Red", "Band 3 - Green", "Band 2 - Blue"), RGB, [1, 2, 3]),
        (("Band 2", "Band 3", "Band 4"), RGB, [3, 2, 1]),
        (("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"), (*RGB, "nir"), [6, 4, 2, 8]),
        (("coastal blue", "blue", "green i", "green", "yellow", "red", "red edge", "near infrared"), RGB, [6, 4, 2]),
        (("Blue", "Green", "Red", "Near-Infrared"), ("nir",), [4]),
        (("nir", "red edge 1", "red", "green", "blue"), RGB, [3, 4, 5]),
        (("red", "green", "blue", "nir08", "swir16"), ("nir", "swir1"), [4, 5]),
        (("vis-blue", "vis-green", "vis-red"), RGB, [3, 2, 1]),
        (("azul", "verde", "rojo"), RGB, [3, 2, 1]),
        (("B", "G", "R", "N"), RGB, [3, 2, 1]),
        (("NearInfrared", "RedEdge", "Red", "Green", "Blue"), ("nir", *RGB), [1, 3, 4, 5]),
        (("B04", "B03", "B02"), ("B02", "B04"), [3, 1]),
        (("Band 1", "Band 2", "Band 3"), RGB, [1, 2, 3]),
        (("Layer_1", "Layer_2", "Layer_3"), RGB, [1, 2, 3]),
        (("Gray", "", ""), RGB, [1, 2, 3]),
        (("", "", "", ""), RGB, [1, 2, 3]),
        (("red", "", ""), RGB, [1, 2, 3]),
        (("", "", "", "nir"), (*RGB, "nir"), [1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_band_numbers_follow_known_descriptions(
    descriptions: tuple[str, ...], names: tuple[str, ...], expected: list[int]
) -> None:
    assert numbers(described(*descriptions), *names) == expected


@pytest.mark.parametrize(
    ("descriptions", "said"),
    [
        (("B1", "B2", "B3", "B4"), "have several meanings: red 4, green 3, blue 2 .by description, as Sentinel-2"),
        (("B1", "B2", "B3"), "have several meanings: red 3, green 2, blue 1 .by description, as Landsat 4 to 7"),
        (("nir", "red", "green"), "has no band blue among its bands, described as nir, red, green"),
        (("blue", "", ""), "has no band red, green among its bands, described as blue"),
        (("VV", "VH", "ratio"), "has no band red, green, blue"),
        (("", "nir", ""), "has no band red, green, blue"),
        (("red", "green", "blue", "red", "green", "blue"), "bands 1, 4 can all be red"),
    ],
)
def test_band_names_that_contradict_positions_are_refused(descriptions: tuple[str, ...], said: str) -> None:
    with pytest.raises(MissingBandError, match=said) as caught:
        numbers(described(*descriptions))
    assert "--optical-bands" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LT05_L2SP_007056_20100110_SR.tif", [3, 2, 1]),
        ("LC08_L2SP_007056_20150110_SR.tif", [4, 3, 2]),
        ("sentinel2_argelia.tif", [4, 3, 2]),
        ("S2A_MSIL2A_20200101T030541_N0213_R075_T48PXS.tif", [4, 3, 2]),
    ],
)
def test_file_name_decides_the_satellite_of_band_numbers(path: str, expected: list[int]) -> None:
    assert numbers(described("B1", "B2", "B3", "B4", path=path)) == expected


def test_colour_interpretation_is_used_without_descriptions() -> None:
    colours = ("blue", "green", "red", "nir")
    assert numbers(described("", "", "", "", colours=colours), *RGB, "nir") == [3, 2, 1, 4]
    assert numbers(described("blue", "green", "red", colours=("red", "green", "blue"))) == [3, 2, 1]
    with pytest.raises(MissingBandError, match="has no band red, green, blue"):
        numbers(described("", "", colours=("gray", "alpha")))


def test_band_numbers_state_their_evidence() -> None:
    assert band_names.find_optical_bands(described("B02", "B03", "B04"), RGB, DEFAULT).text == (
        "red 3, green 2, blue 1 (by description, as Sentinel-2 numbers its bands)"
    )
    assert band_names.find_optical_bands(described("", "", ""), RGB, DEFAULT).text == (
        "red 1, green 2, blue 3 (by position, since the file does not name them)"
    )


def test_given_numbers_override_descriptions_with_a_warning() -> None:
    with pytest.warns(TaludWarning, match="takes band 1 as red, which the file describes as blue; band 3 as blue"):
        taken = band_names.check_given_numbers(described("blue", "green", "red"), DEFAULT, "optical_bands")
    assert (taken.numbers, taken.text) == (DEFAULT, "red 1, green 2, blue 3 (as given)")


@pytest.mark.parametrize("descriptions", [("B1", "B2", "B3"), ("red", "green", "blue"), ("", "", ""), ("a", "b", "c")])
def test_given_numbers_without_contradiction_raise_no_warning(
    descriptions: tuple[str, ...],
) -> None:
    band_names.check_given_numbers(described(*descriptions), DEFAULT, "optical_bands")


@pytest.mark.parametrize(
    ("descriptions", "path", "expected"),
    [
        (("VH", "VV"), "s1.tif", {"vv": 2}),
        (("Gamma0_VH_db", "Gamma0_VV_db"), "s1.tif", {"vv": 2}),
        (("Sigma0VH", "Sigma0VV"), "s1.tif", {"vv": 2}),
        (("", ""), "s1.tif", {"vv": 1}),
        (("vv_post", "vv_pre"), "s1.tif", {"vv": 2}),
        (("",), "OPERA_L2_RTC-S1_S1A_30_v1.0_VV.tif", {"vv": 1}),
    ],
)
def test_polarisations_are_found_by_description(descriptions: tuple[str, ...], path: str, expected: object) -> None:
    assert band_names.find_sar_bands(described(*descriptions, path=path), ("vv",), "pre", {"vv": 1}).numbers == expected


@pytest.mark.parametrize(
    ("descriptions", "path"), [(("VH",), "s1.tif"), (("HH", "HV"), "s1.tif"), (("",), "S1A_30_v1.0_VH.tif")]
)
def test_other_polarisation_is_not_taken_by_position(descriptions: tuple[str, ...], path: str) -> None:
    with pytest.raises(MissingBandError, match=r"has no band vv .*--sar-bands"):
        band_names.find_sar_bands(described(*descriptions, path=path), ("vv",), "pre", {"vv": 1})
