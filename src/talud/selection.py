"""Which of the registered champions is the one to run: that which reads most of what there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from talud import registry
from talud.contract import Contract, Precision
from talud.data import stack
from talud.errors import MismatchError, ModelError, RegistryError
from talud.inference import reader
from talud.inference.runtime import Model, Origin
from talud.inference.session import Provider
from talud.inference.variant import open_variant
from talud.params import Area, Source
from talud.project import root_around


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
    fitting: list[Model] = []
    lesser: list[Model] = []  # that would have to do without some of their groups
    unfit: list[str] = []
    for version, root in _champions():
        try:
            fetched = registry.fetch(version.uri, root)
            model = Model.load(fetched.path, Origin(fetched.name, fetched.version), provider)
        except (RegistryError, ModelError) as error:
            unfit.append(f"{version.name} ({error})")
            continue
        why_not = misfit(model.contract.whole())
        if why_not and model.contract.subsets and misfit(model.contract) is None:
            lesser.append(model)
        elif why_not:
            unfit.append(f"{version.name} ({why_not})")
        else:
            fitting.append(model)
    if not fitting and not lesser:
        raise MismatchError(f"no champion has only bands that {support}: {', '.join(unfit)}")
    # The F1 of validation settles nothing between band sets, but between equals something must.
    best, *others = sorted(
        fitting or lesser,
        key=lambda model: (-len(model.contract.bands), -model.contract.scores.get("f1", 0), model.name),
    )
    reason = f"{best.title}: the most bands ({len(best.contract.bands)}) that {support}"
    if not fitting:
        reason = f"{best.title}: no champion has only bands that {support}, and it can do without what is missing"
    others += lesser if fitting else []
    if others:
        reason += f"; also fits: {', '.join(model.name for model in others)}"
    if unfit:
        reason += f"; not: {', '.join(unfit)}"
    return open_variant(best.path, precision, Origin(best.name, best.version, reason), provider)


def _champions() -> list[tuple[registry.Version, Path | None]]:
    """The champions of the registry that can be reached, each with the root of the project, if there is one."""
    root = root_around(Path.cwd())
    try:
        registry.connect(root)
        found = registry.champions()
    except RegistryError as error:
        raise RegistryError(f"{error} (or name a model: an .onnx file)") from error
    if not found:
        raise RegistryError(
            "the registry holds no champion that talud made; name a model: an .onnx file or models:/NAME/VERSION"
        )
    return [(version, root) for version in found]
