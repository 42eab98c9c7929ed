"""Commands for the origin of maps, models and versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from talud.lineage.trace import Lineage, TrainingData


@app.command("lineage")
def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODEL",
            help="a map: its folder, or probability.tif, landslides.tif or landslides.gpkg, moved and renamed or not; "
            "or a model: an .onnx file, NAME (its champion), NAME@ALIAS, NAME/VERSION, or an MLflow URI",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say where a map or a model came from: version, run, commit, the hashes of its data, and how to have them again.

    Run inside the project that made the model: git and DVC have the data on record there, and MLflow the run. Of a
    model, the maps that were made with it are listed: those under predictions/, and those that talud predict and
    talud map recorded in the project. What cannot be told is said under "not known".

    **Examples**

        talud lineage maps/liboriana/landslides.gpkg

        talud lineage landslide-unet-7band@champion --json
    """
    import json
    from dataclasses import asdict
    from pathlib import Path

    from talud.lineage.trace import trace_lineage
    from talud.project import find_root

    found = trace_lineage(what, find_root(Path.cwd()))
    if as_json:
        print(json.dumps(asdict(found), indent=2, ensure_ascii=False))
        return
    for line in _lines(found):
        print(line)


def _lines(found: Lineage) -> Iterator[str]:
    model = found.model
    yield f"{found.asked}, a {found.kind}"
    for name, value in (found.mapped or {}).items():
        yield f"  {name.replace('_', ' ')}: {value}"
    version = f"version {model['version']}" if model["version"].isdecimal() else model["version"]
    yield f"model: {model['name']}, {version}, {model['precision']}, weights {model['weights']}"
    for uri, aliases in found.registered.items():
        yield f"  registered as {uri}{f' ({aliases})' if aliases else ''}"
    yield f"run: {found.run_id}"
    if found.run:
        yield f"  {found.run.name}, by {found.run.user or 'somebody'}, {found.run.started}"
        if found.run.run_id != found.run_id:
            yield f"  restored as {found.run.run_id}"
    yield f"commit: {found.commit}"
    yield f"data version: {found.data_version}, of {', '.join(found.trained_on) or 'areas that are not known'}"
    if found.data:
        yield from _data_lines(found.data)
    if found.parameters:
        yield "parameters: " + ", ".join(f"{name} {value}" for name, value in found.parameters.items())
    if found.kind == "model":
        yield f"maps: {len(found.maps) or 'none is recorded'}"
    for entry in found.maps:
        where = f" ({entry.state}, made {entry.made} on {entry.machine})" if entry.made else ""
        yield f"  {entry.folder}, of {entry.statement.raster.get('raster', 'a raster without a name')}{where}"
    for line in (*(found.data.doubts if found.data else ()), *found.unknown):
        yield f"not known: {line}"


def _data_lines(data: TrainingData) -> Iterator[str]:
    for area in data.areas:
        yield f"  {area.area}: stack {area.stack_md5}, mask {area.mask_md5}"
        yield f"    sources {area.folder}, {area.sources_md5}"
    for name, digest in data.tracked.items():
        yield f"  {name}: {digest}"
    if data.restore:
        yield "to have the data again:"
        for command in data.restore:
            yield f"  {command}"
        yield "  (sources come from the remote; stacks are not pushed, so they are made again from the sources)"


@app.command("versions")
def versions() -> None:
    """Write versions.yaml, by which DVC sees what an upgrade of talud changes.

    Each part of talud (data, training, inference, evaluation) has a version, which is raised when the same input gives
    another result. dvc.yaml reads the file: after this command `dvc status` lists the stages that are stale, and `dvc
    repro` repeats them. Commit the file with dvc.lock.

    **Examples**

        pip install --upgrade talud && talud versions && dvc status
    """
    from talud import versions
    from talud.errors import ParamsError
    from talud.project import find_root

    folder = Path.cwd()
    root = find_root(folder)
    if root is None:
        raise ParamsError(f"{folder}: no params.yaml here or above; change into a talud project")
    versions.write_versions(root)
    print(f"{versions.FILE_NAME}: {', '.join(f'{part} {number}' for part, number in versions.VERSIONS.items())}")
