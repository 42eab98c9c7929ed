"""Registered versions as a person reads them: their scores, where they came from, who moved which alias, and when."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic_core import to_jsonable_python

from talud.engine.runtime import Model, Origin
from talud.evaluation.gate import Gate
from talud.evaluation.promotion import GATE, REASON
from talud.registry import ModelVersion, Store

_F1 = "f1_"  # how the tags begin that hold an F1


@dataclass(frozen=True)
class Entry:
    """A registered version. What is empty, the registry does not say.

    Attributes:
        created: when it was registered, as ISO 8601 in UTC, like the other times.
        f1: place (validation, test, an area) → F1 there.
        reason: of its alias.
        replaced: the version that a rollback of it makes the champion: the one before it.
        set_aside: by whom and when it was taken from its place; the pipeline does not put it back.
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
        """What the tags of a version say."""
        tags = version.tags
        said = {
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
            reason=tags.get(REASON, ""),
            **said,
        )

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sheet:
    """All that is known of one registered version.

    Attributes:
        entry: what the registry says.
        contract: what the file says, without the histograms of its bands and their differences.
        gate: what the gate found when it was examined last; None where it never was.
    """

    entry: Entry
    contract: dict[str, Any]
    gate: Gate | None

    def record(self) -> dict[str, Any]:
        """All of it, for JSON."""
        gate = asdict(self.gate) if self.gate else None
        return {**self.entry.record(), "gate": gate, "contract": self.contract}


def entries(store: Store) -> tuple[Entry, ...]:
    """All versions that talud registered: by name, the newest first.

    Raises:
        RegistryError: the store cannot be used.
    """
    return tuple(Entry.of(version) for version in store.models.versions())


def sheet(store: Store, reference: str) -> Sheet:
    """All that is known of the version that `NAME`, `NAME@ALIAS` or `NAME/VERSION` names.

    Raises:
        RegistryError: the store cannot be used, or has no such version.
        ModelError: its file is not one that talud can run.
    """
    version = store.models.look_up(reference)
    fetched = store.models.fetch(version.uri)
    contract = Model.load(fetched.path, Origin(fetched.name, fetched.version)).contract
    gate = Gate.from_json(version.tags[GATE], version.uri) if GATE in version.tags else None
    bands = [band.model_dump(mode="json", exclude={"edges", "shares"}) for band in contract.input.bands]
    stated = to_jsonable_python(contract.flat() | {"bands": bands})
    del stated["differences"]
    return Sheet(Entry.of(version), stated, gate)


def _scores(tags: Mapping[str, str]) -> dict[str, float]:
    """Place → F1, of those tags that hold one; a tag may be edited by hand."""
    found = {}
    for tag in sorted(tags):
        with suppress(ValueError):
            if tag.startswith(_F1):
                found[tag.removeprefix(_F1)] = float(tags[tag])
    return found
