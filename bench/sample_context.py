"""Comparison of a per-pixel classifier with a U-Net on the sample basins.

    python bench/sample_context.py [BAND_SET ...]

Checks that the basins require spatial context: with seven bands, the F1 of the U-Net on the test blocks should be at
least 0.10 higher. Run it in a project whose sample basins have stacks (dvc pull, then talud stack). Both classifiers
are trained on the training blocks, and their threshold is chosen on the validation blocks; F1 is printed for the test
blocks and for the valid pixels of each transfer area. The per-pixel classifier is a random forest or histogram gradient
boosting, whichever has the higher validation F1. The U-Net is the first trial of the search `demo`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import rasterio
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from talud.data.patches import Patches
from talud.measurement.sites import Site
from talud.metrics import LANDSLIDE, UNKNOWN, ThresholdHistogram, best_threshold, confusion
from talud.project import Project
from talud.training.checkpoint import TrialState
from talud.training.dataset import Dataset
from talud.training.search import hyperparameter_sets
from talud.training.trial import TrialConfig, train

Classifier = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (n, height, width, bands) → (n, height, width)


def train_per_pixel(dataset: Dataset, seed: int) -> Classifier:
    """Return the per-pixel classifier with the higher validation F1."""
    known = dataset.training.mask != UNKNOWN
    pixels, truth = dataset.training.stack[known], dataset.training.mask[known] == LANDSLIDE
    forest = RandomForestClassifier(100, min_samples_leaf=5, n_jobs=-1, random_state=seed).fit(pixels, truth)
    boosting = HistGradientBoostingClassifier(random_state=seed).fit(pixels, truth)

    def classifier(model: RandomForestClassifier | HistGradientBoostingClassifier) -> Classifier:
        def probability(stack: NDArray[np.float32]) -> NDArray[np.float32]:
            flat = stack.reshape(-1, stack.shape[-1])
            return model.predict_proba(flat)[:, 1].reshape(stack.shape[:-1]).astype(np.float32)

        return probability

    return max((classifier(model) for model in (forest, boosting)), key=lambda one: score(one, dataset)[0])


def train_network(dataset: Dataset, project: Project) -> Classifier:
    """Return a trained U-Net."""
    hyperparameters = hyperparameter_sets(project.params.searches["demo"], project.params.seed)[0]
    with tempfile.TemporaryDirectory() as folder:
        config = TrialConfig.of(project, hyperparameters, dataset.bands)
        trained = train(
            dataset, config, Path(folder) / "trial.npz", state=TrialState(), max_epochs=hyperparameters.epochs
        )
    model = config.build(dataset.statistics)
    model.set_weights(trained.best)
    print(f"  U-Net: {trained.seconds:.0f} s, best epoch {trained.best_epoch} of {hyperparameters.epochs}")
    return lambda stack: np.asarray(model.predict(stack, batch_size=16, verbose=0))[..., 0]


def score(classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
    """Return validation F1 at the best threshold, and that threshold."""
    probability = classifier(dataset.validation.stack)
    threshold = best_threshold(ThresholdHistogram.of(probability, dataset.validation.mask))
    return confusion(probability >= threshold, dataset.validation.mask).f1, threshold


def whole_area(project: Project, area: str, bands: tuple[str, ...], multiple: int) -> Patches:
    """Return an area as one patch, padded with NaN; invalid pixels are unknown."""
    with rasterio.open(project.stack(area)) as stack, rasterio.open(project.mask(area)) as mask:
        values = stack.read([stack.descriptions.index(name) + 1 for name in bands])
        truth = mask.read(1)
    truth[~np.isfinite(values).all(axis=0)] = UNKNOWN
    pad = [(0, -side % multiple) for side in truth.shape]
    values = np.pad(values, [(0, 0), *pad], constant_values=np.nan)
    return Patches(np.moveaxis(values, 0, -1)[np.newaxis], np.pad(truth, pad, constant_values=UNKNOWN)[np.newaxis])


def main(band_sets: list[str]) -> None:
    """Print the F1 of both classifiers."""
    project = Project.find(Path.cwd())
    params = project.params
    for band_set in band_sets or list(params.band_sets):
        dataset = Dataset.load(project, band_set)
        print(f"{band_set}: {len(dataset.training)} training patches")
        tests = {
            f"test blocks of {area}": Site.of(project, area).cut_patches(dataset.bands, "test")
            for area in dataset.blocks
        }
        tests |= {
            area: whole_area(project, area, dataset.bands, 2**params.training.depth)
            for area in params.areas_with_role("transfer")
        }
        for name, classifier in (
            ("per pixel", train_per_pixel(dataset, params.seed)),
            ("U-Net", train_network(dataset, project)),
        ):
            validation, threshold = score(classifier, dataset)
            scores = {
                place: confusion(classifier(patches.stack) >= threshold, patches.mask)
                for place, patches in tests.items()
            }
            found = ", ".join(f"{place} {counts.f1:.3f}" for place, counts in scores.items())
            print(f"  {name}: validation {validation:.3f} (threshold {threshold:.2f}), {found}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
