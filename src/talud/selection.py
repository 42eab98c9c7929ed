"""Which of the registered champions is the one to run: that which reads most of what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from talud.contract import Contract, Precision
from talud.data import stack
from talud.engine import model_file
from talud.engine.runtime import Model, Origin, open_variant
from talud.engine.session import Provider
from talud.errors import MismatchError, ModelError, RegistryError
from talud.mapping import reader
from talud.params import Area, Source
from talud.project import root_around
from talud.registry import ModelVersion, Store


def for_stack(raster: str | Path, provider: Provider = "auto", precision: Precision | None = None) -> Model:
    """The champion with most bands among those that a stack fits; why, is said in its origin.

    Args:
        raster: as for `predict`.
        provider: what the network is to run on.
        precision: of its variant; default: float32.

    Raises:
        RegistryError: no registry can be reached, or it has no champion.
        MismatchError: the raster fits none; what each lacks is said.
        SourceError: the raster cannot be read.
    """
    return _chosen(lambda contract: reader.misfit(raster, contract), "the stack supports", provider, precision)


def for_sources(
    area: Area, files: Mapping[Source, Path], provider: Provider = "auto", precision: Precision | None = None
) -> Model:
    """The champion with most bands among those whose stack can be made of the sources; why, is said in its origin.

    Args:
        area: as for `build_like`.
        files: the sources.
        provider: what the network is to run on.
        precision: of its variant; default: float32.

    Raises:
        RegistryError: no registry can be reached, or it has no champion.
        MismatchError: the sources make the stack of none; what each lacks is said.
        SourceError: a source cannot be read or used.
    """
    return _chosen(lambda contract: stack.misfit(contract, area, files), "the sources support", provider, precision)


def _chosen(
    misfit: Callable[[Contract], str | None], support: str, provider: Provider, precision: Precision | None
) -> Model:
    usable, unfit = _champions()
    best, reason = choose(usable, misfit, support, unfit)
    return open_variant(best.path, precision, Origin(best.name, best.version, reason), provider)


@dataclass(frozen=True)
class Candidate:
    """A champion that could be run.

    Attributes:
        name: of the registered model.
        version: of it.
        path: of its ONNX file.
        contract: what it states about itself.
    """

    name: str
    version: str
    path: Path
    contract: Contract

    @classmethod
    def of(cls, version: ModelVersion, store: Store) -> Candidate:
        """A registered version, brought to this machine.

        Raises:
            RegistryError: its file cannot be had.
            ModelError: it is no model of talud's.
        """
        fetched = store.models.fetch(version.uri)
        try:
            contract = model_file.contract_of(fetched.path)
        except ModelError as error:  # named as registered: clients of the service see no paths of its machine
            reason = str(error).removeprefix(f"{fetched.path}: ")
            raise ModelError(f"{fetched.name}, version {fetched.version}: {reason}") from error
        return cls(fetched.name, fetched.version, fetched.path, contract)


def choose(
    candidates: Iterable[Candidate],
    misfit: Callable[[Contract], str | None],
    support: str,
    unfit: Sequence[str] = (),
) -> tuple[Candidate, str]:
    """The candidate that reads most of what there is, and why it was chosen.

    Args:
        candidates: to choose from.
        misfit: why what there is does not fit a contract; None where it does.
        support: what there is, as in "bands that the stack supports".
        unfit: what else is there, and why it cannot be run.

    Raises:
        MismatchError: none fits; what each lacks is said.
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
    """The champions of the registry that can be reached, and those that cannot be run, with the reason."""
    try:
        store = Store.open(root_around(Path.cwd()))
        found = store.models.champions()
        broken = [alias.words for alias in store.models.broken_aliases() if alias.alias == "champion"]
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
