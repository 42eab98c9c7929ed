"""Commands `lineage` and `versions`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import MODELS, TRAINING, app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from talud.lineage.trace import Lineage, TrainingData


@app.command("lineage", rich_help_panel=MODELS)
def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_MODEL",
            help="Map: its folder, probability.tif, landslides.tif or landslides.gpkg (may be moved or renamed). "
            "Or model: an .onnx file, NAME (its champion), NAME@ALIAS, NAME/VERSION or an MLflow URI.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Trace a map or model to its run, commit and data.

    Prints model version, MLflow run, commit, checksums of the training data, and the commands that restore the data.
    Run it inside the project that trained the model, where git and DVC know the data and MLflow the run. For a model,
    also lists the maps that were made with it: those under predictions/, and those that talud predict and talud map
    recorded in the project. Missing information is listed under "not known".

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
        yield f"  {found.run.name}, by {found.run.user or 'unknown user'}, {found.run.started}"
        if found.run.run_id != found.run_id:
            yield f"  restored as {found.run.run_id}"
    yield f"commit: {found.commit}"
    yield f"data version: {found.data_version}, of {', '.join(found.trained_on) or 'unknown areas'}"
    if found.data:
        yield from _data_lines(found.data)
    if found.parameters:
        yield "parameters: " + ", ".join(f"{name} {value}" for name, value in found.parameters.items())
    if found.kind == "model":
        yield f"maps: {len(found.maps) or 'none recorded'}"
    for entry in found.maps:
        where = f" ({entry.state}, made {entry.made} on {entry.machine})" if entry.made else ""
        yield f"  {entry.folder}, of {entry.statement.raster.get('raster', 'an unnamed raster')}{where}"
    for line in (*(found.data.doubts if found.data else ()), *found.unknown):
        yield f"not known: {line}"


def _data_lines(data: TrainingData) -> Iterator[str]:
    for area in data.areas:
        yield f"  {area.area}: stack {area.stack_md5}, mask {area.mask_md5}"
        yield f"    sources {area.folder}, {area.sources_md5}"
    for name, digest in data.tracked.items():
        yield f"  {name}: {digest}"
    if data.restore:
        yield "to restore the data:"
        for command in data.restore:
            yield f"  {command}"
        yield "  (sources are pulled from the DVC remote; stacks are not stored there and are rebuilt from the sources)"


@app.command("versions", rich_help_panel=TRAINING)
def versions() -> None:
    """Update versions.yaml, so that DVC repeats stages after an upgrade.

    Each part of talud (data, training, inference, evaluation) has a version number, which increases when the same input
    gives a different result. dvc.yaml depends on the file: afterwards `dvc status` lists the stages that are out of
    date, and `dvc repro` repeats them. Commit the file together with dvc.lock.

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
