"""The baseline: a random forest that looks at one pixel at a time, which a network must beat.

It is what the landslide literature used before networks (Breiman 2001, Machine Learning 45), here on the same bands,
blocks and pixels as the U-Net: trained on the training blocks, its threshold chosen on the validation blocks, scored
as every model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.errors import StudyError
from talud.evaluation.scores import SiteScores, Subject, labelled_sites, pixels_of
from talud.measurement.sites import Site, assess, histogram, labelled_windows
from talud.metrics import LANDSLIDE, UNKNOWN, best_threshold
from talud.progress import Progress, tracked
from talud.project import Project
from talud.raster import open_raster

PER_CLASS = 20_000  # pixels of landslide, and of background, that the forest learns from
TREES, LEAF = 200, 5
PIXELS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Forest:
    """A random forest over the bands of a pixel.

    Attributes:
        bands: names of the bands that it reads.
        classifier: classifier of scikit-learn, fitted to two classes.
        threshold: least probability that is mapped as landslide.
    """

    bands: tuple[str, ...]
    classifier: Any
    threshold: float = 0.5


def assess_baseline(project: Project, band_set: str, progress: Progress | None = None) -> list[SiteScores]:
    """Train a forest, and score it on the test blocks of the training areas and on every other labelled area.

    Args:
        project: project with stacks in place.
        band_set: name of a band set of params.yaml.
        progress: callback that takes the areas done and all areas.

    Raises:
        ParamsError: there is no such band set.
        StudyError: there is no training area, it cannot be split, its blocks hold too little, or a stack lacks a band.
        SourceError: a stack or mask is missing or cannot be read.
    """
    forest = fit(project, band_set)
    subject = Subject(f"random forest, {band_set}", "random forest", "", "", forest.threshold)
    training = project.params.areas_of("training")
    others = [site for site in labelled_sites(project) if site.name not in training]
    sites = [*_training_sites(project), *others]
    found = []
    for site in tracked(sites, progress, len(sites)):
        test = site.name in training
        windows = labelled_windows(site, site.windows("test" if test else None), _ForestMap(forest, site))
        (assessment,) = assess(windows, [forest.threshold])
        found.append(SiteScores.of(subject, site, pixels_of(site, test=test), assessment))
    return found


def fit(project: Project, band_set: str) -> Forest:
    """Fit a forest to pixels of the training blocks, as many of either class, and choose its threshold.

    The threshold is `talud.metrics.best_threshold` on the validation blocks, as the U-Net's is.

    Raises:
        ParamsError: there is no such band set.
        StudyError: there is no training area, it cannot be split, its blocks hold too little, or a stack lacks a band.
        SourceError: a stack or mask is missing or cannot be read.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise StudyError("a random forest needs scikit-learn; install talud[train]") from error
    bands, seed = project.params.band_set(band_set), project.params.seed
    sites = _training_sites(project)
    if not sites:
        raise StudyError("params.yaml names no area of the role training; a random forest needs one")
    training = (
        (found.probabilities[0], found.truth)
        for site in sites
        for found in labelled_windows(site, site.windows("training"), _Bands(site, bands))
    )
    values, landslide = _balanced(training, len(bands), seed)
    if not landslide.size:
        raise StudyError(f"the training blocks hold no landslide, or nothing else, where {', '.join(bands)} are valid")
    forest = Forest(bands, RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=seed, n_jobs=-1))
    forest.classifier.fit(values, landslide)
    validation = (labelled_windows(site, site.windows("validation"), _ForestMap(forest, site)) for site in sites)
    return replace(forest, threshold=best_threshold(histogram(chain.from_iterable(validation))))


def _training_sites(project: Project) -> list[Site]:
    return [Site.of(project, area) for area in project.params.areas_of("training")]


@dataclass(frozen=True)
class _Bands:
    """The bands of a site themselves: float32 (bands, height, width) of each window, NaN where invalid."""

    site: Site
    bands: Sequence[str]

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        with open_raster(self.site.stack) as stack:
            numbers = _numbers(stack, self.bands)
            for window in windows:
                yield stack.read(numbers, window=window, out_dtype="float32")


@dataclass(frozen=True)
class _ForestMap:
    """The probabilities of a forest on a site; many windows are classified in one go."""

    forest: Forest
    site: Site

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        gathered: list[NDArray[np.float32]] = []
        for values in _Bands(self.site, self.forest.bands).probabilities(windows):
            gathered.append(values)
            if sum(each[0].size for each in gathered) >= PIXELS_AT_ONCE:
                yield from _classified(self.forest.classifier, gathered)
                gathered = []
        yield from _classified(self.forest.classifier, gathered)


def _numbers(stack: DatasetReader, bands: Sequence[str]) -> list[int]:
    missing = [name for name in bands if name not in stack.descriptions]
    if missing:
        raise StudyError(
            f"{stack.name}: has no band {', '.join(missing)}; it holds {', '.join(map(str, stack.descriptions))}; "
            "change the band set in params.yaml, or add the source of the band and run talud stack (or dvc repro)"
        )
    return [stack.descriptions.index(name) + 1 for name in bands]


def _balanced(
    views: Iterable[tuple[NDArray[np.float32], NDArray[np.uint8]]], bands: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return as many valid pixels of either class, at most `PER_CLASS`: (pixels, bands), and their class.

    Each pixel draws a number, and those with the lowest are kept: all are as likely, and one reading is enough.
    """
    generator = np.random.default_rng(seed)
    kept = {landslide: (np.empty((0, bands), np.float32), np.empty(0)) for landslide in (True, False)}
    for values, truth in views:
        usable = (truth != UNKNOWN) & ~np.isnan(values).any(axis=0)
        for landslide, (pixels, numbers) in kept.items():
            more = values[:, usable & ((truth == LANDSLIDE) == landslide)].T
            drawn = np.concatenate([numbers, generator.random(len(more))])
            lowest = np.argsort(drawn, kind="stable")[:PER_CLASS]
            kept[landslide] = np.concatenate([pixels, more])[lowest], drawn[lowest]
    number = min(len(pixels) for pixels, _ in kept.values())
    return np.concatenate([pixels[:number] for pixels, _ in kept.values()]), np.repeat(list(kept), number)


def _classified(classifier: Any, gathered: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yield the probability over each window, NaN where a band is invalid."""
    valid = [~np.isnan(values).any(axis=0) for values in gathered]
    pixels = [values[:, where].T for values, where in zip(gathered, valid, strict=True)]
    if not sum(map(len, pixels)):
        found = np.empty(0, np.float32)
    else:  # many pixels of 8-bit images are equal: each colour is classified once
        colours, which = np.unique(np.concatenate(pixels), axis=0, return_inverse=True)
        found = classifier.predict_proba(colours)[which, 1].astype(np.float32)
    parts = np.split(found, np.cumsum([len(part) for part in pixels])[:-1])
    for where, part in zip(valid, parts, strict=True):
        probability = np.full(where.shape, np.nan, np.float32)
        probability[where] = part
        yield probability
