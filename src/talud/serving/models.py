"""The registered models that a service can run, and what each says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from talud import basin
from talud.basin import Candidate
from talud.contract import Contract
from talud.errors import ModelError, RegistryError
from talud.project import root_around
from talud.registry import ModelVersion, Store


@dataclass(frozen=True)
class Models:
    """The models of the registry, looked up anew each time: an alias may have moved.

    Attributes:
        root: of the project that the service was started in, if in one.
    """

    root: Path | None
    _known: dict[tuple[str, str], Candidate] = field(default_factory=dict, repr=False)

    @classmethod
    def here(cls) -> Models:
        """Those of the project around the working folder, or of the server that `MLFLOW_TRACKING_URI` names."""
        return cls(root_around(Path.cwd()))

    def look_up(self, reference: str) -> Candidate:
        """The version that `NAME`, `NAME@ALIAS` or `NAME/VERSION` names now.

        Raises:
            RegistryError: there is none, its file cannot be had, or the registry does not answer.
            ModelError: it is no model of talud's.
        """
        store = Store.open(self.root)
        return self._candidate(store, store.models.look_up(reference))

    def champions(self) -> list[Candidate]:
        """The champions that can be run, by name.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return [candidate for _, candidate in self._usable(lambda version: "champion" in version.aliases)]

    def aliased(self) -> list[tuple[ModelVersion, Candidate]]:
        """All versions that an alias points to and that can be run.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return self._usable(lambda version: bool(version.aliases))

    def choose(self, misfit: Callable[[Contract], str | None]) -> Candidate:
        """The champion with most bands among those that a raster fits.

        Raises:
            RegistryError: the registry cannot be reached, or has no champion.
            MismatchError: the raster fits none; what each lacks is said.
        """
        champions = self.champions()
        if not champions:
            raise RegistryError("the registry holds no champion; promote a version: talud models promote")
        return basin.choose(champions, misfit, "the raster supports")[0]

    def _usable(self, wanted: Callable[[ModelVersion], bool]) -> list[tuple[ModelVersion, Candidate]]:
        store = Store.open(self.root)
        usable = []
        for version in store.models.versions():
            if wanted(version):
                try:
                    usable.append((version, self._candidate(store, version)))
                except (RegistryError, ModelError):
                    continue  # a file that is missing or of another release; `talud models list` tells of it
        return usable

    def _candidate(self, store: Store, version: ModelVersion) -> Candidate:
        known = self._known.get((version.name, version.version))
        if known is None or not known.path.is_file():
            known = self._known[version.name, version.version] = Candidate.of(version, store)
        return known
