"""Models and stacks for a basin: the champion that fits best, and the stack that is made of loose sources."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talud.contract import Contract, Precision
from talud.data.stack import build_like, origin_like, origin_of
from talud.data.stack import misfit as sources_misfit
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
    """Open the champion with most bands among those that a stack fits; its origin states the reason.

    Args:
        raster: as for `predict`.
        provider: device to run on.
        precision: precision of its variant; default: float32.

    Raises:
        RegistryError: No registry can be reached, or it has no champion.
        MismatchError: The raster fits none; the message states what each lacks.
        SourceError: The raster cannot be read.
    """
    return _chosen(lambda contract: reader.find_mismatch(raster, contract), "the stack supports", provider, precision)


def open_for_sources(
    area: Area, files: Mapping[Source, Path], provider: Provider = "auto", precision: Precision | None = None
) -> Model:
    """Open the champion with most bands among those whose stack the sources can make; its origin states the reason.

    Args:
        area: as for `build_like`.
        files: the sources.
        provider: device to run on.
        precision: precision of its variant; default: float32.

    Raises:
        RegistryError: No registry can be reached, or it has no champion.
        MismatchError: The sources make the stack of none; the message states what each lacks.
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
    """A champion that could be run.

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
            RegistryError: its file cannot be had.
            ModelError: it is no model of talud's.
        """
        fetched = store.models.fetch(version.uri)
        try:
            contract = model_file.read_contract(fetched.path)
        except ModelError as error:  # named as registered: clients of the service see no paths of its machine
            reason = str(error).removeprefix(f"{fetched.path}: ")
            raise ModelError(f"{fetched.name}, version {fetched.version}: {reason}") from error
        return cls(fetched.name, fetched.version, fetched.path, contract)


def choose_champion(
    candidates: Iterable[Candidate],
    misfit: Callable[[Contract], str | None],
    support: str,
    unfit: Sequence[str] = (),
) -> tuple[Candidate, str]:
    """Return the candidate that reads most of the data, and the reason for the choice.

    Args:
        candidates: champions to choose from.
        misfit: function that returns the reason why the data do not fit a contract; None where they do.
        support: phrase for the reason, as in "bands that the stack supports".
        unfit: further champions that cannot be run, with the reason.

    Raises:
        MismatchError: None fits; the message states what each lacks.
    """
    fitting: list[Candidate] = []
    lesser: list[Candidate] = []  # that would have to do without some of their groups
    unfit = list(unfit)
    for candidate in candidates:
        why_not = misfit(candidate.contract.without_optional_groups())
        if why_not and candidate.contract.input.subsets and misfit(candidate.contract) is None:
            lesser.append(candidate)
        elif why_not:
            unfit.append(f"{candidate.name} ({why_not})")
        else:
            fitting.append(candidate)
    if not fitting and not lesser:
        raise MismatchError(f"no champion has only bands that {support}: {', '.join(unfit)}")
    # The F1 of validation settles nothing between band sets, but between equals something must.
    best, *others = sorted(
        fitting or lesser,
        key=lambda one: (-len(one.contract.input.bands), -one.contract.measured.scores.get("f1", 0), one.name),
    )
    title = f"{best.name}, version {best.version}"
    reason = f"{title}: the most bands ({len(best.contract.input.bands)}) that {support}"
    if not fitting:
        reason = f"{title}: no champion has only bands that {support}, and it can do without what is missing"
    others += lesser if fitting else []
    if others:
        reason += f"; also fits: {', '.join(other.name for other in others)}"
    if unfit:
        reason += f"; not: {', '.join(unfit)}"
    return best, reason


def _champions() -> tuple[list[Candidate], list[str]]:
    """Return the champions of the registry, and those that cannot be run, with the reason."""
    try:
        store = Store.open(find_root(Path.cwd()))
        found = store.models.champions()
        broken = [alias.message for alias in store.models.broken_aliases() if alias.alias == "champion"]
    except RegistryError as error:
        raise RegistryError(f"{error} (or name a model: an .onnx file)") from error
    if not found and broken:
        raise RegistryError(f"the registry holds no champion that talud made: {'; '.join(broken)}")
    if not found:
        raise RegistryError(
            "the registry holds no champion that talud made; name a model: an .onnx file or models:/NAME/VERSION"
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
    """Make the stack of a map, `stack.tif` in the map's own folder, for `predict` to read.

    It is made where there is none, where it is damaged, and where it was made with other sources or options; else it is
    left untouched, so that an interrupted map resumes. Where it replaces another, the record of the map of that one is
    removed.

    Args:
        contract: contract of the model.
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
    stack, name = out / STACK_FILE_NAME, out.resolve().name
    check_map_folder(out, [*files.values(), *([model] if model else [])], (stack.name,))
    _check_own(stack)
    before, now = origin_of(stack), origin_like(contract, area, files, name)
    if before == now:
        return stack
    with Journal.reserve(out) as journal:
        if before and len(journal):
            names = [key for key in before | now if before.get(key) != now.get(key)]
            changes = ", ".join(describe_change(key, before.get(key), now.get(key)) for key in names)
            raise OutputError(
                f"{stack}: was made with {changes}, and {len(journal)} finished tiles of its map are kept; go on with "
                f"what it was made with, or delete {journal.folder} to start over"
            )
        for left_behind in out.glob(f".{stack.name}.*"):  # by a run that was killed; `atomic_replace` names them so
            shutil.rmtree(left_behind, ignore_errors=True)
        with atomic_replace(stack) as scratch:
            build_like(contract, area, files, scratch, progress, name=name, origin=now)
            if why_not := reader.find_mismatch(scratch, contract):
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
        own = has_map_record(stack.parent)
    if not own:
        raise OutputError(
            f"{stack}: was not made by talud map, and would be replaced; name another --out, or move it away"
        )
