"""Adaptation of a model to an area without labels: its features there are aligned to those of its training areas.

Whether to adapt, the model's agreement with itself decides: a landslide stays one when its image is turned or mirrored,
and a network that knows what it sees gives eight maps that resemble each other. The resemblance is Matthews'
correlation coefficient, which is 0 for a map without any landslide, or full of them; the share of equal pixels would
rank these best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.stats import norm

from talud import metrics
from talud.bands import Group
from talud.contract import Adaptation, Contract
from talud.engine import coverage
from talud.engine.model_file import parsed, save, weights_digest
from talud.engine.runtime import Model
from talud.engine.symmetry import SYMMETRIES
from talud.errors import MismatchError, ModelError
from talud.mapping.reader import StackReader, frugal, open_stack
from talud.measurement import features
from talud.measurement.features import FeatureStatistics
from talud.measurement.samples import MIN_MAPPED_SHARE, sample_windows
from talud.metrics import Confusion

RADIOMETRIC_GROUPS = (Group.OPTICAL, Group.SAR)  # what light, air and instrument change; terrain is the same everywhere
STRENGTHS = (1.0, 0.5)  # that are tried, in this order
AGREEMENT_NOISE = 0.01  # of agreement: a smaller loss does not speak against the area's own statistics
MIN_WINDOWS = 4  # squares that stand for an area
MAX_DEVIATIONS = 3.0  # deviations of a square's mean from the median, estimated from the median distance
# What a contract states of the file that it came with, and no longer of one whose features were moved.
_RESET_FIELDS: Mapping[str, object] = {"halo_errors": {}, "parity": {}, "calibration": None, "validation": None}


@dataclass(frozen=True)
class AdaptedModel:
    """A model adapted to an area, in memory.

    Attributes:
        graph: of it; its metadata hold no contract yet.
        contract: of it; `adapted` says how it came about.
    """

    graph: onnx.ModelProto
    contract: Contract


def adapt(model: Model, raster: str | Path, area: str | None = None, strength: float | None = None) -> AdaptedModel:
    """Align the features of a model in an area to those of its training areas.

    It needs the raster of the area, and no label.

    Mean and variance of each optical and SAR band over squares of the raster, and of each channel after each
    convolution, become those that the file holds of the training areas (see `features`). What the raster says to lie
    under cloud, or in radar layover or shadow, is left out. Whether that is done whole, by half or not at all, the
    model's agreement with itself says (see `self_agreement`). Form, threshold and scores stay the original's.

    Args:
        model: a float32 file.
        raster: a stack of the area that fits the model's contract, all of its bands.
        area: its name; default: what the stack calls it, or the raster's name.
        strength: how much of the way the statistics go, above 0, at most 1. Default: 1, or else 0.5.

    Raises:
        ModelError: the file is a variant of reduced precision, holds no statistics of its features, or was adapted.
        MismatchError: the raster does not fit the model, has too few valid squares, or the model agrees less with
            itself once adapted. What was found, and the limit, is said.
        SourceError: the raster cannot be read.
    """
    graph, home = _training_features(model)
    radiometric = [band.group in RADIOMETRIC_GROUPS for band in model.contract.input.bands]
    with frugal(), open_stack(raster, model.contract) as stack:
        sample, provenance = _sample_windows(stack, home.side, radiometric, raster), stack.info.provenance
    there = features.measure_features(graph, sample, home, radiometric)
    before = self_agreement(model, sample)
    tried = [
        _make_candidate(
            model, features.align_features(graph, home, home.interpolate(there, share), radiometric), share, sample
        )
        for share in ((strength,) if strength else STRENGTHS)
    ]
    made = _choose_candidate(tried, before)
    if made is None:
        after = max(one.agreement for one in tried)
        raise MismatchError(
            f"{raster}: no model is adapted to it: turned and mirrored, its maps correlate to {after:.3f} once "
            f"adapted, and to {before:.3f} as the model is; map with that"
        )
    adaptation = Adaptation(
        weights=model.contract.origin.weights,
        model=model.name,
        version=model.version,
        area=area or provenance.get("TALUD_AREA") or Path(provenance["TALUD_RASTER"]).stem,
        raster=provenance["TALUD_RASTER"],
        raster_digest=provenance["TALUD_RASTER_DIGEST"],
        strength=made.strength,
        squares=len(sample),
        side=sample.shape[-1],
        agreement_before=before,
        agreement_after=made.agreement,
    )
    return AdaptedModel(made.graph, made.contract.replace(adapted=adaptation))


def _training_features(model: Model) -> tuple[onnx.ModelProto, FeatureStatistics]:
    """Return the graph of a model, and the features of its training areas.

    Raises:
        ModelError: it cannot be adapted.
    """
    contract = model.contract
    if contract.derived.precision != "float32":
        raise ModelError(f"{model.path}: is of precision {contract.derived.precision}; name the float32 file")
    if contract.derived.adapted:
        raise ModelError(
            f"{model.path}: was adapted to {contract.derived.adapted.area} already; adapt what it was made from, "
            f"{contract.derived.adapted.model} {contract.derived.adapted.version}"
        )
    graph = parsed(model.path.read_bytes())
    try:
        home = FeatureStatistics.of(graph)
    except ModelError as error:
        raise ModelError(f"{model.path}: {error}") from error
    del graph.metadata_props[:]
    return graph, home


def _sample_windows(
    stack: StackReader, side: int, radiometric: Sequence[bool], raster: str | Path
) -> NDArray[np.float32]:
    """Return squares of a raster, as large as those of the training areas, or its patches.

    Those that look unlike most, in a band that light changes, are left out: cloud of which the raster does not tell.

    Raises:
        MismatchError: there are too few, or a group of bands is missing.
    """
    if stack.info.absent:
        raise MismatchError(
            f"{raster}: lacks the bands of {', '.join(stack.info.absent)}, so no model is adapted to it"
        )
    side = stack.info.patch or side
    found = _drop_outliers(sample_windows(stack, stack.grid.windows(side), side), radiometric)
    if len(found) < MIN_WINDOWS:
        raise MismatchError(
            f"{raster}: no model is adapted to it: it has {len(found)} squares of {side} pixels of which "
            f"{MIN_MAPPED_SHARE:.0%} can be mapped, fewer than the {MIN_WINDOWS} that represent an area; take a "
            "larger part of it"
        )
    return found


def _drop_outliers(sample: NDArray[np.float32], radiometric: Sequence[bool]) -> NDArray[np.float32]:
    """Drop outlier squares: keep those whose band means lie near the median.

    The distance is limited to `MAX_DEVIATIONS` deviations, estimated from the median distance.
    """
    valid: NDArray[np.bool_] = np.isfinite(sample[:, np.array(radiometric, bool)])
    sample = sample[np.all(valid.any(axis=(2, 3)), axis=1)]  # no band is invalid throughout
    if not len(sample):
        return sample
    means = np.nanmean(sample[:, np.array(radiometric, bool)], axis=(2, 3))
    distance = np.abs(means - np.median(means, axis=0))
    near: NDArray[np.bool_] = (distance <= MAX_DEVIATIONS * np.median(distance, axis=0) / norm.ppf(0.75)).all(axis=1)
    return sample[near]


def _choose_candidate(tried: Sequence[_Candidate], before: float) -> _Candidate | None:
    """Return the first that agrees better with itself; else the first not worse beyond noise."""
    return next((one for least in (before, before - AGREEMENT_NOISE) for one in tried if one.agreement > least), None)


@dataclass(frozen=True)
class _Candidate:
    """Network with features moved by a strength, and its agreement with itself."""

    strength: float
    graph: onnx.ModelProto
    contract: Contract
    agreement: float


def _make_candidate(model: Model, graph: onnx.ModelProto, strength: float, sample: NDArray[np.float32]) -> _Candidate:
    stays = model.contract.without_optional_groups() if model.contract.input.subsets else model.contract
    contract = stays.replace(**_RESET_FIELDS, weights=weights_digest(graph))
    with TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "adapted.onnx"
        save(graph, contract, path)
        return _Candidate(strength, graph, contract, self_agreement(Model.load(path), sample))


def self_agreement(model: Model, squares: NDArray[np.float32]) -> float:
    """Return the mean correlation of a map with the seven of the squares turned and mirrored.

    Args:
        model: to run, at its own threshold.
        squares: (squares, bands, side, side), in contract order, NaN where invalid.

    Returns:
        -1 to 1; 0 where it maps nothing, or everything, as landslide.

    Raises:
        ModelError: the network fails.
    """
    counts = [Confusion() for _ in SYMMETRIES[1:]]
    for square in squares:
        mapped = coverage.blocked(square, model.contract) == 0
        straight, *turned = _landslide_masks(model, square)
        counts = [
            count + metrics.confusion(other, straight.astype(np.uint8), mapped)
            for count, other in zip(counts, turned, strict=True)
        ]
    return float(np.mean([count.mcc for count in counts]))


def _landslide_masks(model: Model, square: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """Yield the landslide mask of a square under each of the eight symmetries."""
    for symmetry in SYMMETRIES:
        probability = model.probability(np.ascontiguousarray(symmetry.turned(square)))
        yield symmetry.turned_back(probability) >= model.contract.measured.threshold
