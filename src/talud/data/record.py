"""The record of a stack: what it was made from, and the version of the data that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from talud.errors import StudyError
from talud.project import Project


@dataclass(frozen=True)
class Record:
    """What a stack and its mask were made from, and what they hold; None where an area has no inventory."""

    area: str
    role: str
    stack_md5: str
    mask_md5: str
    sources: dict[str, str]
    dates: dict[str, str | None]
    bands: tuple[str, ...]
    height: int
    width: int
    landslide_pixels: int | None
    polygons: int | None
    repaired_polygons: int | None
    skipped_polygons: int | None


def data_version(project: Project, areas: Sequence[str]) -> str:
    """MD5 over the sorted MD5s of the stacks and masks of areas, as their records state them.

    Raises:
        ParamsError: there is no such area.
        StudyError: a record is missing or damaged.
    """
    digests = []
    for area in areas:
        path = project.record(area)
        try:
            record = json.loads(path.read_bytes())
            digests += [str(record["stack_md5"]), str(record["mask_md5"])]
        except FileNotFoundError as error:
            raise StudyError(
                f"{path}: not found, so '{area}' has no stack; run talud stack {area} (or dvc repro)"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(f"{path}: is damaged; run talud stack {area} (or dvc repro) again") from error
    return version_of(digests)


def version_of(digests: Sequence[str]) -> str:
    """The data version that the MD5s of stacks and masks come to."""
    return hashlib.md5("\n".join(sorted(digests)).encode(), usedforsecurity=False).hexdigest()
