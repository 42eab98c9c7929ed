"""What a map says of itself, and the record of the maps that were made in a project."""

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
from talud.files import replacing
from talud.products.rasters import Products
from talud.raster import open_raster
from talud.text import utc_text
from talud.vector import open_vector

FOLDER = Path(".talud") / "maps"  # in a project: one file for each map, so that two never meet in a merge
_RECORD = "prediction.json"
_NAMES = {  # what prediction.json says of the model → the tag of the map's other files
    "name": "TALUD_MODEL",
    "version": "TALUD_VERSION",
    "run": "TALUD_RUN",
    "commit": "TALUD_COMMIT",
    "data_version": "TALUD_DATA_VERSION",
    "weights": "TALUD_WEIGHTS",
    "precision": "TALUD_PRECISION",
}


@dataclass(frozen=True)
class Statement:
    """What a map says of its origin; what an older or a moved file does not say is empty.

    Attributes:
        model: its name in the registry, or the band set's.
        version: in the registry, or "unregistered".
        run: of MLflow.
        commit: of the project, with +changes where it was not clean.
        data_version: MD5 over the MD5s of the stacks and masks trained on.
        weights: SHA-256 of the network's constants.
        precision: of the model file.
        threshold: of the classes.
        raster: what was mapped: its file's name, and what it said of area, dates and sources.
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
    def read(cls, path: Path) -> Statement:
        """What a map says: its folder, prediction.json, a raster or a GeoPackage of it, moved and renamed or not.

        Raises:
            SourceError: it is missing, cannot be read, or says nothing of its origin.
        """
        if path.is_dir():
            return cls.read(_within(path))
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
        if path.suffix.lower() == ".json":
            return _recorded(path)
        if path.suffix.lower() == ".geojson":
            raise SourceError(f"{path}: a GeoJSON has no place for its origin; name the GeoPackage or the map's folder")
        tags = _tags(path)
        if "TALUD_WEIGHTS" not in tags:
            raise SourceError(
                f"{path}: does not say which model made it: it is no map of talud's, or another program wrote it "
                "again without its tags; name the map's folder, or prediction.json"
            )
        return _tagged(tags)


@dataclass(frozen=True)
class Entry:
    """A map that was made, as it is recorded.

    Attributes:
        folder: of the map: relative to the project's root where it lies inside, else absolute.
        machine: on which it was made; empty for one that was only found among the predictions.
        made: when it was finished, in UTC; empty likewise.
        statement: what the map says of itself.
        state: what lies in the folder now: "there", "gone", "another map", or "on another machine".
    """

    folder: str
    machine: str
    made: str
    statement: Statement
    state: str = "there"


def remember(root: Path, out: Path) -> None:
    """Record a finished map in a project; one under predictions/, or recorded already, is left as it is.

    Args:
        root: of the project, absolute.
        out: folder of the map.

    Raises:
        OutputError: the record cannot be written.
        SourceError: the map's own record cannot be read.
    """
    folder = out.resolve()
    if folder.is_relative_to(root / "predictions"):  # found there, however it came there
        return
    stated = _recorded(folder / _RECORD)
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    entry = {"folder": place.as_posix(), "machine": socket.gethostname(), **asdict(stated)}
    digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
    path = root / FOLDER / f"{digest}.json"
    if path.exists():
        return
    with replacing(path) as scratch:
        content = {"made": utc_text(datetime.now(UTC)), **entry}
        scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded(root: Path) -> list[Entry]:
    """The maps of a project: those under predictions/, then those that are recorded, the latest last."""
    found = [
        Entry(path.parent.relative_to(root).as_posix(), "", "", stated)
        for path in sorted((root / "predictions").rglob(_RECORD))
        if (stated := _readable(path))
    ]
    kept = (_entry(root, path) for path in (root / FOLDER).glob("*.json"))
    return found + sorted(filter(None, kept), key=lambda entry: (entry.made, entry.folder))


def _entry(root: Path, path: Path) -> Entry | None:
    """A record of a map, and what became of it; None where the file is none."""
    try:
        content = json.loads(path.read_bytes())
        folder, machine, made = (str(content.pop(name)) for name in ("folder", "machine", "made"))
        stated = TypeAdapter(Statement).validate_python(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # whatever a hand may have made of it
        return None
    there = _readable(root / folder / _RECORD)
    if there == stated:
        state = "there"
    elif machine != socket.gethostname():
        state = "on another machine"
    else:
        state = "another map" if there else "gone"
    return Entry(folder, machine, made, stated, state)


def _within(folder: Path) -> Path:
    """The file of a map's folder that says most of it."""
    products = Products.within(folder)
    for path in (products.record, products.polygons, products.probability, products.classes):
        if path.is_file():
            return path
    raise SourceError(f"{folder}: holds no map of talud's (no {_RECORD}, landslides.gpkg or probability.tif)")


def _readable(path: Path) -> Statement | None:
    try:
        return _recorded(path)
    except SourceError:
        return None


def _recorded(path: Path) -> Statement:
    """What prediction.json says."""
    try:
        content = json.loads(path.read_bytes())
        model, stack = dict(content["model"]), dict(content["stack"])
        tags = {tag: str(model.get(name, "")) for name, tag in _NAMES.items()}
        tags |= {
            "TALUD_THRESHOLD": f"{content['threshold']:g}",
            "TALUD_RASTER": str(content["raster"]),
        }  # older: no tag
        return _tagged({**stack, **tags})
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{path}: is no record of a map") from error


def _tagged(tags: Mapping[str, str]) -> Statement:
    ours = {key: value for key, value in tags.items() if key.startswith("TALUD_")}
    of_model = {("model" if name == "name" else name): ours.pop(tag, "") for name, tag in _NAMES.items()}
    threshold = ours.pop("TALUD_THRESHOLD", "")
    raster = {
        key.removeprefix("TALUD_").removeprefix("RASTER_").lower(): value
        for key, value in sorted(ours.items())
        if key not in ("TALUD_HALO", "TALUD_TTA")
    }
    return Statement(**of_model, threshold=threshold, raster=raster)


def _tags(path: Path) -> Mapping[str, str]:
    """The tags of a raster or a GeoPackage."""
    if path.suffix.lower() != ".gpkg":
        with open_raster(path) as dataset:
            return dict(dataset.tags())
    with open_vector(path, " as a GeoPackage") as whole:
        layers = pyogrio.list_layers(whole)
        if not len(layers):
            raise SourceError(f"{path}: holds no layer")
        return pyogrio.read_info(whole, layer=str(layers[0][0])).get("dataset_metadata") or {}
