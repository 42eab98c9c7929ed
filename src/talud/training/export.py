"""Export of a trained Keras model to an ONNX file with its contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
from numpy.typing import NDArray

from talud.bands import Group, band_named, groups_of
from talud.contract import (
    BandContract,
    Calibration,
    Contract,
    Measurements,
    ModelInput,
    ModelOrigin,
    NetworkArchitecture,
)
from talud.data.patches import Patches
from talud.engine.margins import receptive_field
from talud.engine.model_file import save_model, weights_digest
from talud.engine.planning import pass_memory
from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.mapping.reader import open_stack
from talud.measurement import subsets
from talud.measurement.features import FeatureStatistics, measure_features
from talud.measurement.samples import MAX_SAMPLE_PIXELS, band_histogram, difference_histograms, sample_windows
from talud.measurement.sites import assess, labelled_windows, probability_histogram
from talud.metrics import LANDSLIDE, UNKNOWN, ThresholdHistogram, best_threshold
from talud.networks.catalogue import NetworkSpec
from talud.networks.export import to_onnx, with_last_layer
from talud.project import Project
from talud.training import calibration
from talud.training.dataset import Dataset
from talud.training.halo_errors import measure_halo_errors

PARITY_TOLERANCE = 1e-5  # allowed difference of probabilities between Keras and ONNX Runtime
_MAX_ROUNDING_FACTOR = 4  # allowed difference, as a multiple of Keras's own rounding error
_BATCH_SIZE = 16


@dataclass(frozen=True)
class ExportOrigin:
    """Origin of an exported model."""

    network: NetworkSpec
    band_set: str
    commit: str
    run_id: str
    hyperparameters: dict[str, float | int | str]


def export_model(model: keras.Model, dataset: Dataset, project: Project, origin: ExportOrigin, path: Path) -> Contract:
    """Calibrate a model and export it to ONNX.

    If `training.calibrate` is on, the last layer is scaled to fit the validation blocks (`talud.training.calibration`).
    The file is then compared with the Keras model on the validation patches. The contract states measurements of the
    file: the best threshold on the validation blocks (`talud.metrics.best_threshold`) with the scores and counts there,
    the errors of smaller halos on the areas' stacks, and, for a model trained with dropped groups, its scores with each
    subset of the band groups.

    Args:
        model: trained model, whose last layer is scaled in place.
        dataset: data that the model was trained on.
        project: project with the stacks and masks of the validation blocks.
        origin: origin of the model.
        path: path of the ONNX file.

    Returns:
        The contract of the file.

    Raises:
        StudyError: The file and the Keras model differ by more than 1e-5, and by more than rounding errors explain.
        OutputError: The file cannot be written.
    """
    graph = to_onnx(model)
    draft = _draft_contract(graph, dataset, origin)
    if project.params.training.calibrate:
        calibrated = _calibrate_last_layer(model, draft, dataset)
        graph = with_last_layer(graph, model)
        draft = draft.replace(calibration=calibrated, weights=weights_digest(graph))
    save_model(graph, draft, path)
    shipped = Model.load(path)
    parity = check_parity(model, shipped, dataset.validation)
    validation = [
        window for site in dataset.sites for window in labelled_windows(site, site.windows("validation"), shipped)
    ]
    threshold = best_threshold(probability_histogram(validation))
    (assessment,) = assess(validation, [threshold])
    measurements = {
        "threshold": threshold,
        "scores": assessment.confusion.scores(),
        "validation": assessment.validation,
        "parity": parity,
    }
    contract = shipped.contract.replace(
        **measurements, halo_errors=measure_halo_errors(shipped, project, dataset.blocks)
    )
    save_model(graph, contract, path)
    if _optional_groups(dataset, project):
        contract = _measure_subsets(Model.load(path), dataset, project)
    features = _measure_features(graph, contract, dataset, project)
    save_model(graph, contract, path, features.to_metadata() if features else None)
    return contract


def _measure_features(
    graph: onnx.ModelProto, contract: Contract, dataset: Dataset, project: Project
) -> FeatureStatistics | None:
    """Measure the feature statistics of the training blocks.

    Return None if no window of the blocks has enough mapped pixels.
    """
    block = project.params.split.block
    sides = {int(site.blocks[0].window.height) if site.patch_side else block for site in dataset.sites}
    if len(sides) > 1:  # the statistics are of windows of one side
        block = min(sides)
    side = block // contract.input.alignment * contract.input.alignment
    if not side:
        return None
    per_site = max(1, MAX_SAMPLE_PIXELS // side**2 // len(dataset.sites))
    parts = []
    for site in dataset.sites:
        with open_stack(site.stack, contract) as stack:
            parts.append(sample_windows(stack, site.windows("training"), side)[:per_site])
    sample = np.concatenate(parts)
    return measure_features(graph, sample) if len(sample) else None


def _measure_subsets(shipped: Model, dataset: Dataset, project: Project) -> Contract:
    """Return the contract with the scores of band-group subsets."""
    tolerance = project.params.chosen_recipe.dropping.tolerance
    scored = subsets.score_subsets(shipped, dataset.sites, _optional_groups(dataset, project), tolerance)
    return shipped.contract.replace(subsets=scored, required_groups=subsets.required_groups(scored))


def _optional_groups(dataset: Dataset, project: Project) -> tuple[Group, ...]:
    return project.params.chosen_recipe.dropping.optional_groups(groups_of(dataset.bands))


def _draft_contract(graph: onnx.ModelProto, dataset: Dataset, origin: ExportOrigin) -> Contract:
    """Return the contract without threshold and scores."""
    field = receptive_field(graph)
    return Contract(
        input=ModelInput(
            bands=_band_contracts(dataset),
            differences=difference_histograms(dataset.training.stack, dataset.bands),
            required_groups=groups_of(dataset.bands),
            pixel_size=dataset.stack_format.pixel_size,
            pixel_sizes=dataset.stack_format.trained_sizes,
            halo=field.halo,
            alignment=field.alignment,
            stack=dict(dataset.stack_format.processing),
        ),
        origin=ModelOrigin(
            name=origin.band_set,
            weights=weights_digest(graph),
            data_version=dataset.version,
            areas=tuple(dataset.blocks),
            area_pixel_sizes=dataset.stack_format.differing_sizes,
            landslide_share=_landslide_share(dataset),
            commit=origin.commit,
            run_id=origin.run_id,
            hyperparameters=origin.hyperparameters,
            network=NetworkArchitecture(name=origin.network.name, options=origin.network.fields),
        ),
        measured=Measurements(
            threshold=0.5,
            scores={},
            memory=pass_memory(graph),
        ),
    )


def _landslide_share(dataset: Dataset) -> float | None:
    """Return the landslide share of the training blocks' labelled pixels."""
    landslide = known = 0
    for site in dataset.sites:
        with site.open_truth() as read:
            for window in site.windows("training"):
                truth = read(window)
                landslide += int((truth == LANDSLIDE).sum())
                known += int((truth != UNKNOWN).sum())
    return landslide / known if known else None


def _band_contracts(dataset: Dataset) -> tuple[BandContract, ...]:
    """Return the contract's entry of each band.

    If physics sets no limit, the plausible range is that of the training areas, extended by its width on each side.
    """
    entries = []
    statistics = dataset.statistics
    for index, name in enumerate(dataset.bands):
        definition = band_named(name)
        low, high = map(float, dataset.value_ranges[:, index])
        pixels = dataset.training.stack[..., index]
        edges, shares = band_histogram(pixels[~np.isnan(pixels)])
        entries.append(
            BandContract(
                name=name,
                group=definition.group,
                unit=dataset.stack_format.units[index],
                lowest=definition.lowest if math.isfinite(definition.lowest) else low - (high - low),
                highest=definition.highest if math.isfinite(definition.highest) else high + (high - low),
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
    """Compare an exported model with the Keras model in double precision.

    Rounding errors in single precision can exceed the tolerance, because the Dice loss produces logits of hundreds. The
    file may therefore differ by a small multiple of the error that Keras makes in single precision. A fault of the
    export is far larger.

    Args:
        model: Keras model.
        shipped: exported model.
        patches: patches to compare on.

    Returns:
        The contract's `parity`: the largest difference of a probability, and the allowed one.

    Raises:
        StudyError: The difference is too large.
    """
    exact = to_double_precision(model)
    difference = rounding = 0.0
    for start in range(0, len(patches), _BATCH_SIZE):
        stack = patches.stack[start : start + _BATCH_SIZE]
        expected = _probability(exact, stack.astype(np.float64))
        actual = np.stack([shipped.run(np.ascontiguousarray(np.moveaxis(patch, -1, 0))) for patch in stack])
        difference = max(difference, float(np.abs(actual - expected).max()))
        rounding = max(rounding, float(np.abs(_probability(model, stack) - expected).max()))
    allowed = max(PARITY_TOLERANCE, _MAX_ROUNDING_FACTOR * rounding)
    # Written this way, the check also fails on NaN.
    if not difference <= allowed:
        raise StudyError(
            f"the exported model differs from the Keras model by {difference:.2g} on validation patches, more than "
            f"the {allowed:.2g} that rounding explains; no file was written; please report this with params.yaml"
        )
    return {"difference": difference, "allowed": allowed}


def to_double_precision(model: keras.Model) -> keras.Model:
    """Return a copy of a model in float64.

    With the JAX backend this requires `jax_enable_x64`.
    """

    def widened(layer: Any) -> Any:
        # Other operations than layers, such as a slice of bands, have no type.
        dtype = {"dtype": "float64"} if isinstance(layer, keras.Layer) else {}
        return type(layer).from_config({**layer.get_config(), **dtype})

    wide = keras.models.clone_model(model, clone_function=widened)
    wide.set_weights([weight.astype(np.float64) for weight in model.get_weights()])
    return wide


def _probability(model: keras.Model, stack: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the probability of a batch, (batch, height, width)."""
    probability: NDArray[np.floating] = keras.ops.convert_to_numpy(model(stack, training=False))[..., 0]
    return probability


def _calibrate_last_layer(model: keras.Model, draft: Contract, dataset: Dataset) -> Calibration:
    """Calibrate a model's last layer on the validation blocks."""
    window_logits, truth = [], []
    for site in dataset.sites:
        for window in labelled_windows(site, site.windows("validation"), calibration.SiteLogits(model, draft, site)):
            counted = window.valid & (window.truth != UNKNOWN)
            window_logits.append(window.probabilities[0][counted])
            truth.append(window.truth[counted])
    logits, labels = np.concatenate(window_logits), np.concatenate(truth)
    scaling = calibration.fit_platt_scaling(logits, labels == LANDSLIDE)
    declined = "" if scaling.slope > 0 else "on the validation blocks, higher logits do not mean more landslide"
    scaling = calibration.IDENTITY if declined else scaling
    calibration.apply_to_last_layer(model, scaling)
    before, after = (
        ThresholdHistogram.of(each.probability(logits).astype(np.float32), labels).bins().calibration_error
        for each in (calibration.IDENTITY, scaling)
    )
    return Calibration(
        slope=scaling.slope, offset=scaling.offset, error_before=before, error_after=after, declined=declined
    )
