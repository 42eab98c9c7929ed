"""Identification of the bands of a raster file.

Bands are identified by description, colour interpretation or position.

Positions are used only if a file has no other information on its bands.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rasterio.io import DatasetReader

from talud.errors import SourceError, TaludWarning

BandLabels = tuple[str | None, ...]  # meaning of each band of a file, in order; None if unknown

# Each pattern that matches is removed from the text before the next one is tried, so that "red edge" is not red.
_WORDS: Mapping[str, str] = {
    "thermal": r"thermal|tirs?\d*|lwir ?\d*",
    "swir1": r"swir ?(?:1|16|b11)|short ?wave ?infra ?red ?1",
    "swir2": r"swir ?(?:2|22|b12)|short ?wave ?infra ?red ?2",
    "swir": r"swir|short ?wave ?infra ?red",
    "red_edge_1": r"(?:vegetation )?red ?edge ?(?:0?1|0?70\d?|071)|rojo borde 1",
    "red_edge_2": r"(?:vegetation )?red ?edge ?(?:0?2|0?74\d?|075)",
    "red_edge_3": r"(?:vegetation )?red ?edge ?(?:0?3|0?78\d?)",
    "red_edge": r"(?:vegetation )?red ?edge|borde rojo",
    "narrow_nir": r"narrow nir|nir narrow|nir ?a|nir ?0[89]|narrow near ?infra ?red",
    "nir": r"v?nir ?\d*|(?:near ?)?infra ?red ?\d*|infrarrojo(?: cercano)?|(?:near)?ir",
    "coastal": r"coastal(?: ?blue| aerosol)?|ultra ?blue|aerosols?|azul costero",
    "green_i": r"green i",
    "pan": r"pan|panchromatic|pancromatica",
    "yellow": r"yellow|amarillo",
    "water_vapour": r"water ?vapou?r|wvp",
    "cirrus": r"cirrus",
    "red": r"red ?\d*|rojo|roja",
    "green": r"green ?\d*|green ii|verde",
    "blue": r"blue ?\d*|azul",
    "alpha": r"alpha",
    "elevation": r"elevation|dem|dtm|dsm|height",
    "slope": r"slope",
    "ndvi": r"nd[vw]i|evi|savi",
    "classes": r"scl|qa ?\d*|fmask|mask|quality|class(?:es|ification)?",
    "vv": r"vv",
    "vh": r"vh",
    "hh": r"hh",
    "hv": r"hv",
}
_PATTERNS = {name: re.compile(rf"\b(?:{words})\b") for name, words in _WORDS.items()}
_LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "a": "alpha"}
# Matches B04, B8A, Band 4, SR_B4, sr_band4, also within T48PXS_20200101T030541_B04_10m.
_CODE = re.compile(
    r"(?<![a-z0-9])(?:(?P<prefix>sr|st)[ _-]?)?b(?:and)?[ _-]?(?P<number>8a|0?8a|0[1-9]|1[0-3]|[1-9])(?![a-z0-9])", re.I
)
_COLOURS = {"red": "red", "green": "green", "blue": "blue", "alpha": "alpha", "pan": "pan", "coastal": "coastal",
            "rededge": "red_edge", "nir": "nir", "swir": "swir", "yellow": "yellow"}  # fmt: skip

SENTINEL_2, LANDSAT_8, LANDSAT_5 = "Sentinel-2", "Landsat 8 and 9", "Landsat 4 to 7"
_BAND_NUMBERS: Mapping[str, Mapping[str, str]] = {
    SENTINEL_2: {
        "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "red_edge_1", "6": "red_edge_2", "7": "red_edge_3",
        "8": "nir", "8A": "narrow_nir", "9": "water_vapour", "10": "cirrus", "11": "swir1", "12": "swir2",
    },
    LANDSAT_8: {
        "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir", "6": "swir1", "7": "swir2", "8": "pan",
        "9": "cirrus", "10": "thermal", "11": "thermal",
    },
    LANDSAT_5: {
        "1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir1", "6": "thermal", "7": "swir2", "8": "pan",
    },
}  # fmt: skip
_MISSION_NAMES = {
    SENTINEL_2: re.compile(
        r"(?<![a-z0-9])s2[abc]?_|sentinel[ _-]?2|(?<![a-z0-9])t\d\d[a-z]{3}_\d{8}|hls\.s30|msil[12]"
    ),
    LANDSAT_8: re.compile(r"landsat[ _-]?[89](?!\d)|(?<![a-z0-9])l[cot]0[89]_|hls\.l30|(?<![a-z])oli(?![a-z])"),
    LANDSAT_5: re.compile(r"landsat[ _-]?[4-7](?!\d)|(?<![a-z0-9])l[etm]0[4-7]_"),
}
_MISSION_TAGS = frozenset({"SPACECRAFT_ID", "SPACECRAFT", "SATELLITE", "SATELLITEID", "PLATFORM", "MISSION", "SENSOR",
                           "SENSOR_ID", "PRODUCT_URI", "CONSTELLATION", "DATATAKE_1_SPACECRAFT_NAME"})  # fmt: skip
_POLARISATION_TAGS = frozenset({"POLARIZATION", "POLARISATION", "POLARIZATIONS", "POLARISATIONS"})
_BY_POSITION = "by position, since the file does not name them"
# Up to this number of bands, the names B1, B2, … may be positions; with more bands they are a satellite's numbers.
_MAX_POSITIONAL_BANDS = 4


class MissingBandError(SourceError):
    """Error for a band that the sources of an area lack."""


@dataclass(frozen=True)
class BandNumbers:
    """Band numbers in a file, with evidence.

    Attributes:
        numbers: band name → number in the file.
        text: numbers and evidence for a reader, such as "red 3, green 2, blue 1 (by description)".
    """

    numbers: Mapping[str, int]
    text: str

    @classmethod
    def of(cls, numbers: Mapping[str, int], evidence: str) -> BandNumbers:
        """Return band numbers with the evidence for them."""
        return cls(dict(numbers), f"{', '.join(f'{name} {number}' for name, number in numbers.items())} ({evidence})")


@dataclass(frozen=True)
class BandDescriptions:
    """Information of a raster file on its bands.

    Attributes:
        path: path of the file, for messages.
        descriptions: description of each band, empty if there is none.
        colours: colour interpretation of each band.
        texts: name of the file, and its tags that may name the satellite.
        polarisations: texts that may name the polarisation of a file with one band.
    """

    path: str
    descriptions: tuple[str, ...]
    colours: tuple[str, ...]
    texts: tuple[str, ...] = ()
    polarisations: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: DatasetReader) -> BandDescriptions:
        """Return the information of an open raster."""
        tags = {key.upper(): text for key, text in {**dataset.tags(), **dataset.tags(1)}.items()}
        name = Path(dataset.name).stem
        return cls(
            dataset.name,
            tuple((text or "").strip() for text in dataset.descriptions),
            tuple(meaning.name.lower() for meaning in dataset.colorinterp),
            (name, *(text for key, text in tags.items() if key in _MISSION_TAGS)),
            (*(text for key, text in tags.items() if key in _POLARISATION_TAGS), name),
        )

    @property
    def summary(self) -> str:
        """Descriptions of the bands, for a message."""
        return ", ".join(text or "(unnamed)" for text in self.descriptions)[:200]


def parse_band_name(text: str) -> str | None:
    """Return the band that a description names.

    The result is None if it names none, or several.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[VH][VH])", " ", text.strip())
    rest = re.sub(r"[^a-z0-9áéíóú]+", " ", spaced.casefold()).strip()
    found = []
    for name, pattern in _PATTERNS.items():
        rest, times = pattern.subn(" ", rest)
        found += [name] if times else []
    return found[0] if len(found) == 1 else None


def find_optical_bands(
    file: BandDescriptions,
    names: Sequence[str],
    default: Mapping[str, int],
    option: str = "--optical-bands (optical_bands in params.yaml)",
) -> BandNumbers:
    """Find the numbers of optical bands.

    Args:
        file: information on the image's bands.
        names: bands to find.
        default: positions for files without information on their bands.
        option: option or key with which a user sets the numbers, for messages.

    Raises:
        MissingBandError: A band cannot be identified, or the file contradicts the positions.
    """
    advice = f"set the band numbers with {option}, for example red=3,green=2,blue=1"
    return _find_bands(file, _readings(file), names, {}, default, advice)


def find_sar_bands(file: BandDescriptions, names: Sequence[str], time: str, default: Mapping[str, int]) -> BandNumbers:
    """Find the numbers of polarisations in a SAR scene.

    Args:
        file: information on the scene's bands.
        names: polarisations to find.
        time: "pre" or "post".
        default: positions for files without information on their bands.

    Raises:
        MissingBandError: A band cannot be identified, or the file contradicts the positions.
    """
    advice = "set the band numbers with --sar-bands (sar_bands in params.yaml), for example vv=2,vh=1"
    exact = {name: f"{name}_{time}" for name in names}
    return _find_bands(file, {"by description": _polarisations(file)}, names, exact, default, advice)


def check_given_numbers(file: BandDescriptions, numbers: Mapping[str, int], key: str) -> BandNumbers:
    """Check the user's band numbers against the descriptions.

    A contradiction is a warning. Returns the numbers.
    """
    readings = [*_readings(file).values()] if key == "optical_bands" else [_polarisations(file)]
    if not any(file.descriptions) and key == "optical_bands":
        readings = [(None,) * len(file.descriptions)]  # GDAL declares any first bands red, green, blue
    contradicted = []
    for name, number in numbers.items():
        wanted = parse_band_name(name)
        described = {labels[number - 1] for labels in readings} if number <= len(file.descriptions) else {None}
        label = described.pop()
        if wanted and label and not described and label != "alpha" and _family(label) != _family(wanted):
            contradicted.append(
                f"band {number} as {name}, which the file describes as {file.descriptions[number - 1] or label}"
            )
    if contradicted:
        warnings.warn(f"{file.path}: {key} takes {'; '.join(contradicted)}", TaludWarning, stacklevel=2)
    return BandNumbers.of(numbers, "as given")


def _readings(file: BandDescriptions) -> dict[str, BandLabels]:
    """Return the possible meanings of bands, by evidence.

    There are several if a band code has a different meaning for each satellite.
    """
    words = [_LETTERS.get(text.lower()) for text in file.descriptions]
    if None in words:
        words = [parse_band_name(text) for text in file.descriptions]
    codes = [None if word else _CODE.search(text) for word, text in zip(words, file.descriptions, strict=True)]
    found = [code for code in codes if code]
    alpha = ["alpha" if colour == "alpha" else None for colour in file.colours]
    if not found:
        if not any(words):
            return {"by colour interpretation": tuple(_COLOURS.get(colour) for colour in file.colours)}
        return {"by description": tuple(word or other for word, other in zip(words, alpha, strict=True))}
    numbers = [code["number"].upper().lstrip("0") if code else None for code in codes]
    readings: dict[str, BandLabels] = {}
    for mission in _missions(file, found):
        table = _BAND_NUMBERS[mission]
        named = [table.get(number or "") for number in numbers]
        readings[f"by description, as {mission} numbers its bands"] = tuple(
            word or name or other for word, name, other in zip(words, named, alpha, strict=True)
        )
    counted = all(number == str(place) for place, number in enumerate(numbers, start=1) if codes[place - 1])
    plain = not any(code["prefix"] or code["number"].startswith("0") for code in found)
    if counted and plain and len(numbers) <= _MAX_POSITIONAL_BANDS and not _named_missions(file):
        # Software calls any first band "Band 1".
        if any(re.match(r"band", code[0], re.I) for code in found):
            return {"by colour interpretation": tuple(_COLOURS.get(colour) for colour in file.colours)}
        readings["by position"] = tuple(words)
    return readings


def _named_missions(file: BandDescriptions) -> list[str]:
    """Return the satellites named by a file's name or tags."""
    text = " ".join(file.texts).casefold()
    return [mission for mission, pattern in _MISSION_NAMES.items() if pattern.search(text)]


def _missions(file: BandDescriptions, codes: Sequence[re.Match[str]]) -> Iterable[str]:
    """Return the satellites that have bands of these codes."""
    named = _named_missions(file)
    if named:
        return named
    numbers = {code["number"].upper().lstrip("0") for code in codes}
    padded = any(code["number"].startswith("0") for code in codes)
    surface = {code["number"].lstrip("0") for code in codes if (code["prefix"] or "").lower() == "sr"}
    if padded or "wavelength" in " ".join(file.descriptions):
        possible = [SENTINEL_2]
    elif surface:
        possible = [LANDSAT_8] if "6" in surface else [LANDSAT_8, LANDSAT_5]  # band 6 of older Landsats is thermal
    else:
        possible = [SENTINEL_2, LANDSAT_8, LANDSAT_5]
    return [mission for mission in possible if numbers <= _BAND_NUMBERS[mission].keys()] or possible


def _polarisations(file: BandDescriptions) -> BandLabels:
    """Return the polarisation of each band."""
    labels = [parse_band_name(text) for text in file.descriptions]
    if len(labels) == 1 and labels[0] is None:
        labels = [
            next((one for one in map(parse_band_name, file.polarisations) if one in ("vv", "vh", "hh", "hv")), None)
        ]
    return tuple(labels)


def _family(name: str) -> str:
    return re.sub(r"_?\d$|^narrow_|_i$", "", name)


def _find_bands(
    file: BandDescriptions,
    readings: Mapping[str, BandLabels],
    names: Sequence[str],
    exact: Mapping[str, str],
    default: Mapping[str, int],
    advice: str,
) -> BandNumbers:
    """Find bands by description, or else by position.

    The only complete reading is used.

    Positions are used only if no reading contradicts them.

    Args:
        file: information on the file's bands.
        readings: meanings of the bands, by evidence.
        names: bands to find.
        exact: band name → description that identifies the band.
        default: positions for files without information on their bands.
        advice: last part of an error message.
    """
    found: dict[str, dict[str, int]] = {}
    for evidence, labels in readings.items():
        places = {name: _band_number(file, labels, name, exact.get(name, name), advice) for name in names}
        found[evidence] = {name: place for name, place in places.items() if place}
    positions = {name: default[name] for name in names if name in default}
    if "by position" in found:
        found["by position"] = positions
    complete = {evidence: numbers for evidence, numbers in found.items() if len(numbers) == len(names)}
    if len({tuple(numbers.values()) for numbers in complete.values()}) > 1:
        ways = "; ".join(BandNumbers.of(numbers, evidence).text for evidence, numbers in complete.items())
        raise MissingBandError(f"{file.path}: its bands {file.summary} have several meanings: {ways}; {advice}")
    if complete:
        evidence = next(iter(complete))
        return BandNumbers.of(complete[evidence], evidence)
    if not any(any(labels) for labels in readings.values()) and len(positions) == len(names):
        return BandNumbers.of(positions, _BY_POSITION)
    missing = [name for name in names if not any(name in numbers for numbers in found.values())]
    if len(readings) == 1 and _positions_agree(next(iter(readings.values())), positions, missing, default):
        evidence, numbers = next(iter(found.items()))
        if not numbers:
            return BandNumbers.of(positions, _BY_POSITION)
        mixed = {name: numbers.get(name) or positions[name] for name in names}
        return BandNumbers.of(mixed, f"{evidence}, but by position: {', '.join(missing)}")
    raise MissingBandError(
        f"{file.path}: has no band {', '.join(missing or names)} among {_describe_bands(file)}; {advice}"
    )


def _describe_bands(file: BandDescriptions) -> str:
    if any(file.descriptions):
        return f"its bands, described as {file.summary}"
    return f"its {len(file.descriptions)} band(s), which have no description"


def _band_number(file: BandDescriptions, labels: BandLabels, name: str, exact: str, advice: str) -> int | None:
    """Find a band by description, meaning or similar name.

    Raises:
        MissingBandError: Several bands match.
    """
    same = [re.sub(r"[\s_-]+", "_", text.casefold()) == exact.casefold() for text in file.descriptions]
    wanted = parse_band_name(name)
    fitting = [label is not None and label == wanted for label in labels]
    alike = [bool(wanted and label and _family(label) == _family(wanted)) for label in labels]
    for marks in (same, fitting, alike if wanted in ("nir", "narrow_nir", "swir", "red_edge") else []):
        if sum(marks) > 1:
            places = ", ".join(str(place) for place, mark in enumerate(marks, start=1) if mark)
            raise MissingBandError(f"{file.path}: bands {places} can all be {name} ({file.summary}); {advice}")
        if any(marks):
            return marks.index(True) + 1
    return None


def _positions_agree(
    labels: BandLabels, positions: Mapping[str, int], missing: Sequence[str], default: Mapping[str, int]
) -> bool:
    """Check if missing bands may be taken by position.

    All that is known of the file must agree with the positions.
    """
    for place, label in enumerate(labels, start=1):
        if label and default.get(label, place) != place:
            return False
    free = [place for place, label in enumerate(labels, start=1) if label is None]
    return bool(missing) and all(positions.get(name) in free for name in missing)
