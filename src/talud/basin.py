"""A basin's own folder: the stack that a model asks for, beside the map that is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from talud.contract import Contract
from talud.data.stack import build_like, origin_like, origin_of
from talud.errors import MismatchError, OutputError, SourceError
from talud.files import replacing
from talud.mapping.journal import Journal, change
from talud.mapping.reader import misfit
from talud.params import Area, Source
from talud.products.rasters import STACK, Products, check_out, has_record
from talud.progress import Progress
from talud.raster import ORIGIN_TAG, open_raster
from talud.source_files import check_output_name


def prepare(
    contract: Contract,
    area: Area,
    files: Mapping[Source, Path],
    out: Path,
    progress: Progress | None = None,
    model: Path | None = None,
) -> Path:
    """The stack of a map, `stack.tif` in the map's own folder, from which `predict` goes on.

    It is made where there is none, where it is damaged, and where sources or options are others than those it was made
    of; else it is left untouched, so that a map in the making goes on. Where it takes the place of another, the record
    of the map that was made of that one goes.

    Args:
        contract: of the model.
        area: as for `build_like`.
        files: the sources.
        out: folder of the map; its name becomes the area's.
        progress: told, after each window of the stack, how many are done and how many there are.

        model: the model's file, which must not lie in the folder either.

    Raises:
        SourceError: a source that the model needs is missing, cannot be read, or cannot be used.
        MismatchError: the stack does not fit the model; an earlier one stays.
        OutputError: the stack cannot be written, or would take the place of a source, or of the stack of a map in the
            making.
    """
    check_output_name(out)
    stack, name = out / STACK, out.resolve().name
    check_out(out, [*files.values(), *([model] if model else [])], (stack.name,))
    _check_own(stack)
    before, now = origin_of(stack), origin_like(contract, area, files, name)
    if before == now:
        return stack
    with Journal.awaited(out) as journal:
        if before and len(journal):
            names = [key for key in before | now if before.get(key) != now.get(key)]
            changes = ", ".join(change(key, before.get(key), now.get(key)) for key in names)
            raise OutputError(
                f"{stack}: was made with {changes}, and {len(journal)} finished tiles of its map are kept; go on with "
                f"what it was made with, or delete {journal.folder} to start over"
            )
        for left_behind in out.glob(f".{stack.name}.*"):  # by a run that was killed; `replacing` names them so
            shutil.rmtree(left_behind, ignore_errors=True)
        with replacing(stack) as scratch:
            build_like(contract, area, files, scratch, progress, name=name, origin=now)
            if why_not := misfit(scratch, contract):
                raise MismatchError(f"{stack}: {why_not}")
            Products.within(out).record.unlink(missing_ok=True)
    return stack


def _check_own(stack: Path) -> None:
    """Refuse to replace a raster of the stack's name that `prepare` did not make.

    Raises:
        OutputError: `prepare` did not make it.
    """
    if not stack.exists():
        return
    try:
        with open_raster(stack) as dataset:
            own = ORIGIN_TAG in dataset.tags()
    except SourceError:  # it is damaged, and the record of a map says whose it is
        own = has_record(stack.parent)
    if not own:
        raise OutputError(
            f"{stack}: was not made by talud map, and would be replaced; name another --out, or move it away"
        )
