"""Commands for the model registry."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talud.cli.app import app
from talud.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from talud.evaluation.comparison import Comparison
    from talud.evaluation.model_card import ModelCard


@app.command("register")
def register(
    band_set: Annotated[
        str | None, typer.Argument(help="A band set of params.yaml. Default: each one that has a trained model.")
    ] = None,
) -> None:
    """Register a band set's model in MLflow as landslide-unet-BAND_SET, and give it its alias.

    It becomes the champion if it passes the promotion gate of params.yaml and its F1 is higher than that of the present
    one on the validation blocks and all gate areas together, both scored again on the pixels as they are now; else the
    challenger. Being worse than the champion is no error; a model that breaks a rule of the gate which looks at it
    alone (parity, contract, size, speed) is one: exit code 1. A model that is no better than calling everything, or
    nothing, a landslide, on its validation blocks or on a gate area, becomes no champion, not even the first, unless
    promotion.require_skill is false in params.yaml; a challenger that is compared on fewer than six blocks does not
    win. A model that is registered already is not registered
    twice, and a store that was wiped gets back what lies in models/. What talud quantize made of the model goes into
    the same version.

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
        raise StudyError("no band set of params.yaml has a trained model; run dvc repro, or talud train BAND_SET")
    unfit = []
    for name in [band_set] if band_set else trained:
        done = promotion.register(project, name)
        print(f"{done.name} version {done.version} is {done.alias}: {done.reason}")
        for weak in done.warnings:
            print(f"warning: {done.name} version {done.version} is {weak}")
        if done.variants:
            print(f"{done.name} version {done.version} holds the model in {' and '.join(done.variants)} too")
        for file in done.passed_over:
            print(f"{file} is no variant of that model and was left out; talud quantize makes it again")
        if done.file_faults:
            unfit.append(f"{done.name} version {done.version} ({done.file_faults})")
    if unfit:
        raise PromotionError(f"registered, but does not pass the promotion gate, so no champion: {', '.join(unfit)}")


models = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
app.add_typer(models, name="models", help="List, show, compare and promote the registered models.")

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON instead")]
ModelName = Annotated[str, typer.Argument(help="of a registered model, such as landslide-unet-7band")]
MODEL_HELP = "an .onnx file, or a registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION"


@models.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List all registered versions, by model, the newest first.

    F1 is that of the validation blocks, of the test blocks, and of the other labelled areas.

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
        _print_json([entry.record() for entry in found])
        return
    if not found:
        print("no version is registered yet; talud register registers the models of models/")
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
        str, typer.Argument(metavar="NAME", help="a registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show all that is known of a registered version: where it came from, its contract, what the gate found.

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
        _print_json(found.record())
        return
    for table in _card_tables(found):
        _print_table(table)


@models.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="likewise")],
    area: Annotated[str, typer.Option(help="a labelled area of params.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="folder for difference.tif, difference.png and comparison.json")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run two models over an area, on the pixels that both map, and say whether their F1 differ by more than chance.

    Spatial blocks of split.block pixels are resampled with replacement (promotion.resamples times): where the 95 %
    interval of the difference holds 0, chance may explain it. An area that a model was trained on is counted on its
    test blocks alone. difference.tif: 0 both right, 1 only A, 2 only B, 3 both wrong, 255 not mapped or truth unknown.

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
        _print_json(found.record())
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
    version: Annotated[int, typer.Argument(min=1, help="of the model: its number in talud models list")],
) -> None:
    """Make a registered version the champion, if it passes the promotion gate.

    The gate is that of params.yaml: parity with Keras, a complete contract, size, speed, skill (an F1 that is higher
    than that of calling everything, or nothing, a landslide), and an F1 that is not worse than the champion's beyond
    chance, on the validation blocks and on each gate area. What it finds, who promoted the
    version and when, and which one it replaced are kept as tags. A version that does not pass becomes the challenger.
    The champion that makes way is set aside: talud register does not put it back by itself.

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
    """Give a model the champion back that the present one replaced. No gate asks; who did it, and when, is kept.

    The version that goes is set aside: talud register does not put it back by itself.

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
        bool, typer.Option("--yes", help="change the store; without it, only show what would change")
    ] = False,
) -> None:
    """Make the project's own store lead to where the project lies now, after it was copied or moved.

    MLflow keeps absolute paths of runs and models. Without --yes, shows how many would change, and changes nothing;
    with it, all change at once, and the store as it was stays beside it as mlflow.db.before-relocation. A store that
    MLFLOW_TRACKING_URI names is left alone.

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
    print("changed" if found.written else "nothing changed yet; talud models relocate --yes changes it")


def model_uri(reference: str) -> str:
    """Return what `load_model` opens: a file, or the URI of a registered model."""
    if reference.endswith(".onnx"):
        return reference
    from talud import registry

    return registry.model_uri(reference)


def _time_and_person(when: str, who: str) -> str:
    """Return time and person on two lines of a table's cell."""
    return f"{when.replace('T', ' ').removesuffix('Z')}{who and chr(10) + who}"


def _card_tables(found: ModelCard) -> list[Table]:
    """Return tables of the version, the file's contract, its bands, and the gate."""
    from rich.table import Table

    entry, contract = found.version, dict(found.contract)
    about = Table("registered", f"{entry.name}, version {entry.version}")
    for key, value in entry.record().items():
        if value not in (None, {}, [], (), "") and key not in ("name", "version"):
            about.add_row(key.replace("_", " "), _cell(value))
    bands = Table("band", "group", "unit", "plausible", "mean", "deviation", "seen")
    for band in contract.pop("bands"):
        plausible, seen = (f"{band[low]:g} to {band[high]:g}" for low, high in _RANGES)
        bands.add_row(
            band["name"], band["group"], band["unit"], plausible, f"{band['mean']:g}", f"{band['deviation']:g}", seen
        )
    stated = Table("contract", "of the file")
    for key, value in contract.items():
        if value not in (None, {}, [], (), ""):
            stated.add_row(key.replace("_", " "), _cell(value))
    if found.gate is None:
        return [about, stated, bands]
    gate = Table("gate", "passed", "what was found")
    for check in found.gate.checks:
        gate.add_row(check.rule, "yes" if check.passed else "NO", check.words)
    return [about, stated, bands, gate]


_RANGES = (("lowest", "highest"), ("minimum", "maximum"))


def _cell(value: object) -> str:
    """Return a value in words: a list with commas, a mapping line by line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_cell(part)}" for key, part in value.items() if part not in (None, {}, [], (), ""))
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _score_table(found: Comparison) -> Table:
    from rich.table import Table

    names = list(found.counts[0].scores())
    share = found.compared / found.known if found.known else 0
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
