"""The floor: a random forest that looks at one pixel at a time. A network that is no better has learned no shape.

It is what the landslide literature used before networks (Breiman 2001, Machine Learning 45), here on the same bands,
blocks and pixels as the U-Net: trained on the training blocks, its threshold chosen on the validation blocks, scored
as every model is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.confusion_map import at_threshold
from talud.data.patches import Part
from talud.data.record import current_stack
from talud.errors import StudyError
from talud.evaluation.area_scores import place
from talud.evaluation.assessment import Assessment, Subject
from talud.evaluation.scoring import block_windows, labelled
from talud.metrics import LANDSLIDE, UNKNOWN, ThresholdHistogram, best_threshold
from talud.progress import Progress
from talud.project import Project
from talud.raster import open_raster

PER_CLASS = 20_000  # pixels of landslide, and of background, that the forest learns from
TREES, LEAF = 200, 5
_AT_ONCE = 1 << 20  # pixels that are classified together

# A window's bands, float32 (bands, height, width), NaN where invalid, and its mask (height, width).
View = tuple[NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True)
class Forest:
    """A random forest over the bands of a pixel.

    Attributes:
        bands: that it reads.
        classifier: scikit-learn's, fitted to two classes.
        threshold: landslide where the probability is at least this.
    """

    bands: tuple[str, ...]
    classifier: Any
    threshold: float


def assess_floor(project: Project, band_set: str, progress: Progress | None = None) -> list[Assessment]:
    """Train a forest, and score it on the test blocks of the training areas and on every other labelled area.

    Args:
        project: with stacks in place.
        band_set: of params.yaml.
        progress: told, after each area, how many are done and how many there are.

    Raises:
        ParamsError: there is no such band set.
        StudyError: there is no training area, it cannot be split, its blocks hold too little, or a stack lacks a band.
        SourceError: a stack or mask is missing or cannot be read.
    """
    forest = grow(project, band_set)
    subject = Subject(f"random forest, {band_set}", "random forest", "", "", forest.threshold)
    training = project.params.areas_of("training")
    others = [area for area in labelled(project) if area not in training]
    places = [place(project, area, test=area in training) for area in (*training, *others)]
    found = []
    for done, where in enumerate(places, start=1):
        levels = _probabilities(forest.classifier, _views(project, where.area, where.windows, forest.bands))
        sights = ((truth, at_threshold(probability, forest.threshold)) for probability, truth in levels)
        found.append(Assessment.of(subject, where.area, where.pixels, where.unit, sights))
        if progress:
            progress(done, len(places))
    return found


def grow(project: Project, band_set: str) -> Forest:
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
    for area in project.params.areas_of("training"):
        current_stack(project, area)  # whose mask, which is read first, has the same parameters
    if not project.params.areas_of("training"):
        raise StudyError("params.yaml names no area of the role training; a random forest needs one")
    values, landslide = _balanced(_part(project, bands, "training"), len(bands), seed)
    if not landslide.size:
        raise StudyError(f"the training blocks hold no landslide, or nothing else, where {', '.join(bands)} are valid")
    classifier = RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=seed, n_jobs=-1)
    classifier.fit(values, landslide)
    levels = sum(
        (ThresholdHistogram.of(*known) for known in _probabilities(classifier, _part(project, bands, "validation"))),
        start=ThresholdHistogram(),
    )
    return Forest(bands, classifier, best_threshold(levels))


def _part(project: Project, bands: Sequence[str], part: Part) -> Iterator[View]:
    """The blocks of one part of the training areas."""
    areas = project.params.areas_of("training")
    return chain.from_iterable(_views(project, area, block_windows(project, area, part), bands) for area in areas)


def _views(project: Project, area: str, windows: Iterable[Window], bands: Sequence[str]) -> Iterator[View]:
    with open_raster(current_stack(project, area)) as stack, open_raster(project.mask(area)) as truths:
        numbers = _numbers(stack, bands)
        for window in windows:
            yield stack.read(numbers, window=window, out_dtype="float32"), truths.read(1, window=window)


def _numbers(stack: DatasetReader, bands: Sequence[str]) -> list[int]:
    missing = [name for name in bands if name not in stack.descriptions]
    if missing:
        raise StudyError(
            f"{stack.name}: has no band {', '.join(missing)}; it holds {', '.join(map(str, stack.descriptions))}; "
            "change the band set in params.yaml, or add the source of the band and run talud stack (or dvc repro)"
        )
    return [stack.descriptions.index(name) + 1 for name in bands]


def _balanced(views: Iterable[View], bands: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """As many valid pixels of either class, at most `PER_CLASS`: (pixels, bands), and whether they are landslide.

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


def _probabilities(classifier: Any, views: Iterable[View]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """The probability over each view, NaN where a band is invalid, with its mask; many views in one go."""
    gathered: list[View] = []
    for view in views:
        gathered.append(view)
        if sum(truth.size for _, truth in gathered) >= _AT_ONCE:
            yield from _classified(classifier, gathered)
            gathered = []
    yield from _classified(classifier, gathered)


def _classified(classifier: Any, views: list[View]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    valid = [~np.isnan(values).any(axis=0) for values, _ in views]
    pixels = [values[:, where].T for (values, _), where in zip(views, valid, strict=True)]
    if not sum(map(len, pixels)):
        found = np.empty(0, np.float32)
    else:  # many pixels of 8-bit images are equal: each colour is asked for once
        colours, which = np.unique(np.concatenate(pixels), axis=0, return_inverse=True)
        found = classifier.predict_proba(colours)[which, 1].astype(np.float32)
    parts = np.split(found, np.cumsum([len(part) for part in pixels])[:-1])
    for (_, truth), where, part in zip(views, valid, parts, strict=True):
        probability = np.full(truth.shape, np.nan, np.float32)
        probability[where] = part
        yield probability, truth
