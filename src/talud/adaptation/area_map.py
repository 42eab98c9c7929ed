"""Map of a project's area with a model adapted to it, as the pipeline makes it."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from talud.adaptation import decision
from talud.adaptation.alignment import AdaptedModel, adapt
from talud.adaptation.decision import DeclinedError, Signs
from talud.data.stack_record import check_current_stack
from talud.engine.model_file import save_model
from talud.engine.runtime import Model
from talud.errors import MismatchError, ModelError
from talud.files import atomic_replace
from talud.products.adaptation_record import MODEL_NAME, AdaptationRecord, TriedModel
from talud.products.prediction import predict
from talud.products.rasters import Products
from talud.progress import Progress
from talud.project import Project


@dataclass(frozen=True)
class AreaMap:
    """Result of the adaptation to an area.

    Attributes:
        record: record of the adaptation.
        lines: report for a reader, line by line.
    """

    record: AdaptationRecord
    lines: tuple[str, ...]


def adapt_area(project: Project, band_set: str, area: str, progress: Progress | None = None) -> AreaMap:
    """Adapt a band set's model to an area, and map the area with it.

    Writes the folder of the adapted map (`Project.adapted_prediction`): the files of a map, the adapted model and the
    record. If `adapt` of the area is not set, or the model is not adapted, the folder has only the record.

    Args:
        project: project with the model and the area's stack.
        band_set: name of a band set of params.yaml.
        area: name of an area of params.yaml.
        progress: callback that gets the numbers of finished tiles and of all tiles.

    Raises:
        ParamsError: There is no such band set or area.
        StudyError: params.yaml has changed since the stack was made.
        ModelError: The model is missing or damaged.
        SourceError: The stack is missing or cannot be read.
        OutputError: A file cannot be written.
    """
    project.params.band_set(band_set)
    out = project.adapted_prediction(band_set, area)
    if not project.params.area(area).adapt:
        record = AdaptationRecord(
            band_set=band_set, area=area, adapted=False, requested=False, reason="params.yaml does not ask for it"
        )
        return _without_map(out, record, f"{band_set}: not adapted to {area}; set areas.{area}.adapt: true to do so")
    model, raster = Model.load(project.model(band_set)), check_current_stack(project, area)
    training_share = model.contract.training_share
    record = AdaptationRecord(
        band_set=band_set,
        area=area,
        weights=model.contract.origin.weights,
        adapted=True,
        training_share=training_share,
    )
    try:
        made = adapt(model, raster, area)
    except DeclinedError as error:
        reason, signs = _reason(error, raster), error.signs
        record = record.model_copy(update={"adapted": False, "reason": reason, "tried": _tried(signs, training_share)})
        lines = decision.report_lines(signs, training_share)
        return _without_map(out, record, *lines, f"{band_set}, {area}: {reason}")
    except (MismatchError, ModelError) as error:
        reason = _reason(error, raster)
        record = record.model_copy(update={"adapted": False, "reason": reason})
        return _without_map(out, record, f"{band_set}, {area}: {reason}")
    adaptation = made.contract.derived.adapted
    assert adaptation is not None
    chosen = adaptation.label
    _map_adapted(made, raster, out, progress)
    record = record.model_copy(update={"chosen": chosen, "tried": _tried(made.signs, training_share)})
    record.write(out)
    last = f"{band_set}, adapted to {area} ({chosen}): {out.relative_to(project.root)}"
    return AreaMap(record, (*decision.report_lines(made.signs, training_share), last))


def _map_adapted(made: AdaptedModel, raster: Path, out: Path, progress: Progress | None) -> None:
    """Map a raster with an adapted model, and keep the model."""
    with TemporaryDirectory(prefix="talud-") as folder:
        path = Path(folder) / MODEL_NAME
        save_model(made.graph, made.contract, path)
        predict(Model.load(path), raster, out, progress=progress)
        with atomic_replace(out / MODEL_NAME) as scratch:
            scratch.write_bytes(path.read_bytes())


def _without_map(out: Path, record: AdaptationRecord, *lines: str) -> AreaMap:
    """Write the record, and remove an earlier map and model."""
    for path in (*astuple(Products.within(out)), out / MODEL_NAME):
        path.unlink(missing_ok=True)
    record.write(out)
    return AreaMap(record, lines)


def _reason(error: Exception, raster: Path) -> str:
    """Return a message without the name of the raster."""
    return str(error).removeprefix(f"{raster}: ")


def _tried(signs: tuple[Signs, ...], training_share: float | None) -> tuple[TriedModel, ...]:
    return tuple(
        TriedModel(
            model=one.label,
            landslide_share=round(one.share, 6),
            agreement=round(one.agreement, 6),
            plausible=decision.is_plausible(one, training_share),
        )
        for one in signs
    )
