"""Alignment of a model's feature statistics to a new area.

The model's self-agreement decides if and how strongly it is adapted: the eight maps of a rotated and mirrored image
should be alike if the network recognises landslides there. Their similarity is Matthews' correlation coefficient, which
is 0 for maps without landslides or of landslides only; the share of equal pixels would rank such maps best.
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
from talud.engine.model_file import parse_model, save_model, weights_digest
from talud.engine.runtime import Model
from talud.engine.symmetry import SYMMETRIES
from talud.errors import MismatchError, ModelError
from talud.mapping.reader import StackReader, open_stack, small_gdal_cache
from talud.measurement import features
from talud.measurement.features import FeatureStatistics
from talud.measurement.samples import MIN_MAPPED_SHARE, sample_windows
from talud.metrics import Confusion
from talud.raster import patch_content

# Groups whose values depend on illumination, atmosphere and sensor; terrain does not.
RADIOMETRIC_GROUPS = (Group.OPTICAL, Group.SAR)
STRENGTHS = (1.0, 0.5)  # strengths to try, in this order
AGREEMENT_NOISE = 0.01  # largest loss of self-agreement that does not count as worse
MIN_WINDOWS = 4  # smallest number of windows that represent an area
MAX_DEVIATIONS = 3.0  # largest distance of a window's mean from the median, in robust standard deviations
# Fields of a contract that were measured with the original features, with the values that reset them.
_RESET_FIELDS: Mapping[str, object] = {"halo_errors": {}, "parity": {}, "calibration": None, "validation": None}


@dataclass(frozen=True)
class AdaptedModel:
    """A model adapted to an area, in memory.

    Attributes:
        graph: ONNX graph, without the contract in its metadata.
        contract: contract of the model, whose `adapted` describes the adaptation.
    """

    graph: onnx.ModelProto
    contract: Contract


def adapt(model: Model, raster: str | Path, area: str | None = None, strength: float | None = None) -> AdaptedModel:
    """Adapt a model to an area by aligning its feature statistics.

    No labels are needed. The mean and variance of each optical and SAR band over windows of the raster, and of each
    channel after each convolution, are set to those of the training areas, which the file holds (see
    `measurement.features`). Pixels under cloud, and in radar layover or shadow, are left out if the raster marks them.
    The strength of the alignment is decided by the self-agreement (see `self_agreement`). The structure, threshold and
    scores of the original are kept.

    Args:
        model: float32 model.
        raster: stack of the area with all bands of the model.
        area: name of the area; default: the stack's tag TALUD_AREA, or the name of the raster.
        strength: share of the difference of the statistics to correct, above 0 and at most 1; default: 1, else 0.5.

    Raises:
        ModelError: The file is a reduced-precision variant, holds no feature statistics, or was adapted already.
        MismatchError: The raster does not fit the model or has too few valid windows, or the adaptation would reduce
            the self-agreement.
        SourceError: The raster cannot be read.
    """
    graph, training_features = _training_features(model)
    radiometric = [band.group in RADIOMETRIC_GROUPS for band in model.contract.input.bands]
    with small_gdal_cache(), open_stack(raster, model.contract) as stack:
        sample, provenance = _sample_windows(stack, training_features.side, radiometric, raster), stack.info.provenance
    area_features = features.measure_features(graph, sample, training_features, radiometric)
    before = self_agreement(model, sample)
    candidates = [
        _make_candidate(
            model,
            features.align_features(
                graph, training_features, training_features.interpolate(area_features, share), radiometric
            ),
            share,
            sample,
        )
        for share in ((strength,) if strength else STRENGTHS)
    ]
    chosen = _choose_candidate(candidates, before)
    if chosen is None:
        after = max(candidate.agreement for candidate in candidates)
        raise MismatchError(
            f"{raster}: the model is not adapted to it: the correlation of its rotated and mirrored maps would fall "
            f"from {before:.3f} to {after:.3f}; use the original model"
        )
    adaptation = Adaptation(
        weights=model.contract.origin.weights,
        model=model.name,
        version=model.version,
        area=area or provenance.get("TALUD_AREA") or Path(provenance["TALUD_RASTER"]).stem,
        raster=provenance["TALUD_RASTER"],
        raster_digest=provenance["TALUD_RASTER_DIGEST"],
        strength=chosen.strength,
        squares=len(sample),
        side=sample.shape[-1],
        agreement_before=before,
        agreement_after=chosen.agreement,
    )
    return AdaptedModel(chosen.graph, chosen.contract.replace(adapted=adaptation))


def _training_features(model: Model) -> tuple[onnx.ModelProto, FeatureStatistics]:
    """Return a model's graph and its training feature statistics.

    Raises:
        ModelError: The model cannot be adapted.
    """
    contract = model.contract
    if contract.derived.precision != "float32":
        raise ModelError(f"{model.path}: is of precision {contract.derived.precision}; use the float32 file")
    if contract.derived.adapted:
        raise ModelError(
            f"{model.path}: was already adapted to {contract.derived.adapted.area}; adapt its original, "
            f"{contract.derived.adapted.model} {contract.derived.adapted.version}"
        )
    graph = parse_model(model.path.read_bytes())
    try:
        training_features = FeatureStatistics.of(graph)
    except ModelError as error:
        raise ModelError(f"{model.path}: {error}") from error
    del graph.metadata_props[:]
    return graph, training_features


def _sample_windows(
    stack: StackReader, side: int, radiometric: Sequence[bool], raster: str | Path
) -> NDArray[np.float32]:
    """Return windows of a raster, or its patches, without outliers.

    Outliers in an optical or SAR band are usually clouds that the raster does not mark.

    Args:
        stack: reader of the raster.
        side: side of the windows in pixels, as in the training areas.
        radiometric: mask of the optical and SAR bands, (bands,).
        raster: path of the raster, for error messages.

    Raises:
        MismatchError: There are too few windows, or a band group is missing.
    """
    if stack.info.missing_groups:
        raise MismatchError(
            f"{raster}: lacks the bands of {', '.join(stack.info.missing_groups)}, which adapting the model needs; add "
            "their sources"
        )
    patch = stack.info.patch
    if patch:
        alignment = stack.contract.input.alignment
        side = max(patch_content(stack.info.tags, patch, raster) // alignment * alignment, alignment)
    sample = _drop_outliers(sample_windows(stack, stack.grid.windows(patch or side), side), radiometric)
    if len(sample) < MIN_WINDOWS:
        raise MismatchError(
            f"{raster}: has {len(sample)} squares of {side} pixels of which at least {MIN_MAPPED_SHARE:.0%} can be "
            f"mapped, but an adaptation needs {MIN_WINDOWS}; use a larger raster"
        )
    return sample


def _drop_outliers(sample: NDArray[np.float32], radiometric: Sequence[bool]) -> NDArray[np.float32]:
    """Drop windows whose band means are far from the median.

    The largest allowed distance is `MAX_DEVIATIONS` standard deviations, estimated from the median absolute deviation.
    """
    valid: NDArray[np.bool_] = np.isfinite(sample[:, np.array(radiometric, bool)])
    sample = sample[np.all(valid.any(axis=(2, 3)), axis=1)]  # no band is invalid throughout
    if not len(sample):
        return sample
    means = np.nanmean(sample[:, np.array(radiometric, bool)], axis=(2, 3))
    distance = np.abs(means - np.median(means, axis=0))
    near: NDArray[np.bool_] = (distance <= MAX_DEVIATIONS * np.median(distance, axis=0) / norm.ppf(0.75)).all(axis=1)
    return sample[near]


def _choose_candidate(candidates: Sequence[_Candidate], before: float) -> _Candidate | None:
    """Return the first candidate with higher self-agreement.

    If there is none, return the first whose loss is within `AGREEMENT_NOISE`, else None.
    """
    return next(
        (
            candidate
            for least in (before, before - AGREEMENT_NOISE)
            for candidate in candidates
            if candidate.agreement > least
        ),
        None,
    )


@dataclass(frozen=True)
class _Candidate:
    """Model aligned with a strength, and its self-agreement."""

    strength: float
    graph: onnx.ModelProto
    contract: Contract
    agreement: float


def _make_candidate(model: Model, graph: onnx.ModelProto, strength: float, sample: NDArray[np.float32]) -> _Candidate:
    stays = model.contract.without_optional_groups() if model.contract.input.subsets else model.contract
    contract = stays.replace(**_RESET_FIELDS, weights=weights_digest(graph))
    with TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "adapted.onnx"
        save_model(graph, contract, path)
        return _Candidate(strength, graph, contract, self_agreement(Model.load(path), sample))


def self_agreement(model: Model, windows: NDArray[np.float32]) -> float:
    """Return the agreement of a model's rotated and mirrored maps.

    The maps of the windows are compared with the maps of their seven rotated and mirrored copies.

    Args:
        model: model, which is run at its own threshold.
        windows: square windows (windows, bands, side, side) in contract order, NaN where invalid.

    Returns:
        Mean of the seven Matthews correlations over all windows, -1 to 1; 0 if nothing or everything is landslide.

    Raises:
        ModelError: The network fails.
    """
    counts = [Confusion() for _ in SYMMETRIES[1:]]
    for window in windows:
        mapped = coverage.unmapped_codes(window, model.contract) == 0
        original, *others = _landslide_masks(model, window)
        counts = [
            count + metrics.confusion(other, original.astype(np.uint8), mapped)
            for count, other in zip(counts, others, strict=True)
        ]
    return float(np.mean([count.mcc for count in counts]))


def _landslide_masks(model: Model, window: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """Yield a window's landslide mask under each symmetry."""
    for symmetry in SYMMETRIES:
        probability = model.probability(np.ascontiguousarray(symmetry.apply(window)))
        yield symmetry.invert(probability) >= model.contract.measured.threshold
