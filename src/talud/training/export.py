"""From a trained Keras model to the file that ships: ONNX, checked against Keras, with its contract inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from talud.bands import Group, band_named, groups_of
from talud.contract import BandContract, Calibration, Contract, Measurements, ModelInput, ModelOrigin
from talud.data.patches import Patches
from talud.engine.margins import receptive_field
from talud.engine.model_file import save, weights_digest
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.mapping.reader import open_stack
from talud.measurement import subsets
from talud.measurement.features import FeatureStatistics, measure_features
from talud.measurement.samples import MAX_SAMPLE_PIXELS, band_histogram, difference_histograms, sample_windows
from talud.measurement.sites import assess, labelled_windows, probability_histogram
from talud.metrics import LANDSLIDE, UNKNOWN, ThresholdHistogram, best_threshold
from talud.project import Project
from talud.training import calibration
from talud.training.dataset import Dataset
from talud.training.halo_errors import measure_halo_errors
from talud.training.onnx_graph import to_onnx

PARITY_TOLERANCE = 1e-5  # between Keras and ONNX Runtime, in probability
_MAX_ROUNDING_FACTOR = 4  # how many times Keras's own rounding error the file may differ by
_BATCH_SIZE = 16


@dataclass(frozen=True)
class ExportOrigin:
    """ExportOrigin of an exported model."""

    band_set: str
    commit: str
    run_id: str
    hyperparameters: dict[str, float | int | str]


def export_model(model: keras.Model, dataset: Dataset, project: Project, origin: ExportOrigin, path: Path) -> Contract:
    """Write a model and its contract, having calibrated it and checked the file on the validation blocks.

    Unless `training.calibrate` is off, the last layer is scaled first, so that probabilities fit the validation blocks
    (`talud.training.calibration`). The threshold is `talud.metrics.best_threshold` there, found with the file itself;
    the contract's scores and counts are those at this threshold. What smaller halos cost is measured on the areas'
    stacks; for a model that learned to do without some groups, what it is worth with each subset of them is measured on
    the validation blocks, with the file as it ships.

    Args:
        model: trained; its last layer is scaled in place.
        dataset: what it was trained on.
        project: where the validation blocks' stacks and masks lie.
        origin: where the model comes from.
        path: of the ONNX file.

    Raises:
        StudyError: file and model differ on a validation patch by more than 1e-5, and more than rounding explains.
        OutputError: the file cannot be written.
    """
    graph = to_onnx(model)
    draft = _draft_contract(graph, dataset, origin)
    if project.params.training.calibrate:
        calibrated = _calibrate_last_layer(model, draft, dataset)
        graph = to_onnx(model)
        draft = draft.replace(calibration=calibrated, weights=weights_digest(graph))
    save(graph, draft, path)
    shipped = Model.load(path)
    parity = check_parity(model, shipped, dataset.validation)
    validation = [
        window for site in dataset.sites for window in labelled_windows(site, site.windows("validation"), shipped)
    ]
    threshold = best_threshold(probability_histogram(validation))
    (assessment,) = assess(validation, [threshold])
    found = {
        "threshold": threshold,
        "scores": assessment.confusion.scores(),
        "validation": assessment.validation,
        "parity": parity,
    }
    contract = shipped.contract.replace(**found, halo_errors=measure_halo_errors(shipped, project, dataset.blocks))
    save(graph, contract, path)
    if _optional_groups(dataset, project):
        contract = _measure_subsets(Model.load(path), dataset, project)
    features = _measure_features(graph, contract, dataset, project)
    save(graph, contract, path, features.to_metadata() if features else None)
    return contract


def _measure_features(
    graph: onnx.ModelProto, contract: Contract, dataset: Dataset, project: Project
) -> FeatureStatistics | None:
    """Measure the features of the training blocks; None if no block suffices."""
    side = project.params.split.block // contract.input.alignment * contract.input.alignment
    if not side:
        return None
    most = max(1, MAX_SAMPLE_PIXELS // side**2 // len(dataset.sites))  # of each area
    parts = []
    for site in dataset.sites:
        with open_stack(site.stack, contract) as stack:
            parts.append(sample_windows(stack, site.windows("training"), side)[:most])
    sample = np.concatenate(parts)
    return measure_features(graph, sample) if len(sample) else None


def _measure_subsets(shipped: Model, dataset: Dataset, project: Project) -> Contract:
    """Return a file's contract with its scores by subset of groups, measured on the validation blocks."""
    tolerance = project.params.learning.dropping.tolerance
    found = subsets.score_subsets(shipped, dataset.sites, _optional_groups(dataset, project), tolerance)
    return shipped.contract.replace(subsets=found, required_groups=subsets.required_groups(found))


def _optional_groups(dataset: Dataset, project: Project) -> tuple[Group, ...]:
    return project.params.learning.dropping.optional(groups_of(dataset.bands))


def _draft_contract(graph: onnx.ModelProto, dataset: Dataset, origin: ExportOrigin) -> Contract:
    """The contract, before threshold and scores are known."""
    field = receptive_field(graph)
    return Contract(
        input=ModelInput(
            bands=_band_contracts(dataset),
            differences=difference_histograms(dataset.training.stack, dataset.bands),
            required_groups=groups_of(dataset.bands),
            pixel_size=dataset.stack_format.pixel_size,
            halo=field.halo,
            alignment=field.alignment,
            stack=dict(dataset.stack_format.processing),
        ),
        origin=ModelOrigin(
            name=origin.band_set,
            weights=weights_digest(graph),
            data_version=dataset.version,
            areas=tuple(dataset.blocks),
            commit=origin.commit,
            run_id=origin.run_id,
            hyperparameters=origin.hyperparameters,
        ),
        measured=Measurements(
            threshold=0.5,
            scores={},
        ),
    )


def _band_contracts(dataset: Dataset) -> tuple[BandContract, ...]:
    """Each band's entry; where physics sets no limit, plausible is the range of the training areas and a span more."""
    entries = []
    statistics = dataset.statistics
    for index, name in enumerate(dataset.bands):
        known = band_named(name)
        low, high = map(float, dataset.value_ranges[:, index])
        pixels = dataset.training.stack[..., index]
        edges, shares = band_histogram(pixels[~np.isnan(pixels)])
        entries.append(
            BandContract(
                name=name,
                group=known.group,
                unit=dataset.stack_format.units[index],
                lowest=known.lowest if math.isfinite(known.lowest) else low - (high - low),
                highest=known.highest if math.isfinite(known.highest) else high + (high - low),
                mean=float(statistics.mean[index]),
                deviation=float(statistics.deviation[index]),
                minimum=float(statistics.minimum[index]),
                maximum=float(statistics.maximum[index]),
                edges=edges,
                shares=shares,
            )
        )
    return tuple(entries)


def check_parity(model: keras.Model, shipped: Model, patches: Patches) -> dict[str, float]:
    """Compare the file with the Keras model in double precision, on every validation patch; the contract's `parity`.

    Single precision alone can err by more than the tolerance: the Dice loss drives logits to hundreds, and where they
    cancel, rounding is what remains of them. So the file may also differ by a few times what Keras itself errs by in
    single precision. A fault of the export is far larger than either.
    """
    exact = to_double_precision(model)
    difference = rounding = 0.0
    for start in range(0, len(patches), _BATCH_SIZE):
        stack = patches.stack[start : start + _BATCH_SIZE]
        expected = _probability(exact, stack.astype(np.float64))
        found = np.stack([shipped.run(np.ascontiguousarray(np.moveaxis(patch, -1, 0))) for patch in stack])
        difference = max(difference, float(np.abs(found - expected).max()))
        rounding = max(rounding, float(np.abs(_probability(model, stack) - expected).max()))
    allowed = max(PARITY_TOLERANCE, _MAX_ROUNDING_FACTOR * rounding)
    if not difference <= allowed:  # so written, NaN fails too
        raise StudyError(
            f"the exported model differs from the Keras model by {difference:.2g} on validation patches, more than "
            f"the {allowed:.2g} that rounding explains; nothing was written. Please report this with params.yaml"
        )
    return {"difference": difference, "allowed": allowed}


def to_double_precision(model: keras.Model) -> keras.Model:
    """The same model with 64-bit weights and arithmetic (where the backend has them; JAX must be told to)."""

    def widened(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    wide = keras.models.clone_model(model, clone_function=widened)
    wide.set_weights([weight.astype(np.float64) for weight in model.get_weights()])
    return wide


def _probability(model: keras.Model, stack: NDArray[np.floating]) -> NDArray[np.floating]:
    """The probability of a batch, (batch, height, width)."""
    probability: NDArray[np.floating] = keras.ops.convert_to_numpy(model(stack, training=False))[..., 0]
    return probability


def _calibrate_last_layer(model: keras.Model, draft: Contract, dataset: Dataset) -> Calibration:
    """Scale a model's last layer by what fits the mapped pixels of the validation blocks that are known."""
    found, truth = [], []
    for site in dataset.sites:
        for window in labelled_windows(site, site.windows("validation"), calibration.SiteLogits(model, draft, site)):
            counted = window.valid & (window.truth != UNKNOWN)
            found.append(window.probabilities[0][counted])
            truth.append(window.truth[counted])
    logits, known = np.concatenate(found), np.concatenate(truth)
    line = calibration.fit_platt_scaling(logits, known == LANDSLIDE)
    declined = "" if line.slope > 0 else "on the validation blocks, higher logits do not mean more landslide"
    line = calibration.IDENTITY if declined else line
    calibration.apply_to_last_layer(model, line)
    before, after = (
        ThresholdHistogram.of(each.probability(logits).astype(np.float32), known).bins().calibration_error
        for each in (calibration.IDENTITY, line)
    )
    return Calibration(slope=line.slope, offset=line.offset, error_before=before, error_after=after, declined=declined)
