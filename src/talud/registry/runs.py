"""What the store knows of a run, and which registered versions hold a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow.utils import mlflow_tags

from talud.registry.store import connected, speaking
from talud.registry.tracking import locate
from talud.text import utc_text


@dataclass(frozen=True)
class Run:
    """A trial's run, as the store has it.

    Attributes:
        run_id: its id; another than was asked for where it was restored in place of a lost one.
        name: the configuration.
        user: who trained.
        started: when, in UTC.
        parameters: as MLflow keeps them.
    """

    run_id: str
    name: str
    user: str
    started: str
    parameters: Mapping[str, str]


def run(run_id: str) -> Run | None:
    """A run, or the one that was restored in its place; None where the store has neither."""
    found = locate(run_id) if re.fullmatch(r"[0-9a-f]{32}", run_id) else None
    if found is None:
        return None
    with speaking():
        entity = connected().get_run(found)
    started = utc_text(datetime.fromtimestamp(entity.info.start_time / 1000, UTC))
    user = entity.data.tags.get(mlflow_tags.MLFLOW_USER, "")
    return Run(found, entity.info.run_name or "", user, started, dict(entity.data.params))


def holding(weights: str) -> dict[str, str]:
    """The registered versions that hold a network: their URI → its aliases, with commas between.

    Args:
        weights: SHA-256 of its constants, in hex; nothing else is looked for.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", weights):
        return {}
    client = connected()
    with speaking():
        versions = client.search_model_versions(f"tags.`weights` = '{weights}'")
        aliases = {version.name: client.get_registered_model(version.name).aliases for version in versions}
    return {
        f"models:/{version.name}/{version.version}": ", ".join(
            sorted(alias for alias, number in aliases[version.name].items() if str(number) == str(version.version))
        )
        for version in sorted(versions, key=lambda version: (version.name, int(version.version)))
    }
