"""Provenance that a map states, and the record of the maps made in a project."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyogrio
from pydantic import TypeAdapter

from talud.errors import SourceError
from talud.files import atomic_replace
from talud.products.rasters import Products
from talud.raster import open_raster
from talud.text import utc_text
from talud.vector import open_vector

MAP_RECORDS_FOLDER = Path(".talud") / "maps"  # in a project: one file for each map, so that two never meet in a merge
_RECORD_NAME = "prediction.json"
_TAG_OF_MODEL_KEY = {  # key of the model in prediction.json → tag of the map's other files
    "name": "TALUD_MODEL",
    "version": "TALUD_VERSION",
    "run": "TALUD_RUN",
    "commit": "TALUD_COMMIT",
    "data_version": "TALUD_DATA_VERSION",
    "weights": "TALUD_WEIGHTS",
    "precision": "TALUD_PRECISION",
}


@dataclass(frozen=True)
class MapProvenance:
    """The origin that a map states; texts that an older file does not state are empty.

    Attributes:
        model: the model's name in the registry, or the band set's.
        version: the version in the registry, or "unregistered".
        run: the id of the run in MLflow.
        commit: the project's commit, with +changes if there were any.
        data_version: the MD5 over the MD5s of the stacks and masks trained on.
        weights: the SHA-256 of the network's constants.
        precision: the precision of the model file.
        threshold: the threshold of the classes.
        raster: the mapped raster: the name of its file, and its area, dates and sources.
    """

    model: str
    version: str
    run: str
    commit: str
    data_version: str
    weights: str
    precision: str
    threshold: str
    raster: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> MapProvenance:
        """Read the provenance of a map from its folder or one of its files.

        The files are prediction.json, a raster or a GeoPackage, which may have been moved and renamed.

        Raises:
            SourceError: it is missing, cannot be read, or does not state its origin.
        """
        if path.is_dir():
            return cls.read(_main_file(path))
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
        if path.suffix.lower() == ".json":
            return _from_record(path)
        if path.suffix.lower() == ".geojson":
            raise SourceError(f"{path}: a GeoJSON has no place for its origin; name the GeoPackage or the map's folder")
        tags = _tags(path)
        if "TALUD_WEIGHTS" not in tags:
            raise SourceError(
                f"{path}: does not say which model made it: it is no map of talud's, or another program wrote it "
                "again without its tags; name the map's folder, or prediction.json"
            )
        return _from_tags(tags)


@dataclass(frozen=True)
class RecordedMap:
    """A recorded map.

    Attributes:
        folder: the map's folder: relative to the project's root if inside, else absolute.
        machine: the machine that made it; empty for one that was only found among the predictions.
        made: the time when it was finished, in UTC; empty likewise.
        statement: the map's provenance.
        state: "there", "gone", "another map", or "on another machine".
    """

    folder: str
    machine: str
    made: str
    statement: MapProvenance
    state: str = "there"


def record_map(root: Path, out: Path) -> None:
    """Record a finished map in a project.

    A map under predictions/, or recorded already, is skipped.

    Args:
        root: the project's root, absolute.
        out: the folder of the map.

    Raises:
        OutputError: the record cannot be written.
        SourceError: the map's own record cannot be read.
    """
    folder = out.resolve()
    if folder.is_relative_to(root / "predictions"):  # found there, however it came there
        return
    stated = _from_record(folder / _RECORD_NAME)
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    entry = {"folder": place.as_posix(), "machine": socket.gethostname(), **asdict(stated)}
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
    path = root / MAP_RECORDS_FOLDER / f"{digest}.json"
    if path.exists():
        return
    with atomic_replace(path) as scratch:
        content = {"made": utc_text(datetime.now(UTC)), **entry}
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded_maps(root: Path) -> list[RecordedMap]:
    """Return the maps under predictions/, then the recorded ones, the latest last."""
    found = [
        RecordedMap(path.parent.relative_to(root).as_posix(), "", "", stated)
        for path in sorted((root / "predictions").rglob(_RECORD_NAME))
        if (stated := _try_record(path))
    ]
    kept = (_read_entry(root, path) for path in (root / MAP_RECORDS_FOLDER).glob("*.json"))
    return found + sorted(filter(None, kept), key=lambda entry: (entry.made, entry.folder))


def _read_entry(root: Path, path: Path) -> RecordedMap | None:
    """Read a record of a map and check its folder; None if the file is no record."""
    try:
        content = json.loads(path.read_bytes())
        folder, machine, made = (str(content.pop(name)) for name in ("folder", "machine", "made"))
        stated = TypeAdapter(MapProvenance).validate_python(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # whatever a hand may have made of it
        return None
    there = _try_record(root / folder / _RECORD_NAME)
    if there == stated:
        state = "there"
    elif machine != socket.gethostname():
        state = "on another machine"
    else:
        state = "another map" if there else "gone"
    return RecordedMap(folder, machine, made, stated, state)


def _main_file(folder: Path) -> Path:
    """Return the file of a map's folder that states most of its origin."""
    products = Products.within(folder)
    for path in (products.record, products.polygons, products.probability, products.classes):
        if path.is_file():
            return path
    raise SourceError(f"{folder}: holds no map of talud's (no {_RECORD_NAME}, landslides.gpkg or probability.tif)")


def _try_record(path: Path) -> MapProvenance | None:
    try:
        return _from_record(path)
    except SourceError:
        return None


def _from_record(path: Path) -> MapProvenance:
    """Read the provenance from prediction.json."""
    try:
        content = json.loads(path.read_bytes())
        model, stack = dict(content["model"]), dict(content["stack"])
        tags = {tag: str(model.get(name, "")) for name, tag in _TAG_OF_MODEL_KEY.items()}
        tags |= {
            "TALUD_THRESHOLD": f"{content['threshold']:g}",
            "TALUD_RASTER": str(content["raster"]),
        }  # older: no tag
        return _from_tags({**stack, **tags})
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path}: is no record of a map") from error


def _from_tags(tags: Mapping[str, str]) -> MapProvenance:
    ours = {key: value for key, value in tags.items() if key.startswith("TALUD_")}
    of_model = {("model" if name == "name" else name): ours.pop(tag, "") for name, tag in _TAG_OF_MODEL_KEY.items()}
    threshold = ours.pop("TALUD_THRESHOLD", "")
    raster = {
        key.removeprefix("TALUD_").removeprefix("RASTER_").lower(): value
        for key, value in sorted(ours.items())
        if key not in ("TALUD_HALO", "TALUD_TTA")
    }
    return MapProvenance(**of_model, threshold=threshold, raster=raster)


def _tags(path: Path) -> Mapping[str, str]:
    """Return the tags of a raster or a GeoPackage."""
    if path.suffix.lower() != ".gpkg":
        with open_raster(path) as dataset:
            return dict(dataset.tags())
    with open_vector(path, " as a GeoPackage") as whole:
        layers = pyogrio.list_layers(whole)
        if not len(layers):
            raise SourceError(f"{path}: holds no layer")
        return pyogrio.read_info(whole, layer=str(layers[0][0])).get("dataset_metadata") or {}
