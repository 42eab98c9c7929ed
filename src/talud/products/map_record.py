"""Record of a map: tags of its files, text of its picture, content of prediction.json."""

from __future__ import annotations

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

MAX_REASONS_IN_CAPTION = 3  # reasons, at most, under the quicklook: it has one line for them


@dataclass(frozen=True)
class ReducedPixels:
    """Pixels that are mapped without some groups of bands.

    Attributes:
        groups: that they are mapped with.
        why: what is wanting, in words, as for what is not mapped.
        pixels: how many.
        f1: on the validation blocks, with these groups alone; None where nobody measured it.
    """

    groups: tuple[Group, ...]
    why: str
    pixels: int
    f1: float | None

    @classmethod
    def of(cls, code: int, pixels: int, contract: Contract) -> ReducedPixels:
        """Return the meaning of a code of `coverage.Coverage.reduced`."""
        groups = coverage.available_groups(code, contract)
        measured = contract.input.subset(groups)
        return cls(groups, coverage.describe_code(code, contract), pixels, measured.f1 if measured else None)


@dataclass(frozen=True)
class Prediction:
    """Figures of a map; `prediction.json` holds them together with the origin of the model.

    Attributes:
        raster: name of the raster's file, without its folders.
        pixels: of the whole raster.
        not_mapped: why pixels are left out, in words → how many are for that reason, the most frequent first.
        reduced: which pixels are mapped without some of the model's groups, the most frequent first.
        landslides: their number.
        landslide_area_m2: of all of them.
        threshold: landslide where the probability is at least this.
        provider: the execution provider that ran the network.
        tile: (height, width) of a tile's core.
        window: (height, width) of what the network is given at once.
        halo: pixels of context around a core.
        exact_halo: those with which the map equals that of one pass over the whole raster; 0 where it consists of
            patches, each of which is a whole.
        halo_error: what a smaller halo costs: how far probabilities differ from the exact ones, at most, on windows of
            the training areas; 0 where the map is exact, None where the model's contract does not hold it.
        tiles: number of tiles.
        skipped: tiles without a pixel to map, for which the network did not run.
        minimum_area_m2: of a landslide that counts; 0 where none was set.
        left_out: landslides that are smaller, and neither counted nor among the polygons.
        smooth: whether the outlines of the landslides are smoothed; their numbers are those of the pixels.
        distances: how far each band lies from the training areas.
        tta: whether the probability is the mean over eight turned and mirrored passes (test-time augmentation).
        estimate: the landslide area set right by how the model errs on its validation blocks; None where the contract
            does not hold that, or the map is of another threshold, halo or number of passes, or is reduced anywhere.
        no_estimate: why there is none, in words; empty where there is one.
        landslide_share: part of the mapped pixels that is landslide, 0 to 1, small landslides included.
        taken_over: tiles that an earlier run had finished before it was interrupted. The files do not show it.
        folder: of the files; None while the map is being made.
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
    tiles: int
    skipped: int
    minimum_area_m2: float
    left_out: int
    smooth: bool
    distances: tuple[DomainDistance, ...]
    tta: bool
    estimate: AreaEstimate | None = None
    no_estimate: str = ""
    landslide_share: float = 0.0
    taken_over: int = 0
    folder: Path | None = field(default=None, compare=False)

    @property
    def files(self) -> dict[str, Path]:
        """Return the paths of the map's files by name.

        The names are probability, classes, polygons, summary, record and others.

        Only files that exist are listed: `disagreement` and `geojson` are made on demand.
        """
        if self.folder is None:
            return {}
        products = Products.within(self.folder)
        return {name: path for name, path in vars(products).items() if path.is_file()}

    @property
    def share_not_mapped(self) -> float:
        """Return the part of the raster that the map leaves out, 0 to 1."""
        return sum(self.not_mapped.values()) / self.pixels

    @property
    def share_reduced(self) -> float:
        """Return the part of the mapped pixels that is mapped without some of the model's groups, 0 to 1."""
        mapped = self.pixels - sum(self.not_mapped.values())
        return sum(one.pixels for one in self.reduced) / mapped if mapped else 0.0


def origin_tags(model: Model, threshold: float, halo: int | None, tta: bool) -> dict[str, str]:
    """Return the origin of a map as tags of its files; halo and augmentation only where they are not the default.

    Args:
        model: that made it.
        threshold: of a landslide's probability.
        halo: where it is smaller than the exact one, else None.
        tta: whether it is a mean over turned and mirrored passes.
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
    """Return the options that are not the default, and the choice of the model, in words."""
    stated: dict[str, str] = {}
    if model.contract.derived.precision != "float32":
        stated["Precision"] = model.contract.derived.precision
    if prediction.halo < prediction.exact_halo:
        stated["Halo"] = (
            f"{prediction.halo} instead of {prediction.exact_halo}: {_halo_error_text(prediction.halo_error)}"
        )
    if prediction.tta:
        stated["Probability"] = "mean over the raster turned and mirrored in all eight ways"
    if model.registered_as and model.registered_as.reason:
        stated["Chosen"] = model.registered_as.reason
    return stated


IMPLAUSIBLE_LANDSLIDE_SHARE = 0.5  # of what is mapped: no basin holds so much landslide


def notices(model: Model, prediction: Prediction) -> list[str]:
    """Return notices to read before the map is used, one line each.

    The list is empty if there is nothing to say.
    """
    said = []
    if adapted := model.contract.derived.adapted:
        said.append(f"Adapted to {adapted.area} without labels, which can multiply false alarms")
    if weak := model.contract.measured.lack_of_skill:
        said.append(f"The model is {weak}")
    mapped = prediction.pixels - sum(prediction.not_mapped.values())
    if mapped and prediction.landslide_share > IMPLAUSIBLE_LANDSLIDE_SHARE:
        said.append(
            f"{prediction.landslide_share:.0%} of what is mapped is called landslide: the map tells little apart"
        )
    if mapped and not prediction.landslide_share:
        said.append("Nothing is mapped as landslide: no probability reaches the threshold")
    return said


def reduced_lines(prediction: Prediction, contract: Contract) -> list[str]:
    """Return a line for each set of groups that pixels are mapped with, such as "12.0% … from terrain + sar alone"."""
    mapped = prediction.pixels - sum(prediction.not_mapped.values())
    whole = contract.input.subset(contract.input.groups)
    lines = []
    for one in prediction.reduced:
        line = f"{one.pixels / mapped:.1%} of what is mapped from {' + '.join(one.groups)} alone: {one.why}"
        if one.f1 is not None and whole:
            line += f" (validation F1 {one.f1:.2f}, with all bands {whole.f1:.2f})"
        lines.append(line)
    return lines


def _halo_error_text(error: float | None) -> str:
    """Return the cost of a smaller halo in words."""
    if error is None:
        return "probabilities differ; how far was not measured for this model"
    if error == 0:
        return "probabilities are exact, for the raster is one tile"
    return f"probabilities differed by up to {error:.1e} on windows of the training areas"


def dates(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return the dates of event and acquisitions that the stack states."""
    sar = [provenance[tag] for tag in ("TALUD_ACQUIRED_SAR_PRE", "TALUD_ACQUIRED_SAR_POST") if tag in provenance]
    known = {
        "event": provenance.get("TALUD_EVENT"),
        "optical image": provenance.get("TALUD_ACQUIRED_OPTICAL"),
        "SAR": " and ".join(sar),
    }
    return {what: day for what, day in known.items() if day}


def caption(model: Model, info: RasterInfo, prediction: Prediction) -> quicklook.MapCaption:
    """Return the text of the quicklook."""
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
        warning="SYNTHETIC DATA, no real place" if info.synthetic else "",
        landslides=f"Landslide: {prediction.landslides:,} mapped, {hectares:,.1f} ha",
        not_mapped=f"Not mapped: {prediction.share_not_mapped:.1%} of the raster",
        reasons="Why not mapped: " + "; ".join(shares) if shares else "",
    )


def content(model: Model, prediction: Prediction, provenance: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of prediction.json: the same for the same model, raster and options."""
    contract, facts = model.contract, asdict(prediction)
    for left_out in ("taken_over", "distances", "estimate", "no_estimate", "folder"):
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
            "measure": "overlap: intersection of the histograms of training pixels and raster; outside: share of the "
            "raster's values beyond the training range",
            "bands": [
                {"band": one.band, "overlap": one.overlap, "outside": one.outside, "verdict": one.verdict}
                for one in prediction.distances
            ],
        },
        "stack": dict(provenance),
    }


def _estimate_content(estimate: AreaEstimate) -> dict[str, Any]:
    """Return the estimate of the area, and its method."""
    return {
        "measure": "stratified estimator (Olofsson et al. 2014) of what is mapped; 95 % interval over the blocks",
        **asdict(estimate),
    }
