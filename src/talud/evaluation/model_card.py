"""Model cards of registered versions: scores, origin, contract, promotion."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic_core import to_jsonable_python

from talud.engine import planning
from talud.engine.runtime import Model
from talud.evaluation.gate import Gate
from talud.evaluation.promotion import REASON_TAG, recorded_gate
from talud.evaluation.registration import open_version
from talud.registry import ModelVersion, Store

# Prefix of the tags that hold an F1.
_F1_PREFIX = "f1_"


@dataclass(frozen=True)
class VersionInfo:
    """Registered version as shown to users.

    Fields that the registry does not hold are empty.

    Attributes:
        created: time of registration, ISO 8601 in UTC, like all times.
        f1: validation, test or an area → F1 on it.
        reason: reason for its alias.
        replaced: previous champion, to which a rollback returns.
        set_aside: who replaced or rolled back this champion, and when; the pipeline does not promote it again.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    f1: dict[str, float]
    data_version: str
    commit: str
    run_id: str
    created: str
    registered_by: str
    promoted_at: str
    promoted_by: str
    replaced: str
    set_aside: str
    reason: str

    @classmethod
    def of(cls, version: ModelVersion) -> Self:
        """Read the tags of a version."""
        tags = version.tags
        stated = {
            name: tags.get(name, "")
            for name in (
                "data_version",
                "commit",
                "registered_by",
                "promoted_at",
                "promoted_by",
                "replaced",
                "set_aside",
            )
        }
        return cls(
            name=version.name,
            version=version.version,
            aliases=version.aliases,
            f1=_scores(tags),
            run_id=version.run_id,
            created=version.created,
            reason=tags.get(REASON_TAG, ""),
            **stated,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ModelCard:
    """Full information on a registered version.

    Attributes:
        version: entry in the registry.
        contract: contract of the file, without histograms.
        gate: last result of the promotion gate; None if there is none.
        tiles: halo, memory and arithmetic of the tiles of a raster of 4096² pixels, within 2 GB.
    """

    version: VersionInfo
    contract: dict[str, Any]
    gate: Gate | None
    tiles: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON."""
        gate = asdict(self.gate) if self.gate else None
        return {**self.version.to_dict(), "gate": gate, "tiles": self.tiles, "contract": self.contract}


def list_versions(store: Store) -> tuple[VersionInfo, ...]:
    """Return all versions that talud registered, by name, newest first.

    Raises:
        RegistryError: the store cannot be used.
    """
    return tuple(VersionInfo.of(version) for version in store.models.versions())


def model_card(store: Store, reference: str) -> ModelCard:
    """Return the card of a version.

    Args:
        store: model registry.
        reference: NAME, NAME@ALIAS or NAME/VERSION.

    Raises:
        RegistryError: the store cannot be used, or has no such version.
        ModelError: its file cannot be run.
    """
    version = store.models.look_up(reference)
    model = open_version(store, version)
    contract = model.contract
    bands = [band.model_dump(mode="json", exclude={"edges", "shares"}) for band in contract.input.bands]
    stated = to_jsonable_python(contract.flat() | {"bands": bands})
    del stated["differences"]
    return ModelCard(VersionInfo.of(version), stated, recorded_gate(version), _tiles(model))


def _tiles(model: Model) -> dict[str, float]:
    """Return how a large raster is tiled within the usual memory."""
    shape = planning.REQUIRED_SIDE_PIXELS, planning.REQUIRED_SIDE_PIXELS
    tiling = model.tiling(shape, memory=planning.REQUIRED_BYTES)
    return {
        "raster_side": shape[0],
        "halo": tiling.rows.halo,
        "tile": tiling.rows.core,
        "memory_bytes": model.memory_bytes(tiling),
        "arithmetic": model.planner.overhead(tiling),
    }


def _scores(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the F1 by area from the tags, skipping invalid values."""
    found = {}
    for tag in sorted(tags):
        with suppress(ValueError):
            if tag.startswith(_F1_PREFIX):
                found[tag.removeprefix(_F1_PREFIX)] = float(tags[tag])
    return found
