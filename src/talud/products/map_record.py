"""Record of a map: its figures, tags, caption and prediction.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from talud.bands import Group
from talud.contract import Contract
from talud.engine import coverage
from talud.engine.runtime import Model
from talud.mapping import domain
from talud.mapping.domain import DomainDistance
from talud.mapping.reader import RasterInfo
from talud.products import quicklook
from talud.products.area_estimate import AreaEstimate
from talud.products.rasters import Products

# The quicklook has one line for the reasons.
MAX_REASONS_IN_CAPTION = 3


@dataclass(frozen=True)
class ReducedPixels:
    """Pixels that are mapped without some band groups.

    Attributes:
        groups: band groups that are used.
        why: reason why the other groups are missing, as text.
        pixels: number of pixels.
        f1: F1 with these groups on the validation blocks; None if it was not measured.
    """

    groups: tuple[Group, ...]
    why: str
    pixels: int
    f1: float | None

    @classmethod
    def of(cls, code: int, pixels: int, contract: Contract) -> ReducedPixels:
        """Decode the code of pixels mapped with fewer bands."""
        groups = coverage.available_groups(code, contract)
        measured = contract.input.subset(groups)
        return cls(groups, coverage.describe_code(code, contract), pixels, measured.f1 if measured else None)


@dataclass(frozen=True)
class Prediction:
    """Figures of a map, as in `prediction.json`.

    Attributes:
        raster: file name of the raster, without folders.
        pixels: number of pixels of the raster.
        not_mapped: numbers of unmapped pixels by reason, most frequent first.
        reduced: pixels mapped without some band groups, most frequent first.
        landslides: number of landslides.
        landslide_area_m2: total area of the landslides in m².
        threshold: lowest probability of a landslide pixel.
        provider: execution provider that ran the network.
        tile: (height, width) of a tile's core in pixels.
        window: (height, width) of the network's input in pixels.
        halo: context around a core in pixels.
        exact_halo: halo in pixels at which the map equals one pass over the whole raster; 0 for a patch stack.
        halo_error: largest difference of probabilities caused by a smaller halo, on windows of the training areas; 0
            if the map is exact, None if the model's contract does not state it.
        memory: upper bound of the network's memory in one process, in bytes.
        arithmetic: multiply-adds of all tiles against those of one pass over the raster.
        tiles: number of tiles.
        skipped: number of tiles without a pixel to map, for which the network did not run.
        minimum_area_m2: minimum mapping unit in m²; 0 if none is set.
        left_out: number of smaller landslides, which are neither counted nor among the polygons.
        smooth: whether the outlines are smoothed; areas and statistics are those of the pixels.
        distances: distance of each band from the training areas (see `talud.mapping.domain`).
        tta: whether the probability is the mean over eight rotated and mirrored passes (test-time augmentation).
        estimate: estimated landslide area; None if it cannot be estimated.
        no_estimate: reason for a missing estimate; empty if there is one.
        pixel_size: sentence on the pixel sizes of raster and training areas; empty if the latter have the model's.
        landslide_share: share of landslides in the mapped pixels, 0 to 1, including small landslides.
        taken_over: number of tiles resumed from an interrupted run; it is not written to the files.
        folder: folder of the files; None while the map is being made.
    """

    raster: str
    pixels: int
    not_mapped: dict[str, int]
    reduced: tuple[ReducedPixels, ...]
    landslides: int
    landslide_area_m2: float
    threshold: float
    provider: str
    tile: tuple[int, int]
    window: tuple[int, int]
    halo: int
    exact_halo: int
    halo_error: float | None
    memory: int
    arithmetic: float
    tiles: int
    skipped: int
    minimum_area_m2: float
    left_out: int
    smooth: bool
    distances: tuple[DomainDistance, ...]
    tta: bool
    estimate: AreaEstimate | None = None
    no_estimate: str = ""
    pixel_size: str = ""
    landslide_share: float = 0.0
    taken_over: int = 0
    folder: Path | None = field(default=None, compare=False)

    @property
    def files(self) -> dict[str, Path]:
        """Paths of the map's existing files by name.

        The names are the attributes of `Products`, such as probability, classes, polygons, summary and record.
        """
        if self.folder is None:
            return {}
        products = Products.within(self.folder)
        return {name: path for name, path in vars(products).items() if path.is_file()}

    @property
    def share_not_mapped(self) -> float:
        """Share of unmapped pixels in the raster, 0 to 1."""
        return sum(self.not_mapped.values()) / self.pixels

    @property
    def share_reduced(self) -> float:
        """Share of mapped pixels without some band groups, 0 to 1."""
        mapped = self.pixels - sum(self.not_mapped.values())
        return sum(one.pixels for one in self.reduced) / mapped if mapped else 0.0


def origin_tags(model: Model, threshold: float, halo: int | None, tta: bool) -> dict[str, str]:
    """Return the origin of a map as file tags.

    Args:
        model: model that made the map.
        threshold: lowest probability of a landslide pixel.
        halo: halo in pixels if it is smaller than the exact one, else None.
        tta: whether test-time augmentation was used.
    """
    contract = model.contract
    return {
        "TALUD_MODEL": model.name,
        "TALUD_VERSION": model.version,
        "TALUD_RUN": contract.origin.run_id,
        "TALUD_DATA_VERSION": contract.origin.data_version,
        "TALUD_COMMIT": contract.origin.commit,
        "TALUD_WEIGHTS": contract.origin.weights,
        "TALUD_PRECISION": contract.derived.precision,
        "TALUD_THRESHOLD": f"{threshold:g}",
        **({} if halo is None else {"TALUD_HALO": str(halo)}),
        **({"TALUD_TTA": "yes"} if tta else {}),
    }


def unusual_settings(model: Model, prediction: Prediction) -> dict[str, str]:
    """Return the options that are not the defaults, as text.

    The reason for the choice of the model is included.
    """
    stated: dict[str, str] = {}
    if model.contract.derived.precision != "float32":
        stated["Precision"] = model.contract.derived.precision
    if prediction.halo < prediction.exact_halo:
        stated["Halo"] = (
            f"{prediction.halo} instead of {prediction.exact_halo}: {_halo_error_text(prediction.halo_error)}"
        )
    if prediction.tta:
        stated["Probability"] = "mean over eight rotated and mirrored passes"
    if model.registered_as and model.registered_as.reason:
        stated["Chosen"] = model.registered_as.reason
    return stated


def notices(model: Model, prediction: Prediction) -> list[str]:
    """Return warnings about the map, one line each."""
    lines = []
    if adapted := model.contract.derived.adapted:
        lines.append(f"Adapted to {adapted.area} without labels, which can multiply false alarms")
    if weak := model.contract.measured.lack_of_skill:
        lines.append(f"The model is {weak}")
    mapped = prediction.pixels - sum(prediction.not_mapped.values())
    if implausible := domain.plausibility_sentence(prediction.landslide_share, model.contract.training_share):
        lines.append(implausible)
    if mapped and not prediction.landslide_share:
        lines.append("Nothing is mapped as landslide: no probability reaches the threshold")
    return lines


def advice(model: Model, prediction: Prediction) -> str:
    """Return advice on an implausible map; empty if it is plausible."""
    if not domain.is_implausible(prediction.landslide_share, model.contract.training_share):
        return ""
    return domain.advice_sentence(adapted=model.contract.derived.adapted is not None)


def reduced_lines(prediction: Prediction, contract: Contract) -> list[str]:
    """Return one line per incomplete set of band groups.

    An example is "12.0% of the mapped pixels use only terrain + sar: cloud".
    """
    mapped = prediction.pixels - sum(prediction.not_mapped.values())
    whole = contract.input.subset(contract.input.groups)
    lines = []
    for one in prediction.reduced:
        line = f"{one.pixels / mapped:.1%} of the mapped pixels use only {' + '.join(one.groups)}: {one.why}"
        if one.f1 is not None and whole:
            line += f" (validation F1 {one.f1:.2f}, with all bands {whole.f1:.2f})"
        lines.append(line)
    return lines


def _halo_error_text(error: float | None) -> str:
    """Describe the error caused by a smaller halo."""
    if error is None:
        return "probabilities differ by an amount that was not measured for this model"
    if error == 0:
        return "probabilities are exact because the raster is one tile"
    return f"probabilities differed by up to {error:.1e} on windows of the training areas"


def dates(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return the dates of event and acquisitions by name."""
    sar = [provenance[tag] for tag in ("TALUD_ACQUIRED_SAR_PRE", "TALUD_ACQUIRED_SAR_POST") if tag in provenance]
    known = {
        "event": provenance.get("TALUD_EVENT"),
        "optical image": provenance.get("TALUD_ACQUIRED_OPTICAL"),
        "SAR": " and ".join(sar),
    }
    return {what: day for what, day in known.items() if day}


def caption(model: Model, info: RasterInfo, prediction: Prediction) -> quicklook.MapCaption:
    """Return the caption of the quicklook."""
    known = ", ".join(f"{what} {day}" for what, day in dates(info.provenance).items())
    shares = [f"{pixels / prediction.pixels:.1%} {why}" for why, pixels in prediction.not_mapped.items()]
    if len(shares) > MAX_REASONS_IN_CAPTION:
        shares = [*shares[:MAX_REASONS_IN_CAPTION], f"{len(shares) - MAX_REASONS_IN_CAPTION} more reasons"]
    hectares = prediction.landslide_area_m2 / 10_000
    stated = unusual_settings(model, prediction) | {"Chosen": ""}
    unusual = "; ".join(f"{what}: {how}" for what, how in stated.items() if how)
    return quicklook.MapCaption(
        title=info.title,
        lines=(
            known[:1].upper() + known[1:] if known else "Dates unknown",
            f"Model {model.title}; landslide where the probability is at least {prediction.threshold:g}",
            *([unusual] if unusual else []),
            *notices(model, prediction),
        ),
        warning="SYNTHETIC DATA, not a real place" if info.synthetic else "",
        landslides=f"Landslide: {prediction.landslides:,} mapped, {hectares:,.1f} ha",
        not_mapped=f"Not mapped: {prediction.share_not_mapped:.1%} of the raster",
        reasons="Reasons: " + "; ".join(shares) if shares else "",
    )


def content(model: Model, prediction: Prediction, provenance: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of prediction.json.

    It only depends on model, raster and options.
    """
    contract, facts = model.contract, asdict(prediction)
    for left_out in ("taken_over", "distances", "estimate", "no_estimate", "pixel_size", "folder"):
        del facts[left_out]
    return {
        "model": {
            "name": model.name,
            "version": model.version,
            "run": contract.origin.run_id,
            "data_version": contract.origin.data_version,
            "commit": contract.origin.commit,
            "weights": contract.origin.weights,
            "precision": contract.derived.precision,
            "bands": contract.input.band_names,
            "trained_on": contract.origin.areas,
        }
        | ({"chosen": model.registered_as.reason} if model.registered_as and model.registered_as.reason else {}),
        "talud": version("talud"),
        **facts,
        "share_not_mapped": prediction.share_not_mapped,
        "share_reduced": prediction.share_reduced,
        **(
            {"landslide_area_estimate": _estimate_content(prediction.estimate)}
            if prediction.estimate
            else {"no_landslide_area_estimate": prediction.no_estimate}
        ),
        "notices": notices(model, prediction),
        "domain": {
            "verdict": domain.overall_verdict(prediction.distances),
            **({"pixel_size": prediction.pixel_size} if prediction.pixel_size else {}),
            "landslide": {
                "mapped_share": prediction.landslide_share,
                "training_share": contract.training_share,
                "plausible": not domain.is_implausible(prediction.landslide_share, contract.training_share),
            },
            "measure": "overlap: intersection of the histograms of training pixels and raster; outside: share of the "
            "raster's values beyond the training range",
            "bands": [
                {"band": one.band, "overlap": one.overlap, "outside": one.outside, "verdict": one.verdict}
                for one in prediction.distances
            ],
        },
        "stack": dict(provenance),
    }


def read_notices(folder: Path) -> list[str]:
    """Read the notices of a map; none if its record is missing."""
    try:
        return [str(line) for line in json.loads(Products.within(folder).record.read_bytes())["notices"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _estimate_content(estimate: AreaEstimate) -> dict[str, Any]:
    """Return the area estimate and its method."""
    return {
        "measure": "stratified estimator (Olofsson et al. 2014) over the mapped pixels; 95 % interval over the blocks",
        **asdict(estimate),
    }
