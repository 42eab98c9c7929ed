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
    """Models of the registry.

    Each call asks the registry, because aliases may have moved.

    Attributes:
        root: folder of the project in which the service was started; None outside a project.
    """

    root: Path | None
    _cache: dict[tuple[str, str], Candidate] = field(default_factory=dict, repr=False)

    @classmethod
    def current(cls) -> ModelLookup:
        """Return the models of this project or of `MLFLOW_TRACKING_URI`."""
        return cls(find_root(Path.cwd()))

    def look_up(self, reference: str) -> Candidate:
        """Return the model version `NAME`, `NAME@ALIAS` or `NAME/VERSION`.

        Raises:
            RegistryError: the version or its file does not exist, or the registry cannot be reached.
            ModelError: the file is not a model of talud.
        """
        store = Store.open(self.root)
        return self._candidate(store, store.models.look_up(reference))

    def champions(self) -> list[Candidate]:
        """Return the champions that can be run, sorted by name.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return [candidate for _, candidate in self._loadable(lambda version: "champion" in version.aliases)]

    def with_alias(self) -> list[tuple[ModelVersion, Candidate]]:
        """Return the versions that have an alias and can be run.

        Raises:
            RegistryError: the registry cannot be reached.
        """
        return self._loadable(lambda version: bool(version.aliases))

    def choose_champion(self, mismatch: Callable[[Contract], str | None]) -> Candidate:
        """Return the champion that uses most of a raster's bands.

        Args:
            mismatch: function that returns the reason why the raster does not fit a contract, or None if it fits.

        Raises:
            RegistryError: the registry cannot be reached, or has no champion.
            MismatchError: the raster fits no champion; the message gives the reason for each.
        """
        champions = self.champions()
        if not champions:
            raise RegistryError("the registry holds no champion; promote a version: talud models promote")
        return basin.choose_champion(champions, mismatch, "the raster supports")[0]

    def _loadable(self, wanted: Callable[[ModelVersion], bool]) -> list[tuple[ModelVersion, Candidate]]:
        store = Store.open(self.root)
        usable = []
        for version in store.models.versions():
            if wanted(version):
                try:
                    usable.append((version, self._candidate(store, version)))
                except (RegistryError, ModelError):
                    # The file is missing or of another release; `talud models list` reports it.
                    continue
        return usable

    def _candidate(self, store: Store, version: ModelVersion) -> Candidate:
        known = self._cache.get((version.name, version.version))
        if known is None or not known.path.is_file():
            known = self._cache[version.name, version.version] = Candidate.of(version, store)
        return known


@dataclass(frozen=True)
class RequestResolver:
    """Resolver of the raster and the model of a request.

    Attributes:
        settings: settings of the service.
        jobs: jobs of the service.
        job_folders: folders of the jobs.
        models: models of the registry.
    """

    settings: Settings
    jobs: JobStore
    job_folders: JobFolders
    models: ModelLookup

    def accept(self, execute: ExecuteRequest, key: Key) -> Job:
        """Check a request and return its new job.

        Raises:
            Problem: too many jobs are waiting.
            TaludError: the raster or the model is missing or not allowed, or the raster does not fit the model.
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
        """Download a job's remote raster.

        A resumed job uses the raster that it downloaded before.

        Args:
            job: job with a remote raster.
            check_wanted: function that is called several times a second; an exception of it cancels the download.

        Raises:
            TaludError: the raster cannot be downloaded.
        """
        if self._fetched_path(job) is None:
            remote.fetch(job.request.raster, self.job_folders.fetched_raster(job.id), self.settings, check_wanted)

    def resolve(self, job: Job) -> tuple[Path, MapRequest]:
        """Return the raster path and the resolved request of a job.

        Raises:
            TaludError: the raster is missing, or does not fit the model.
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
        """Return the local path of a job's raster.

        Raises:
            SourceError: the raster was deleted, or is not downloaded yet.
        """
        if not is_remote(job.request.raster):
            return raster_paths.resolve_raster(job.request.raster, self.settings).absolute()
        found = self._fetched_path(job)
        if found is None:
            raise SourceError(f"{job.request.raster_without_secrets}: is not downloaded yet, or was deleted")
        return found

    def _fetched_path(self, job: Job) -> Path | None:
        found = next(self.job_folders.fetched_raster(job.id).glob("[!.]*.tif*"), None)
        return None if found is None else found.absolute()

    def notify(self, request: MapRequest, event: str, job: Job) -> None:
        """Notify the subscriber of a job's status.

        Failures are only logged.
        """
        if url := request.subscribers.get(event):
            document = {"jobID": job.id, "processID": PROCESS_ID, "status": job.status, "message": job.message}
            remote.notify(url, document, self.settings)

    def _check_queue(self, key: Key) -> None:
        settings = self.settings
        if self.jobs.count(UNFINISHED, key.id) >= settings.jobs_per_key:
            raise Problem(
                429,
                f"the key of {key.name} has {settings.jobs_per_key} waiting or running jobs, which is the limit; wait "
                "until one has ended",
            )
        if self.jobs.count(UNFINISHED) >= settings.queue:
            raise Problem(
                503,
                f"the queue is full: {settings.queue} jobs are waiting or running; try again later",
                headers={"Retry-After": "60"},
            )

    def _fitting_model(self, raster: Path, model: Candidate | None, bands: tuple[str, ...] | None) -> Candidate:
        """Return the given model, or the champion that fits best.

        Raises:
            SourceError: the raster cannot be read.
            ParamsError: the raster is too large.
            MismatchError: the raster lacks bands of the model, or of every champion.
        """
        self._check_size(raster)

        def mismatch(contract: Contract) -> str | None:
            if bands is not None and (others := [name for name in contract.input.band_names if name not in bands]):
                return f"needs the bands {', '.join(others)}, which the request excludes"
            return reader.find_mismatch(raster, contract)

        if model is None:
            return self.models.choose_champion(mismatch)
        if reason := mismatch(model.contract):
            raise MismatchError(f"{raster.name}: {reason}")
        return model

    def _check_size(self, raster: Path) -> None:
        pixels = read_header(raster).pixels
        if pixels > self.settings.pixels:
            raise ParamsError(f"{raster.name}: has {pixels:,} pixels; this service maps up to {self.settings.pixels:,}")


def is_remote(href: str) -> bool:
    """Check if a reference is the URL of a remote raster.

    Such a raster is downloaded when its job is next in the queue.
    """
    return href.startswith(remote.SCHEMES)
