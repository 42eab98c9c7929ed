"""Choice of a champion for a basin, and its stack from source files.

`talud map` and `talud predict --model auto` use this module.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talud.contract import Contract, Precision
from talud.data.stack import build_stack_for_model, describe_provenance, read_provenance
from talud.data.stack import find_mismatch as sources_misfit
from talud.engine import model_file
from talud.engine.runtime import Model, RegistryVersion, open_variant
from talud.engine.session import Provider
from talud.errors import MismatchError, ModelError, OutputError, RegistryError, SourceError
from talud.files import atomic_replace
from talud.mapping import reader
from talud.mapping.journal import Journal, describe_change
from talud.params import Area, Source
from talud.products.rasters import STACK_FILE_NAME, Products, check_map_folder, has_map_record
from talud.progress import Progress
from talud.project import find_root
from talud.raster import ORIGIN_TAG, open_raster
from talud.registry import ModelVersion, Store
from talud.source_files import check_output_name


def open_for_stack(raster: str | Path, provider: Provider = "auto", precision: Precision | None = None) -> Model:
    """Open the champion with the most bands that fits a raster.

    The origin of the model states the reason for the choice.

    Args:
        raster: raster to map, as in `predict`.
        provider: device that runs the network.
        precision: precision of the model's variant. Default: float32.

    Raises:
        RegistryError: The registry is not available, or has no champion.
        MismatchError: The raster fits no champion; the message states what each lacks.
        SourceError: The raster cannot be read.
    """
    return _chosen(lambda contract: reader.find_mismatch(raster, contract), "the stack supports", provider, precision)


def open_for_sources(
    area: Area, files: Mapping[Source, Path], provider: Provider = "auto", precision: Precision | None = None
) -> Model:
    """Open the champion with the most bands that fits source files.

    The origin of the model states the reason for the choice.

    Args:
        area: area of the sources, as in `build_stack_for_model`.
        files: path of each source.
        provider: device that runs the network.
        precision: precision of the model's variant. Default: float32.

    Raises:
        RegistryError: The registry is not available, or has no champion.
        MismatchError: The sources fit no champion; the message states what each lacks.
        SourceError: A source cannot be read or used.
    """
    return _chosen(lambda contract: sources_misfit(contract, area, files), "the sources support", provider, precision)


def _chosen(
    misfit: Callable[[Contract], str | None], support: str, provider: Provider, precision: Precision | None
) -> Model:
    usable, unfit = _champions()
    best, reason = choose_champion(usable, misfit, support, unfit)
    return open_variant(best.path, precision, RegistryVersion(best.name, best.version, reason), provider)


@dataclass(frozen=True)
class Candidate:
    """Champion that can be run.

    Attributes:
        name: name of the registered model.
        version: registered version.
        path: path of its ONNX file.
        contract: contract of the model.
    """

    name: str
    version: str
    path: Path
    contract: Contract

    @classmethod
    def of(cls, version: ModelVersion, store: Store) -> Candidate:
        """Fetch a registered version to this machine.

        Raises:
            RegistryError: The file cannot be fetched.
            ModelError: The file is not a talud model.
        """
        fetched = store.models.fetch(version.uri)
        try:
            contract = model_file.read_contract(fetched.path)
        except ModelError as error:
            # The registered name replaces the path, which clients of the service must not see.
            reason = str(error).removeprefix(f"{fetched.path}: ")
            raise ModelError(f"{fetched.name}, version {fetched.version}: {reason}") from error
        return cls(fetched.name, fetched.version, fetched.path, contract)


def choose_champion(
    candidates: Iterable[Candidate],
    misfit: Callable[[Contract], str | None],
    support: str,
    unfit: Sequence[str] = (),
) -> tuple[Candidate, str]:
    """Return the candidate with the most bands, and the reason.

    Args:
        candidates: champions to choose from.
        misfit: function that returns why the data do not fit a contract, or None if they fit.
        support: clause for the reason, such as "the stack supports", which follows "bands that".
        unfit: champions that cannot be run, each with the reason.

    Raises:
        MismatchError: No candidate fits; the message states what each lacks.
    """
    fitting: list[Candidate] = []
    partial: list[Candidate] = []  # candidates that fit without some of their optional groups
    unfit = list(unfit)
    for candidate in candidates:
        why_not = misfit(candidate.contract.without_optional_groups())
        if why_not and candidate.contract.input.subsets and misfit(candidate.contract) is None:
            partial.append(candidate)
        elif why_not:
            unfit.append(f"{candidate.name} ({why_not})")
        else:
            fitting.append(candidate)
    if not fitting and not partial:
        raise MismatchError(f"no champion has only bands that {support}: {', '.join(unfit)}")
    # The validation F1 is not comparable between band sets; it only breaks ties.
    best, *others = sorted(
        fitting or partial,
        key=lambda one: (-len(one.contract.input.bands), -one.contract.measured.scores.get("f1", 0), one.name),
    )
    title = f"{best.name}, version {best.version}"
    reason = f"{title}: the most bands ({len(best.contract.input.bands)}) that {support}"
    if not fitting:
        reason = (
            f"{title}: no champion has only bands that {support}, but this one also works without the missing bands"
        )
    others += partial if fitting else []
    if others:
        reason += f"; also fits: {', '.join(other.name for other in others)}"
    if unfit:
        reason += f"; not: {', '.join(unfit)}"
    return best, reason


def _champions() -> tuple[list[Candidate], list[str]]:
    """Return the runnable champions, and the others with the reason."""
    try:
        store = Store.open(find_root(Path.cwd()))
        found = store.models.champions()
        broken = [alias.message for alias in store.models.broken_aliases() if alias.alias == "champion"]
    except RegistryError as error:
        raise RegistryError(f"{error} (or give the model as an .onnx file)") from error
    if not found and broken:
        raise RegistryError(f"the registry holds no usable champion: {'; '.join(broken)}")
    if not found:
        raise RegistryError(
            "the registry holds no champion of talud; give the model as an .onnx file or models:/NAME/VERSION"
        )
    usable: list[Candidate] = []
    unfit = broken
    for version in found:
        try:
            usable.append(Candidate.of(version, store))
        except (RegistryError, ModelError) as error:
            unfit.append(f"{version.name} ({error})")
    return usable, unfit


def prepare_stack(
    contract: Contract,
    area: Area,
    files: Mapping[Source, Path],
    out: Path,
    progress: Progress | None = None,
    model: Path | None = None,
) -> Path:
    """Build the stack of a map in the map's folder.

    An intact stack of the same sources and options is kept, so that an interrupted map can resume. Otherwise the stack
    is built, and the record of the map of an earlier stack is deleted.

    Args:
        contract: contract of the model.
        area: area of the sources, as in `build_stack_for_model`.
        files: path of each source.
        out: folder of the map; its name becomes the name of the area.
        progress: callback that receives the number of finished windows of the stack and the number of all windows.
        model: path of the model's file, which must not be in the folder.

    Raises:
        SourceError: A required source is missing, or a source cannot be read or used.
        MismatchError: The stack does not fit the model; an earlier stack is kept.
        OutputError: The stack cannot be written, or would replace a source or the stack of an unfinished map.
    """
    check_output_name(out)
    stack, name = out / STACK_FILE_NAME, out.resolve().name
    check_map_folder(out, [*files.values(), *([model] if model else [])], (stack.name,))
    _check_own(stack)
    before, now = read_provenance(stack), describe_provenance(contract, area, files, name)
    if before == now:
        return stack
    with Journal.reserve(out) as journal:
        if before and len(journal):
            names = [key for key in before | now if before.get(key) != now.get(key)]
            changes = ", ".join(describe_change(key, before.get(key), now.get(key)) for key in names)
            raise OutputError(
                f"{stack}: was made with {changes}, and {len(journal)} finished tiles of its map are kept; resume with "
                f"the same sources and options, or delete {journal.folder} to start over"
            )
        # Temporary folders of `atomic_replace` that a killed process has left.
        for leftover in out.glob(f".{stack.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_replace(stack) as scratch:
            build_stack_for_model(contract, area, files, scratch, progress, name=name, provenance=now)
            if why_not := reader.find_mismatch(scratch, contract):
                raise MismatchError(f"{stack}: {why_not}")
            Products.within(out).record.unlink(missing_ok=True)
    return stack


def _check_own(stack: Path) -> None:
    """Check that an existing `stack.tif` was made by `prepare_stack`.

    Raises:
        OutputError: The raster was made by something else.
    """
    if not stack.exists():
        return
    try:
        with open_raster(stack) as dataset:
            own = ORIGIN_TAG in dataset.tags()
    except SourceError:
        # The stack is damaged; a map's record next to it shows that talud made it.
        own = has_map_record(stack.parent)
    if not own:
        raise OutputError(
            f"{stack}: was not made by talud map and would be replaced; choose another --out or move the file"
        )
