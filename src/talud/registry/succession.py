"""Which version is the champion, one after the other: who made it that, when, and in whose place."""

from __future__ import annotations

from datetime import UTC, datetime

from mlflow import MlflowClient

from talud.errors import RegistryError
from talud.registry.models import Version, champion, describe, look_up, set_alias, versions
from talud.registry.store import connected, speaking, user
from talud.text import utc_text

# Tags of a version.
PROMOTED_BY, PROMOTED_AT = "promoted_by", "promoted_at"
REPLACED = "replaced"  # the champion that a rollback goes back to: the one before it
SET_ASIDE = "set_aside"  # that a person took it from its place, and when: the pipeline does not put it back


def promote(version: Version, *, by_hand: bool = False) -> None:
    """Make a version the champion. Its tags say who did that, when, and which version was the champion before.

    Args:
        version: that is not the champion.
        by_hand: whether a person chose it: the version that makes way is then set aside.

    Raises:
        RegistryError: the store cannot be used.
    """
    before, now = champion(version.name), utc_text(datetime.now(UTC))
    _unlink(version)
    describe(version, {PROMOTED_BY: user(), PROMOTED_AT: now} | ({REPLACED: before.version} if before else {}))
    _forget(version, *([] if before else [REPLACED]), SET_ASIDE)
    set_alias(version, "champion")
    if before and by_hand:
        describe(before, {SET_ASIDE: f"by {user()} at {now}, for version {version.version}"})


def roll_back(name: str) -> tuple[Version, Version]:
    """Give a registered model the champion back that the present one replaced: the version back in place, and that.

    Its tags say who did that, and when; the version that goes is set aside, and no later rollback goes back to it.

    Raises:
        RegistryError: there is no champion, none is left before it, or that version is not there any more.
    """
    present = look_up(f"{name}@champion")
    number = present.tags.get(REPLACED)
    if number is None:
        raise RegistryError(
            f"{name}: before its champion, version {present.version}, there was no other that has not been rolled "
            "back, so there is nothing to roll back to; talud models list shows the versions, "
            f"talud models promote {name} VERSION makes one the champion"
        )
    former, now = look_up(f"{name}/{number}"), utc_text(datetime.now(UTC))
    describe(former, {PROMOTED_BY: user(), PROMOTED_AT: now})
    _forget(former, SET_ASIDE)
    set_alias(former, "champion")
    describe(present, {SET_ASIDE: f"by {user()} at {now}, rolled back to version {number}"})
    _unlink(present)
    _forget(present, REPLACED)
    return former, present


def _unlink(version: Version) -> None:
    """Take a version out of the row of champions: whichever replaced it has replaced the one before it."""
    before = version.tags.get(REPLACED)
    for other in versions():
        if other.name == version.name and other.tags.get(REPLACED) == version.version:
            if before is None or before == other.version:
                _forget(other, REPLACED)
            else:
                describe(other, {REPLACED: before})


def _forget(version: Version, *tags: str) -> None:
    client: MlflowClient = connected()
    with speaking():
        for tag in tags:
            if tag in version.tags:
                client.delete_model_version_tag(version.name, version.version, tag)
