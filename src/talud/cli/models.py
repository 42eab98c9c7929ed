"""Commands of the model registry."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import MODELS, app
from talud.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from talud.evaluation.comparison import Comparison
    from talud.evaluation.model_card import ModelCard


@app.command("register", rich_help_panel=MODELS)
def register(
    band_set: Annotated[
        str | None,
        typer.Argument(metavar="BAND_SET", help="Band set of params.yaml. Default: all that have a trained model."),
    ] = None,
) -> None:
    """Register a trained model in MLflow as champion or challenger.

    The model is registered as landslide-unet-BAND_SET, together with its variants of reduced precision (talud
    quantize). It becomes the champion if it passes the promotion gate of params.yaml and its F1 on the validation
    blocks and all gate areas together is higher than that of the current champion (both are scored again on the current
    data); otherwise it becomes the challenger.

    Being worse than the champion is not an error. A model that breaks a rule of the gate about itself (parity,
    contract, size, speed) is registered, and the exit code is 1. A model that is no better than mapping every pixel, or
    none, as landslide, on its validation blocks or on a gate area, never becomes champion unless
    promotion.require_skill is false. A challenger that is compared on fewer than six blocks does not replace the
    champion. A model is never registered twice; after the store was deleted, models are registered again from models/.

    **Examples**

        talud register

        talud register 7band
    """
    from talud.errors import PromotionError, StudyError
    from talud.evaluation import promotion
    from talud.project import Project

    project = Project.find()
    trained = [name for name in project.params.band_sets if project.model(name).is_file()]
    if band_set is None and not trained:
        raise StudyError("no trained model found for any band set; run dvc repro, or talud train BAND_SET")
    unfit = []
    for name in [band_set] if band_set else trained:
        done = promotion.register(project, name)
        print(f"{done.name} version {done.version} is {done.alias}: {done.reason}")
        for problem in done.warnings:
            print(f"warning: {done.name} version {done.version} is {problem}")
        if done.variants:
            print(f"{done.name} version {done.version} also holds the model in {' and '.join(done.variants)}")
        for file in done.passed_over:
            print(f"{file} was skipped: it is not a variant of this model; repeat talud quantize")
        if done.file_faults:
            unfit.append(f"{done.name} version {done.version} ({done.file_faults})")
    if unfit:
        raise PromotionError(f"registered, but not as champion, because the promotion gate failed: {', '.join(unfit)}")


models = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(
    models, name="models", help="List, compare, promote and roll back registered models.", rich_help_panel=MODELS
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ModelName = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a registered model, such as landslide-unet-7band.")
]
MODEL_HELP = "Model: an .onnx file, or a registered one as NAME (its champion), NAME@ALIAS or NAME/VERSION."


@models.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List all registered versions by model, newest first.

    F1 is listed for the validation blocks, the test blocks and the other labelled areas.

    **Examples**

        talud models list

        talud models list --json
    """
    from rich.table import Table

    from talud.errors import TaludWarning
    from talud.evaluation.model_card import list_versions
    from talud.project import find_root
    from talud.registry import Store

    store = Store.open(find_root(Path.cwd()))
    found = list_versions(store)
    for broken in store.models.broken_aliases():
        warnings.warn(broken.message, TaludWarning, stacklevel=2)
    if as_json:
        _print_json([entry.to_dict() for entry in found])
        return
    if not found:
        print("no model is registered yet; talud register registers the models in models/")
        return
    table = Table("model", "version", "alias", "F1", "data", "commit", "registered", "champion since")
    for entry in found:
        scores = ", ".join(f"{place} {f1:.3f}" for place, f1 in entry.f1.items())
        since = _time_and_person(entry.promoted_at, entry.promoted_by) if "champion" in entry.aliases else ""
        alias = ", ".join(entry.aliases) or ("set aside" if entry.set_aside else "")
        made = _time_and_person(entry.created, entry.registered_by)
        table.add_row(entry.name, entry.version, alias, scores, entry.data_version[:8], entry.commit[:8], made, since)
    _print_table(table)


@models.command("show")
def show(
    reference: Annotated[
        str, typer.Argument(metavar="NAME", help="Registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show the model card: origin, contract, scores and promotion checks.

    **Examples**

        talud models show landslide-unet-7band

        talud models show landslide-unet-7band/2

        talud models show landslide-unet-7band@challenger --json
    """
    from talud.evaluation.model_card import model_card
    from talud.project import find_root
    from talud.registry import Store

    found = model_card(Store.open(find_root(Path.cwd())), reference)
    if as_json:
        _print_json(found.to_dict())
        return
    for table in _card_tables(found):
        _print_table(table)


@models.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="Second model, in one of the forms of A.")],
    area: Annotated[str, typer.Option(help="Labelled area of params.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for difference.tif, difference.png and comparison.json.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether the F1 of two models differs significantly on an area.

    Both models are scored on the pixels that both map. The 95 % interval of the difference comes from a block bootstrap
    (blocks of split.block pixels, promotion.resamples resamples): if it contains 0, the difference may be due to
    chance. In an area that a model was trained on, only the test blocks are scored. difference.tif: 0 both right, 1
    only A right, 2 only B right, 3 both wrong, 255 not mapped or truth unknown.

    **Examples**

        talud models compare landslide-unet-7band landslide-unet-5band --area synthetic_liboriana

        talud models compare landslide-unet-7band@champion models/7band.onnx --area synthetic_liboriana --out compared
    """
    from talud import load_model
    from talud.evaluation import comparison
    from talud.project import Project

    project = Project.find()
    first, second = (load_model(model_uri(reference)) for reference in (a, b))
    found = comparison.compare(first, second, project, area, out)
    if as_json:
        _print_json(found.to_dict())
        return
    _print_table(_score_table(found))
    print(f"F1 of A minus F1 of B: {found.difference}")
    print(f"{found.verdict}; {counted(found.difference.resamples, 'resample')}")
    for note in found.notes:
        print(f"note: {note}")
    if out is not None:
        print(f"files: {out}")


@models.command("promote")
def promote(
    name: ModelName,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=1, help="Number of the version in talud models list.")
    ],
) -> None:
    """Promote a version to champion if it passes the gate.

    The gate (`promotion` in params.yaml) checks parity with Keras, a complete contract, file size, speed, skill (an F1
    higher than that of mapping every pixel, or none, as landslide), and that F1 is not significantly lower than the
    champion's on the validation blocks and on each gate area. The results, user, time and the replaced version are
    stored as tags. A version that fails becomes the challenger. The replaced champion is set aside: talud register does
    not promote it again.

    **Examples**

        talud models promote landslide-unet-7band 2
    """
    from talud.evaluation import promotion
    from talud.project import Project

    done = promotion.promote(Project.find(), name, str(version))
    print(f"{done.name} version {done.version} is {done.alias}: {done.reason}")
    for check in done.gate.checks:
        print(f"  {check.rule}: {check.words}")


@models.command("rollback")
def rollback(name: ModelName) -> None:
    """Restore the previous champion of a model.

    The promotion gate is not checked; user and time are stored as tags. The replaced version is set aside: talud
    register does not promote it again.

    **Examples**

        talud models rollback landslide-unet-7band
    """
    from talud.project import find_root
    from talud.registry import Store

    back, gone = Store.open(find_root(Path.cwd())).models.roll_back(name)
    print(f"{name} version {back.version} is champion again, in place of version {gone.version}")


@models.command("relocate")
def relocate(
    yes: Annotated[
        bool, typer.Option("--yes", help="Change the store. Without it, only show what would change.")
    ] = False,
) -> None:
    """Update the model store after copying or moving a project.

    MLflow stores absolute paths of runs and models. Without --yes, prints how many paths would change. With --yes,
    changes all of them, and keeps a copy of the store as mlflow.db.before-relocation. Applies only to the project's own
    store, not to a server in MLFLOW_TRACKING_URI.

    **Examples**

        talud models relocate

        talud models relocate --yes
    """
    from talud import registry
    from talud.project import Project

    found = registry.relocate(Project.find().root, write=yes)
    if not found.rows:
        print(f"nothing to relocate: the store already points to {found.new}")
        return
    print(f"from {found.old} to {found.new}")
    for place, count in found.rows.items():
        print(f"  {place}: {count:,}")
    print("changed" if found.written else "not changed yet; run talud models relocate --yes to change the paths")


def model_uri(reference: str) -> str:
    """Return a file name or the URI of a registered model."""
    if reference.endswith(".onnx"):
        return reference
    from talud import registry

    return registry.model_uri(reference)


def _time_and_person(when: str, who: str) -> str:
    """Format time and user for a table cell."""
    return f"{when.replace('T', ' ').removesuffix('Z')}{who and chr(10) + who}"


def _card_tables(found: ModelCard) -> list[Table]:
    """Return tables of version, contract, bands and gate."""
    from rich.table import Table

    entry, contract = found.version, dict(found.contract)
    about = Table("registered", f"{entry.name}, version {entry.version}")
    for key, value in entry.to_dict().items():
        if value not in (None, {}, [], (), "") and key not in ("name", "version"):
            about.add_row(key.replace("_", " "), _cell(value))
    bands = Table("band", "group", "unit", "plausible", "mean", "deviation", "in training")
    for band in contract.pop("bands"):
        plausible, seen = (f"{band[low]:g} to {band[high]:g}" for low, high in _RANGES)
        bands.add_row(
            band["name"], band["group"], band["unit"], plausible, f"{band['mean']:g}", f"{band['deviation']:g}", seen
        )
    if network := contract.get("network"):
        options = ", ".join(f"{name} {_option_text(value)}" for name, value in network["options"].items())
        contract["network"] = f"{network['name']}: {options}"
    if memory := contract.get("memory"):
        contract["memory"] = f"{memory['plain']:g} bytes for each pixel of a window, {memory['cropped']:g} if cropped"
    stated = Table("contract", "value")
    for key, value in contract.items():
        if value not in (None, {}, [], (), ""):
            stated.add_row(key.replace("_", " "), _cell(value))
    tiles = found.tiles
    stated.add_row(
        "tiles",
        f"halo {tiles['halo']} pixels; {tiles['raster_side']}² in tiles of {tiles['tile']}² within "
        f"{tiles['memory_bytes'] / 1e9:.2g} GB, {tiles['arithmetic']:.2f} times the arithmetic of one pass",
    )
    if found.gate is None:
        return [about, stated, bands]
    gate = Table("gate", "passed", "result")
    for check in found.gate.checks:
        gate.add_row(check.rule, "yes" if check.passed else "NO", check.words)
    return [about, stated, bands, gate]


_RANGES = (("lowest", "highest"), ("minimum", "maximum"))


def _option_text(value: object) -> str:
    """Format an option of a network, such as a list of band groups."""
    if isinstance(value, list):
        return f"({'; '.join(map(_option_text, value))})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_option_text(part)}" for name, part in value.items())
    return str(value)


def _cell(value: object) -> str:
    """Format a value for a table cell."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_cell(part)}" for key, part in value.items() if part not in (None, {}, [], (), ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _score_table(found: Comparison) -> Table:
    from rich.table import Table

    names = list(found.counts[0].scores())
    share = found.compared / found.known_pixels if found.known_pixels else 0
    title = (
        f"{found.area}, {found.pixels}: {found.compared:,} pixels that both map, {share:.1%} of those with known truth"
    )
    table = Table("", "model", title=title, title_justify="left")
    for column in ("TP", "FP", "FN", "TN", *names):
        table.add_column({"f1": "F1", "iou": "IoU", "mcc": "MCC"}.get(column, column), justify="right")
    for letter, model, counts in found.rows():
        numbers = (f"{number:,}" for number in (counts.tp, counts.fp, counts.fn, counts.tn))
        table.add_row(letter, model, *numbers, *(f"{counts.scores()[name]:.3f}" for name in names))
    return table


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))
