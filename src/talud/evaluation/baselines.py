"""Baselines: a random forest and a second training recipe.

The random forest classifies single pixels, as in the landslide literature before neural networks (Breiman 2001,
Machine Learning 45). It uses the same bands, blocks and pixels as the U-Net: it is trained on the training blocks, its
threshold is chosen on the validation blocks, and it is scored like any model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.engine.runtime import Model
from talud.errors import StudyError
from talud.evaluation.results import read_table
from talud.evaluation.scores import ScoredModel, SiteScores, assess_area, describe_pixels, labelled_sites
from talud.files import atomic_replace
from talud.measurement.sites import Site, assess, labelled_windows, probability_histogram
from talud.metrics import LANDSLIDE, UNKNOWN, best_threshold, lack_of_skill
from talud.params import Params, Search
from talud.progress import Progress, tracked
from talud.project import BASELINES, Project
from talud.raster import open_raster

PIXELS_PER_CLASS = 20_000  # training sample of a forest: at most so many landslide and so many background pixels
TREES = 200
MIN_LEAF_PIXELS = 5
PIXELS_PER_BATCH = 1 << 20
DEPRECATED_FOLDER = "references"  # output of the stage `reference`, which became `baseline` in release 0.2


@dataclass(frozen=True)
class Forest:
    """Random forest over the bands of a pixel.

    Attributes:
        bands: names of the input bands.
        classifier: classifier of scikit-learn, fitted to two classes.
        threshold: lowest probability that is mapped as landslide.
    """

    bands: tuple[str, ...]
    classifier: Any
    threshold: float = 0.5


def assess_forest(project: Project, band_set: str, progress: Progress | None = None) -> list[SiteScores]:
    """Train and score a random forest.

    It is scored on the test blocks of the training areas and on every other labelled area.

    Args:
        project: project with stacks in place.
        band_set: name of a band set of params.yaml.
        progress: callback with the number of scored areas and of all areas.

    Raises:
        ParamsError: params.yaml has no band set of this name.
        StudyError: there is no training area, its blocks hold too few pixels, or a stack lacks a band.
        SourceError: a stack or mask is missing or cannot be read.
    """
    forest = fit_forest(project, band_set)
    subject = ScoredModel(f"random forest, {band_set}", "random forest", "", "", forest.threshold)
    training = project.params.areas_with_role("training")
    others = [site for site in labelled_sites(project) if site.name not in training]
    sites = [*_training_sites(project), *others]
    found = []
    for site in tracked(sites, progress, len(sites)):
        test = site.name in training
        windows = labelled_windows(site, site.windows("test" if test else None), _ForestMap(forest, site))
        (assessment,) = assess(windows, [forest.threshold])
        found.append(SiteScores.of(subject, site, describe_pixels(site, test=test), assessment))
    return found


def fit_forest(project: Project, band_set: str) -> Forest:
    """Fit a random forest and choose its threshold.

    The training sample has equally many pixels of both classes. The threshold is chosen on the validation blocks with
    `talud.metrics.best_threshold`, like that of the U-Net.

    Raises:
        ParamsError: params.yaml has no band set of this name.
        StudyError: there is no training area, its blocks hold too few pixels, or a stack lacks a band.
        SourceError: a stack or mask is missing or cannot be read.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise StudyError("a random forest needs scikit-learn; install talud[train]") from error
    bands, seed = project.params.band_set(band_set), project.params.seed
    sites = _training_sites(project)
    if not sites:
        raise StudyError("a random forest needs an area with the role training in params.yaml; none is defined")
    training = (
        (found.probabilities[0], found.truth)
        for site in sites
        for found in labelled_windows(site, site.windows("training"), _Bands(site, bands))
    )
    values, landslide = _sample_balanced(training, len(bands), seed)
    if not landslide.size:
        raise StudyError(f"the training blocks contain only one class where {', '.join(bands)} are valid")
    forest = Forest(
        bands, RandomForestClassifier(TREES, min_samples_leaf=MIN_LEAF_PIXELS, random_state=seed, n_jobs=-1)
    )
    forest.classifier.fit(values, landslide)
    validation = (labelled_windows(site, site.windows("validation"), _ForestMap(forest, site)) for site in sites)
    return replace(forest, threshold=best_threshold(probability_histogram(chain.from_iterable(validation))))


def _training_sites(project: Project) -> list[Site]:
    return [Site.of(project, area) for area in project.params.areas_with_role("training")]


@dataclass(frozen=True)
class _Bands:
    """Band values of a site: float32 (bands, height, width), NaN where invalid."""

    site: Site
    bands: Sequence[str]

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        with open_raster(self.site.stack) as stack:
            numbers = _band_numbers(stack, self.bands)
            for window in windows:
                yield stack.read(numbers, window=window, out_dtype="float32")


@dataclass(frozen=True)
class _ForestMap:
    """Probabilities of a random forest on a site."""

    forest: Forest
    site: Site

    def probabilities(self, windows: Sequence[Window]) -> Iterator[NDArray[np.float32]]:
        gathered: list[NDArray[np.float32]] = []
        for values in _Bands(self.site, self.forest.bands).probabilities(windows):
            gathered.append(values)
            if sum(each[0].size for each in gathered) >= PIXELS_PER_BATCH:
                yield from _classify(self.forest.classifier, gathered)
                gathered = []
        yield from _classify(self.forest.classifier, gathered)


def _band_numbers(stack: DatasetReader, bands: Sequence[str]) -> list[int]:
    missing = [name for name in bands if name not in stack.descriptions]
    if missing:
        raise StudyError(
            f"{stack.name}: has no band {', '.join(missing)}; it holds {', '.join(map(str, stack.descriptions))}; "
            "change the band set in params.yaml, or add the source of the band and run talud stack (or dvc repro)"
        )
    return [stack.descriptions.index(name) + 1 for name in bands]


def _sample_balanced(
    views: Iterable[tuple[NDArray[np.float32], NDArray[np.uint8]]], bands: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a sample of valid pixels, (pixels, bands), and their class.

    Both classes have the same number of pixels, at most `PIXELS_PER_CLASS`. Each pixel draws a random number and those
    with the lowest numbers are kept, so the data are read only once.
    """
    generator = np.random.default_rng(seed)
    kept = {landslide: (np.empty((0, bands), np.float32), np.empty(0)) for landslide in (True, False)}
    for values, truth in views:
        usable = (truth != UNKNOWN) & ~np.isnan(values).any(axis=0)
        for landslide, (pixels, numbers) in kept.items():
            more = values[:, usable & ((truth == LANDSLIDE) == landslide)].T
            drawn = np.concatenate([numbers, generator.random(len(more))])
            lowest = np.argsort(drawn, kind="stable")[:PIXELS_PER_CLASS]
            kept[landslide] = np.concatenate([pixels, more])[lowest], drawn[lowest]
    number = min(len(pixels) for pixels, _ in kept.values())
    return np.concatenate([pixels[:number] for pixels, _ in kept.values()]), np.repeat(list(kept), number)


def _classify(classifier: Any, gathered: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities of each window, NaN where invalid."""
    valid = [~np.isnan(values).any(axis=0) for values in gathered]
    pixels = [values[:, where].T for values, where in zip(gathered, valid, strict=True)]
    if not sum(map(len, pixels)):
        found = np.empty(0, np.float32)
    else:  # pixels of 8-bit images repeat, so each colour is classified once
        colours, which = np.unique(np.concatenate(pixels), axis=0, return_inverse=True)
        found = classifier.predict_proba(colours)[which, 1].astype(np.float32)
    parts = np.split(found, np.cumsum([len(part) for part in pixels])[:-1])
    for where, part in zip(valid, parts, strict=True):
        probability = np.full(where.shape, np.nan, np.float32)
        probability[where] = part
        yield probability


class RecipeScores(BaseModel):
    """Scores of a recipe on an area."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    area: str
    pixels: str = Field(description="description of the pixels that were counted")
    f1: float
    precision: float
    recall: float
    intervals: dict[str, tuple[float, float]] = Field(description="95 % intervals of f1, precision and recall")
    lack_of_skill: str = Field(
        "", description="message if the model is no better than a constant map; empty in older files"
    )

    @classmethod
    def of(cls, recipe: str, found: SiteScores) -> Self:
        """Return the scores of a site, rounded to six decimals."""
        scores = {name: found.scores[name] for name in ("f1", "precision", "recall")}
        return cls(
            recipe=recipe,
            area=found.source,
            pixels=found.pixels,
            **{name: round(score.estimate, 6) for name, score in scores.items()},
            intervals={name: (round(score.low, 6), round(score.high, 6)) for name, score in scores.items()},
            lack_of_skill=lack_of_skill(found.assessment.confusion),
        )


class RecipeComparison(BaseModel):
    """Scores of a band set's recipes on each labelled area."""

    model_config = ConfigDict(frozen=True)

    band_set: str
    scored: tuple[RecipeScores, ...]

    def write(self, path: Path) -> None:
        """Write the comparison as JSON."""
        with atomic_replace(path) as scratch:
            scratch.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a comparison from JSON.

        Raises:
            StudyError: the file is missing or damaged.
        """
        return read_table(cls, path, "talud baseline")


def baseline_project(project: Project, best: Search) -> Project | None:
    """Return a project for the baseline recipe, with outputs in baselines/.

    Args:
        project: project whose params.yaml may name a recipe as `reference`.
        best: search with the best configuration alone.

    Returns:
        None if `reference` is null or the same as `recipe`.
    """
    params = project.params
    if params.reference in (None, params.recipe):
        return None
    changed = {"recipe": params.reference, "search": "baseline", "searches": {"baseline": best}}
    return Project(project.root, Params.model_validate({**dict(params), **changed}), BASELINES)


def compare_recipes(
    project: Project, band_set: str, models: Mapping[str, Model], progress: Progress | None
) -> RecipeComparison:
    """Score models of several recipes on every labelled area.

    Writes the scores to baselines/BAND_SET.json.

    Args:
        project: project whose labelled areas are scored.
        band_set: name of the models' band set.
        models: recipe → the model that was trained with it.
        progress: callback after each model and area.

    Raises:
        TaludError: a model or an area cannot be scored, as in `assess_area`.
        OutputError: the comparison cannot be written.
    """
    pairs = list(itertools.product(labelled_sites(project), models.items()))
    scored = [
        RecipeScores.of(recipe, assess_area(model, project, site.name))
        for site, (recipe, model) in tracked(pairs, progress, len(pairs))
    ]
    result = RecipeComparison(band_set=band_set, scored=tuple(scored))
    result.write(project.recipe_comparison(band_set))
    return result


def read_comparison(project: Project, band_set: str) -> RecipeComparison | None:
    """Read the comparison of a band set's recipes, if there is one.

    Raises:
        StudyError: the file is damaged.
    """
    for path in (project.recipe_comparison(band_set), _deprecated_path(project, band_set)):
        if path.is_file():
            return RecipeComparison.read(path)
    return None


def move_to_deprecated_path(project: Project, band_set: str) -> None:
    """Move the comparison to the output of the stage `reference`.

    Raises:
        OutputError: the file cannot be written.
    """
    source, target = project.recipe_comparison(band_set), _deprecated_path(project, band_set)
    with atomic_replace(target) as scratch:
        source.replace(scratch)


def _deprecated_path(project: Project, band_set: str) -> Path:
    return project.root / DEPRECATED_FOLDER / f"{band_set}.json"
