"""Scores of the maps of a project's areas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rasterio.io import DatasetReader
from rasterio.windows import Window

from talud.confusion_map import NOT_COMPARED, PIXEL_CLASS_COLOURS, PixelClass, apply_threshold, classify_pixels
from talud.engine.runtime import Model
from talud.errors import MismatchError, StudyError
from talud.grid import Grid
from talud.measurement.assessment import Assessment
from talud.measurement.sites import ProbabilityMap, Site, labelled_windows
from talud.products.adaptation_record import MODEL_NAME, AdaptationRecord
from talud.project import Project, adapted_name
from talud.raster import BLOCK_SIZE, Layout, open_raster, write_cog
from talud.text import dimensions


def map_windows(project: Project, band_set: str, site: Site) -> list[Window]:
    """Return the windows of an area's map.

    They are empty for a training area without a map, which is scored by its test blocks.

    Raises:
        StudyError: any other area has no map.
    """
    folder = project.prediction(band_set, site.name)
    if (folder / "landslides.tif").is_file():
        return site.windows(side=BLOCK_SIZE)
    if project.params.area(site.name).role == "training":
        return []
    model, stack, out = (
        path.relative_to(project.root) for path in (project.model(band_set), project.stack(site.name), folder)
    )
    raise StudyError(f"{out}: has no map of {site.name}; run talud predict {model} {stack} --out {out}")


def adapted_maps(
    model: Model, project: Project, band_set: str, sites: Sequence[Site]
) -> list[tuple[Site, Model, list[Window]]]:
    """Return the sites that a model adapted to them has mapped.

    Args:
        model: model of the band set.
        project: project with the maps.
        band_set: name of the band set.
        sites: labelled areas.

    Returns:
        Each site with the adapted model, and windows that cover it.

    Raises:
        StudyError: The record of an adaptation is damaged.
        ModelError: The model of a map is missing or damaged.
        MismatchError: It was adapted from another model.
    """
    found, records = [], AdaptationRecord.read_all(project, band_set)
    for site in sites:
        if site.name not in records or not records[site.name].adapted:
            continue
        adapted = Model.load(project.adapted_prediction(band_set, site.name) / MODEL_NAME)
        origin = adapted.contract.derived.adapted
        if origin is None or origin.weights != model.contract.origin.weights:
            raise MismatchError(
                f"{adapted.path}: was not adapted from {model.path.name}; run talud adapt {band_set} {site.name} (or "
                "dvc repro) again"
            )
        found.append((site, adapted, site.windows(side=BLOCK_SIZE)))
    return found


def scored_map(
    model: Model, project: Project, band_set: str, site: Site, windows: Sequence[Window]
) -> Iterator[Assessment]:
    """Score an area's map by window, and write its confusion map.

    Args:
        model: model that made the map; if it was adapted, the map of the adapted model is scored.
        project: project with the map.
        band_set: band set of the model.
        site: labelled area.
        windows: windows to read one after another.

    Raises:
        MismatchError: The map has another grid than the mask, or was made by another model or with other options.
        SourceError: A raster is missing or cannot be read.
    """
    name = adapted_name(site.name) if model.contract.derived.adapted else site.name
    folder, threshold = project.prediction(band_set, name), model.contract.measured.threshold
    with (
        open_raster(folder / "landslides.tif") as classes,
        open_raster(folder / "probability.tif") as probability,
        open_raster(site.mask) as mask,
    ):
        grid = _common_grid(mask, classes, probability)
        _check_map_origin(model, classes)
        layout = _layout(classes, project, band_set, site.name)
        with write_cog(project.confusion_map(band_set, name), grid, layout) as writer:
            for found in labelled_windows(site, windows, ProbabilityMap.of(folder)):
                mapped = apply_threshold(found.probabilities[0], threshold)
                writer.write(classify_pixels(mapped, found.truth), 1, window=found.window)
                yield found.assess([threshold])[0]


def _common_grid(mask: DatasetReader, *maps: DatasetReader) -> Grid:
    grid = Grid.of(mask)
    for other in maps:
        if Grid.of(other) != grid:
            raise MismatchError(
                f"{other.name}: its grid of {dimensions(other.width, other.height)} differs from the grid of the mask "
                f"{mask.name} ({dimensions(mask.width, mask.height)}); run talud predict on the current stack again"
            )
    return grid


def _check_map_origin(model: Model, classes: DatasetReader) -> None:
    """Check that a map is the model's own, with default options.

    The map of an earlier model has the same path.
    """
    tags, contract = classes.tags(), model.contract
    made_by = tags.get("TALUD_WEIGHTS"), tags.get("TALUD_THRESHOLD"), tags.get("TALUD_PRECISION", "float32")
    unusual = tags.keys() & {"TALUD_HALO", "TALUD_TTA"}
    if made_by != (contract.origin.weights, f"{contract.measured.threshold:g}", contract.derived.precision) or unusual:
        raise MismatchError(
            f"{classes.name}: was not made by {model.path.name} with its threshold of {contract.measured.threshold:g} "
            "and default options; run talud predict (or dvc repro) again"
        )


def _layout(classes: DatasetReader, project: Project, band_set: str, area: str) -> Layout:
    lineage = {key: value for key, value in classes.tags().items() if key.startswith("TALUD_")}
    meanings = {f"CLASS_{outcome.value}": outcome.label for outcome in PixelClass}
    return Layout(
        dtype="uint8",
        nodata=NOT_COMPARED,
        bands=["outcome: " + ", ".join(f"{outcome.value} {outcome.label}" for outcome in PixelClass)],
        tags={
            **lineage,
            **meanings,
            f"CLASS_{NOT_COMPARED}": "not mapped, or truth unknown",
            "TALUD_AREA": area,
            "TALUD_BAND_SET": band_set,
            "TALUD_ROLE": project.params.area(area).role,
        },
        colours=PIXEL_CLASS_COLOURS,
        overviews="mode",
    )
