"""Alignment of a model to a new area.

Two alignments are tried: of the bands alone, which changes only the constants by which the network scales them, and of
the bands and the features of each layer. `talud.adaptation.decision` chooses between them and the model as it is.
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
from talud.adaptation import decision
from talud.adaptation.decision import ALIGNMENTS, Alignment, Signs
from talud.bands import Group
from talud.contract import Adaptation, AlignedPart, Contract
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
        signs: signs of the model as it is and of each alignment that was tried.
    """

    graph: onnx.ModelProto
    contract: Contract
    signs: tuple[Signs, ...]


def adapt(
    model: Model,
    raster: str | Path,
    area: str | None = None,
    strength: float | None = None,
    align: AlignedPart | None = None,
) -> AdaptedModel:
    """Adapt a model to an area by aligning its statistics.

    No labels are needed. The mean and variance of each optical and SAR band over windows of the raster, and in one of
    the alignments of each channel after each convolution, are set to those of the training areas, which the file holds
    (see `measurement.features`). Pixels under cloud, and in radar layover or shadow, are left out if the raster marks
    them. The alignment is chosen by `talud.adaptation.decision`. The structure, threshold and scores of the original
    are kept.

    Args:
        model: float32 model.
        raster: stack of the area with all bands of the model.
        area: name of the area; default: the stack's tag TALUD_AREA, or the name of the raster.
        strength: share of the difference of the statistics to correct, above 0 and at most 1; default: 1.
        align: what is aligned; default: both alignments are tried.

    Raises:
        ModelError: The file is a reduced-precision variant, holds no feature statistics, or was adapted already.
        MismatchError: The raster does not fit the model or has too few valid windows.
        DeclinedError: The model is better as it is, or neither it nor an alignment gives a plausible map.
        SourceError: The raster cannot be read.
    """
    graph, training_features = _training_features(model)
    radiometric = [band.group in RADIOMETRIC_GROUPS for band in model.contract.input.bands]
    with small_gdal_cache(), open_stack(raster, model.contract) as stack:
        sample, provenance = _sample_windows(stack, training_features.side, radiometric, raster), stack.info.provenance
    area_features = features.measure_features(graph, sample, training_features, radiometric)
    candidates = []
    for part in (align,) if align else ALIGNMENTS:
        alignment = Alignment(part, strength or 1.0)
        observed = training_features.interpolate(area_features, alignment.strength)
        change = features.align_bands if part == "bands" else features.align_features
        candidates.append(
            _make_candidate(model, change(graph, training_features, observed, radiometric), alignment, sample)
        )
    signs = (measure_signs(model, sample), *(candidate.signs for candidate in candidates))
    chosen = candidates[decision.choose(signs, model.contract.training_share, str(raster))]
    assert chosen.signs.alignment is not None
    adaptation = Adaptation(
        weights=model.contract.origin.weights,
        model=model.name,
        version=model.version,
        area=area or provenance.get("TALUD_AREA") or Path(provenance["TALUD_RASTER"]).stem,
        raster=provenance["TALUD_RASTER"],
        raster_digest=provenance["TALUD_RASTER_DIGEST"],
        aligned=chosen.signs.alignment.part,
        strength=chosen.signs.alignment.strength,
        squares=len(sample),
        side=sample.shape[-1],
        agreement_before=signs[0].agreement,
        agreement_after=chosen.signs.agreement,
        share_before=signs[0].share,
        share_after=chosen.signs.share,
    )
    return AdaptedModel(chosen.graph, chosen.contract.replace(adapted=adaptation), signs)


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


@dataclass(frozen=True)
class _Candidate:
    """Aligned model and its signs."""

    graph: onnx.ModelProto
    contract: Contract
    signs: Signs


def _make_candidate(
    model: Model, graph: onnx.ModelProto, alignment: Alignment, sample: NDArray[np.float32]
) -> _Candidate:
    stays = model.contract.without_optional_groups() if model.contract.input.subsets else model.contract
    contract = stays.replace(**_RESET_FIELDS, weights=weights_digest(graph), landslide_share=stays.training_share)
    with TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / "adapted.onnx"
        save_model(graph, contract, path)
        return _Candidate(graph, contract, measure_signs(Model.load(path), sample, alignment))


def measure_signs(model: Model, windows: NDArray[np.float32], alignment: Alignment | None = None) -> Signs:
    """Measure the signs of a model's maps of windows.

    The maps of the windows are compared with the maps of their seven rotated and mirrored copies. The agreement is the
    mean of the seven Matthews correlations over all windows. It is 0 for maps without landslides or of landslides only;
    the share of equal pixels would rank such maps best.

    Args:
        model: model, which is run at its own threshold.
        windows: square windows (windows, bands, side, side) in contract order, NaN where invalid.
        alignment: alignment of the model; default: none.

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
    landslide = counts[0].tp + counts[0].fn
    return Signs(alignment, landslide / max(counts[0].pixels, 1), float(np.mean([count.mcc for count in counts])))


def _landslide_masks(model: Model, window: NDArray[np.float32]) -> Iterator[NDArray[np.bool_]]:
    """Yield a window's landslide mask under each symmetry."""
    for symmetry in SYMMETRIES:
        probability = model.probability(np.ascontiguousarray(symmetry.apply(window)))
        yield symmetry.invert(probability) >= model.contract.measured.threshold
