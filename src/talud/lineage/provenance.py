"""Provenance of maps, and the records of a project's maps."""

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

# Folder in a project. Each map has its own file, so that git merges cause no conflicts.
MAP_RECORDS_FOLDER = Path(".talud") / "maps"
_RECORD_NAME = "prediction.json"
# Tags of rasters and GeoPackages by the key of the model in prediction.json.
_TAG_OF_MODEL_KEY = {
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
    """Origin stated by a map; texts missing in older files are empty.

    Attributes:
        model: name of the model in the registry, or of its band set.
        version: version in the registry, or "unregistered".
        run: id of the MLflow run.
        commit: git commit of the project, with "+changes" if it was not clean.
        data_version: MD5 over the MD5s of the training stacks and masks.
        weights: SHA-256 of the network's weights.
        precision: precision of the model file.
        threshold: threshold of the classes.
        raster: file name, area, dates and sources of the mapped raster.
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
        """Read the provenance from a map's folder or one of its files.

        Args:
            path: folder of the map, prediction.json, a raster or a GeoPackage. Files may have been moved and renamed.

        Raises:
            SourceError: The map is missing, cannot be read, or does not state its origin.
        """
        if path.is_dir():
            return cls.read(_main_file(path))
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
        if path.suffix.lower() == ".json":
            return _from_record(path)
        if path.suffix.lower() == ".geojson":
            raise SourceError(f"{path}: a GeoJSON does not state its origin; give the GeoPackage or the map's folder")
        tags = _tags(path)
        if "TALUD_WEIGHTS" not in tags:
            raise SourceError(
                f"{path}: does not state its model: it was not made by talud, or another program has removed its "
                "tags; give the map's folder or prediction.json"
            )
        return _from_tags(tags)


@dataclass(frozen=True)
class RecordedMap:
    """Record of a map.

    Attributes:
        folder: folder of the map, relative to the project's root if it is inside, else absolute.
        machine: host name of the machine that made the map; empty for maps found under predictions/.
        made: time of completion in UTC; empty for maps found under predictions/.
        statement: provenance of the map.
        state: "there", "gone", "another map" or "on another machine".
    """

    folder: str
    machine: str
    made: str
    statement: MapProvenance
    state: str = "there"


def record_map(root: Path, out: Path) -> None:
    """Record a finished map in a project.

    Maps under predictions/ and maps that are already recorded are skipped.

    Args:
        root: absolute path of the project's root.
        out: folder of the map.

    Raises:
        OutputError: The record cannot be written.
        SourceError: The map's prediction.json cannot be read.
    """
    folder = out.resolve()
    # Maps under predictions/ are found without a record.
    if folder.is_relative_to(root / "predictions"):
        return
    stated = _from_record(folder / _RECORD_NAME)
    location = folder.relative_to(root) if folder.is_relative_to(root) else folder
    entry = {"folder": location.as_posix(), "machine": socket.gethostname(), **asdict(stated)}
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
    path = root / MAP_RECORDS_FOLDER / f"{digest}.json"
    if path.exists():
        return
    with atomic_replace(path) as scratch:
        content = {"made": utc_text(datetime.now(UTC)), **entry}
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded_maps(root: Path) -> list[RecordedMap]:
    """Return the maps of a project.

    Maps under predictions/ come first, then the recorded ones, latest last.
    """
    found = [
        RecordedMap(path.parent.relative_to(root).as_posix(), "", "", stated)
        for path in sorted((root / "predictions").rglob(_RECORD_NAME))
        if (stated := _try_record(path))
    ]
    kept = (_read_entry(root, path) for path in (root / MAP_RECORDS_FOLDER).glob("*.json"))
    return found + sorted(filter(None, kept), key=lambda entry: (entry.made, entry.folder))


def _read_entry(root: Path, path: Path) -> RecordedMap | None:
    """Read a record and determine the state of its map; None if it is invalid."""
    try:
        content = json.loads(path.read_bytes())
        folder, machine, made = (str(content.pop(name)) for name in ("folder", "machine", "made"))
        stated = TypeAdapter(MapProvenance).validate_python(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # The file may have been edited by hand.
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
    """Return the file in a map's folder with the most complete origin."""
    products = Products.within(folder)
    for path in (products.record, products.polygons, products.probability, products.classes):
        if path.is_file():
            return path
    raise SourceError(f"{folder}: contains no map (no {_RECORD_NAME}, landslides.gpkg or probability.tif)")


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
            # Stacks of older releases lack this tag.
            "TALUD_RASTER": str(content["raster"]),
        }
        return _from_tags({**stack, **tags})
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path}: is not the record of a map") from error


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
            raise SourceError(f"{path}: contains no layer")
        return pyogrio.read_info(whole, layer=str(layers[0][0])).get("dataset_metadata") or {}
