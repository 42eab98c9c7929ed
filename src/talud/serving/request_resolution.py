"""Resolution of a request's raster and model."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from talud import basin
from talud.basin import Candidate
from talud.contract import Contract
from talud.errors import MismatchError, ModelError, OutputError, ParamsError, RegistryError, SourceError
from talud.mapping import reader
from talud.mapping.options import ResultOptions
from talud.project import find_root
from talud.registry import ModelVersion, Store
from talud.serving import raster_paths, remote
from talud.serving.jobs import JobStore
from talud.serving.ogc_process import PROCESS_ID, ExecuteRequest
from talud.serving.problems import Problem
from talud.serving.rasters import read_header
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders
from talud.serving.tables import UNFINISHED, Job, Key, MapRequest


@dataclass(frozen=True)
class ModelLookup:
    """The models of the registry, looked up anew each time: an alias may have moved.

    Attributes:
        root: of the project that the service was started in, if in one.
    """

    root: Path | None
    _cache: dict[tuple[str, str], Candidate] = field(default_factory=dict, repr=False)

    @classmethod
    def current(cls) -> ModelLookup:
        """Return the models of the project, or of the server in `MLFLOW_TRACKING_URI`."""
        return cls(find_root(Path.cwd()))

    def look_up(self, reference: str) -> Candidate:
        """Return the version of `NAME`, `NAME@ALIAS` or `NAME/VERSION`.

        Raises:
            RegistryError: there is none, its file cannot be had, or the registry does not answer.
            ModelError: it is no model of talud's.
        """
        store = Store.open(self.root)
        return self._candidate(store, store.models.look_up(reference))

    def champions(self) -> list[Candidate]:
        """Return the champions that can be run, by name.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return [candidate for _, candidate in self._loadable(lambda version: "champion" in version.aliases)]

    def with_alias(self) -> list[tuple[ModelVersion, Candidate]]:
        """Return all versions with an alias that can be run.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return self._loadable(lambda version: bool(version.aliases))

    def choose_champion(self, misfit: Callable[[Contract], str | None]) -> Candidate:
        """Return the champion with most bands that a raster fits.

        Raises:
            RegistryError: the registry cannot be reached, or has no champion.
            MismatchError: the raster fits none; what each lacks is said.
        """
        champions = self.champions()
        if not champions:
            raise RegistryError("the registry holds no champion; promote a version: talud models promote")
        return basin.choose_champion(champions, misfit, "the raster supports")[0]

    def _loadable(self, wanted: Callable[[ModelVersion], bool]) -> list[tuple[ModelVersion, Candidate]]:
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
        known = self._cache.get((version.name, version.version))
        if known is None or not known.path.is_file():
            known = self._cache[version.name, version.version] = Candidate.of(version, store)
        return known


@dataclass(frozen=True)
class RequestResolver:
    """The resolution of requests to a raster and a model.

    Attributes:
        settings: of the agency.
        jobs: of the service.
        job_folders: where their files lie.
        models: of the registry.
    """

    settings: Settings
    jobs: JobStore
    job_folders: JobFolders
    models: ModelLookup

    def accept(self, execute: ExecuteRequest, key: Key) -> Job:
        """Check a request and return its new job.

        Raises:
            Problem: too many jobs wait.
            TaludError: the raster cannot be had, the model is not there, or they do not fit.
        """
        inputs = execute.inputs
        if is_remote(inputs.raster.href):
            remote.check_reference(inputs.raster.href, self.settings)
        self._check_queue(key)
        subscribers = execute.subscriber.model_dump(mode="json", exclude_none=True) if execute.subscriber else {}
        for url in subscribers.values():
            remote.check_url(url, self.settings)
        model = None if inputs.model == "auto" else self.models.look_up(inputs.model)
        if not is_remote(inputs.raster.href):
            model = self._fitting_model(
                raster_paths.resolve_raster(inputs.raster.href, self.settings), model, inputs.bands
            )
        request = MapRequest(
            raster=inputs.raster.href,
            model=model.name if model else "",
            version=model.version if model else "",
            bands=inputs.bands,
            **inputs.model_dump(include=set(ResultOptions.model_fields)),
            subscribers=subscribers,
        )
        job = str(uuid.uuid4())
        try:
            if model:
                self.job_folders.copy_model(job, model.path)
            return self.jobs.create(job, key.name, request, key.id)
        except OutputError:
            self.job_folders.remove(job)
            raise

    def fetch(self, job: Job, check_wanted: Callable[[], object]) -> None:
        """Fetch a job's raster from another machine.

        A resumed job uses the raster with which it started.

        Args:
            job: the job.
            check_wanted: a function that is called again and again meanwhile; what it raises ends the fetch.

        Raises:
            TaludError: the raster cannot be had.
        """
        if self._fetched_path(job) is None:
            remote.fetch(job.request.raster, self.job_folders.fetched_raster(job.id), self.settings, check_wanted)

    def resolve(self, job: Job) -> tuple[Path, MapRequest]:
        """Return the local raster of a job, and its request with a model.

        Raises:
            TaludError: the raster cannot be had, or does not fit.
        """
        request, raster = job.request, self.raster_path(job)
        if not is_remote(request.raster):
            return raster, request
        model = self.models.look_up(f"{request.model}/{request.version}") if request.model else None
        model = self._fitting_model(raster, model, request.bands)
        if not self.job_folders.model(job.id).exists():
            self.job_folders.copy_model(job.id, model.path)
        return raster, request.model_copy(update={"model": model.name, "version": model.version})

    def raster_path(self, job: Job) -> Path:
        """Return the path of a job's raster on this machine.

        Raises:
            SourceError: it is there no more, or not yet.
        """
        if not is_remote(job.request.raster):
            return raster_paths.resolve_raster(job.request.raster, self.settings).absolute()
        found = self._fetched_path(job)
        if found is None:
            raise SourceError(f"{job.request.raster_without_secrets}: is not fetched yet, or no longer there")
        return found

    def _fetched_path(self, job: Job) -> Path | None:
        found = next(self.job_folders.fetched_raster(job.id).glob("[!.]*.tif*"), None)
        return None if found is None else found.absolute()

    def notify(self, request: MapRequest, event: str, job: Job) -> None:
        """Notify a subscriber of a job's status; failures are ignored."""
        if url := request.subscribers.get(event):
            document = {"jobID": job.id, "processID": PROCESS_ID, "status": job.status, "message": job.message}
            remote.notify(url, document, self.settings)

    def _check_queue(self, key: Key) -> None:
        settings = self.settings
        if self.jobs.count(UNFINISHED, key.id) >= settings.jobs_per_key:
            raise Problem(429, f"the key of {key.name} has {settings.jobs_per_key} jobs that wait or run; wait for one")
        if self.jobs.count(UNFINISHED) >= settings.queue:
            raise Problem(503, f"{settings.queue} jobs wait or run; try again later", headers={"Retry-After": "60"})

    def _fitting_model(self, raster: Path, model: Candidate | None, bands: tuple[str, ...] | None) -> Candidate:
        """Return the named model, or the champion with most bands that fits a raster.

        Raises:
            SourceError: the raster cannot be read.
            ParamsError: it is too large.
            MismatchError: the model, or every champion, reads what is not there.
        """
        self._check_size(raster)

        def misfit(contract: Contract) -> str | None:
            if bands is not None and (others := [name for name in contract.input.band_names if name not in bands]):
                return f"reads {', '.join(others)}, which the request leaves out"
            return reader.find_mismatch(raster, contract)

        if model is None:
            return self.models.choose_champion(misfit)
        if why_not := misfit(model.contract):
            raise MismatchError(f"{raster.name}: {why_not}")
        return model

    def _check_size(self, raster: Path) -> None:
        pixels = read_header(raster).pixels
        if pixels > self.settings.pixels:
            raise ParamsError(f"{raster.name}: has {pixels:,} pixels; this service maps up to {self.settings.pixels:,}")


def is_remote(href: str) -> bool:
    """Check whether a reference names a raster of another machine.

    A job fetches such a raster when it is next in the queue.
    """
    return href.startswith(remote.SCHEMES)
