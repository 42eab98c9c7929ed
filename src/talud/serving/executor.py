"""Execution of jobs by workers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from talud.cluster import Cluster, LostTask, open_cluster, run_tasks
from talud.engine.runtime import RegistryVersion
from talud.engine.session import physical_cores
from talud.errors import ClusterError, TaludError
from talud.serving.database import JobStopped, is_outage, retry_outages
from talud.serving.jobs import JobStore
from talud.serving.map_task import WORKER_NICENESS, MapTask, map_landslides
from talud.serving.monitoring import Metrics, job_fields, log, raster_reference
from talud.serving.request_resolution import RequestResolver
from talud.serving.settings import Settings
from talud.serving.storage import JobFolders, remove_expired
from talud.serving.tables import Job, MapRequest, Status
from talud.text import first_line

MAX_FETCHES = 4  # remote rasters that are being downloaded, or are downloaded and wait for a worker
POLL_INTERVAL_SECONDS = 0.5  # between two queries for waiting jobs
RETRY_DELAY_SECONDS = 10  # before a new attempt to connect to a lost cluster
MAX_ATTEMPTS = 5  # at a job whose workers were lost
CLEAN_UP_INTERVAL_SECONDS = 600
Result = TypeVar("Result")


@dataclass
class Executor:
    """Executor that runs jobs in the slots of the workers.

    Attributes:
        settings: settings of the service.
        jobs: jobs in the database.
        job_folders: folders of the jobs.
        resolver: resolver of a job's raster and model.
        metrics: metrics that the executor updates.
        slots: number of jobs that can run at once; 0 without a cluster.
    """

    settings: Settings
    jobs: JobStore
    job_folders: JobFolders
    resolver: RequestResolver
    metrics: Metrics
    slots: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _running: dict[str, threading.Thread] = field(default_factory=dict)
    _fetching: dict[str, threading.Thread] = field(default_factory=dict)
    _fetched: deque[Job] = field(default_factory=deque)
    _dismissed: set[str] = field(default_factory=set)
    _attempts: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run jobs until the end of the block.

        Jobs that run at its end are resumed by the next start of the service.
        """
        threads = [threading.Thread(target=work, name=work.__name__) for work in (self._dispatch, self._clean_up)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in (*threads, *self._fetching.values()):
                thread.join()

    def dismiss(self, job: str) -> None:
        """Stop a job, or delete the map of an ended job."""
        self.jobs.dismiss(job)
        self.metrics.jobs_ended.labels("dismissed").inc()
        self._dismissed.add(job)
        for waiting in [each for each in self._fetched if each.id == job]:
            with suppress(ValueError):  # another thread has taken the job in the meantime
                self._fetched.remove(waiting)
        if job not in self._running and job not in self._fetching:
            self.job_folders.remove(job)

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._retry(self._requeue_lost)
                with open_cluster(self.settings.workers, self.settings.results, {}) as cluster:
                    self._serve_cluster(cluster)
            except JobStopped:
                pass
            except TaludError as error:
                log.warning("no workers: %s; retry in %s s", error, RETRY_DELAY_SECONDS)
                self._stopping.wait(RETRY_DELAY_SECONDS)
            except Exception:
                log.exception("no workers because of a bug in talud; retry in %s s", RETRY_DELAY_SECONDS)
                self._stopping.wait(RETRY_DELAY_SECONDS)
            finally:  # the workers are gone, so the threads that wait for them end
                self.slots = 0
                for thread in list(self._running.values()):
                    thread.join()

    def _serve_cluster(self, cluster: Cluster) -> None:
        """Start waiting jobs until the service ends.

        Raises:
            ClusterError: the cluster is lost.
        """
        while not self._stopping.wait(POLL_INTERVAL_SECONDS):
            self.slots = cluster.count_slots()
            try:
                self._start_jobs(cluster)
            except SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                log.warning("the database does not answer, no job can start: %s", first_line(error))
                self._retry(self._requeue_lost)

    def _start_jobs(self, cluster: Cluster) -> None:
        """Start as many jobs and downloads as the limits allow.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        while len(self._running) < self.slots and (job := self._next_job()):
            self._start_thread(job, self._running, lambda job: self._map(job, cluster))
        while len(self._fetching) + len(self._fetched) < MAX_FETCHES and (job := self.jobs.claim(remote_raster=True)):
            self._start_thread(job, self._fetching, self._fetch)

    def _next_job(self) -> Job | None:
        """Return the next job that has a local raster."""
        return self._fetched.popleft() if self._fetched else self.jobs.claim(remote_raster=False)

    def _start_thread(self, job: Job, threads: dict[str, threading.Thread], step: Callable[[Job], None]) -> None:
        threads[job.id] = threading.Thread(target=self._run, args=(job, threads, step), name=f"job {job.id}")
        threads[job.id].start()

    def _requeue_lost(self) -> None:
        """Requeue jobs that are marked as running without a thread.

        They were left by an earlier service, or by a claim whose reply was lost.
        """
        active = {*self._running, *self._fetching, *(job.id for job in self._fetched)}
        for job in self.jobs.list(("running",), limit=10**6):
            if job.id not in active:
                self.jobs.requeue(job.id, "waiting for a worker again; resumes from its finished tiles")

    def _retry(self, call: Callable[[], Result]) -> Result:
        """Call the database, and retry during outages.

        Raises:
            JobStopped: the service ends before the database answers.
        """
        return retry_outages(call, self._stopping)

    def _run(self, job: Job, threads: dict[str, threading.Thread], step: Callable[[Job], None]) -> None:
        try:
            self._run_step(job, step)
        except JobStopped:
            log.info("stopped", extra=job_fields(job))
        finally:
            if job.id in self._dismissed:
                self.job_folders.remove(job.id)
            if threads.get(job.id) is threading.current_thread():  # the job may already run in a new thread
                del threads[job.id]

    def _run_step(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step of a job and record its failure.

        An error that is caused by the end of the service is not a failure of the job.

        Raises:
            JobStopped: the job was dismissed, or the service ends.
        """
        try:
            step(job)
        except JobStopped:
            raise
        except ClusterError as error:
            self._attempts[job.id] = self._attempts.get(job.id, 0) + 1
            log.warning("%s", error, extra=job_fields(job))
            if self._attempts[job.id] < MAX_ATTEMPTS:
                self._retry(lambda: self.jobs.requeue(job.id, "waiting for a worker again: the workers were lost"))
            else:
                self._fail(job, str(error))
        except TaludError as error:
            self._fail(job, self.settings.remove_folders(str(error)))
        except Exception:
            self._check_wanted(job)
            log.exception("failed because of a bug in talud", extra=job_fields(job))
            self._fail(job, "failed because of a bug in talud; see the service's log")

    def _fetch(self, job: Job) -> None:
        """Download a job's raster without occupying a worker."""
        self._save_progress(job, 0, "downloading the raster")
        self.resolver.fetch(job, lambda: self._check_wanted(job))
        self._save_progress(job, 0, "raster downloaded, waiting for a worker")
        self._fetched.append(job)

    def _map(self, job: Job, cluster: Cluster) -> None:
        self._check_wanted(job)
        raster, request = self.resolver.resolve(job)
        self._check_wanted(job)
        self._retry(lambda: self.jobs.save_request(job.id, request))
        log.info(
            "started: %s, with version %s of %s",
            raster_reference(request),
            request.version,
            request.model,
            extra=job_fields(job),
        )
        self._notify(request, "inProgressUri", job)
        workers = self.settings.workers
        task = MapTask(
            raster,
            self.job_folders.model(job.id).absolute(),
            RegistryVersion(request.model, request.version),
            self.job_folders.map_folder(job.id).absolute(),
            request.options,
            max(physical_cores() // workers, 1) if isinstance(workers, int) else None,
            WORKER_NICENESS if isinstance(workers, int) else 0,
        )

        def on_message(_: MapTask, progress: list[int]) -> None:
            self._check_wanted(job)
            done, tiles = progress
            if tiles:
                self._save_progress(job, 99 * done // tiles, f"{done} of {tiles} tiles mapped")

        for _, result in run_tasks(map_landslides, [task], cluster, on_message):
            if isinstance(result, LostTask):
                self._fail(job, result.reason)
            elif self._end(job, "successful", result.message):
                log.info("%s", result.message, extra=job_fields(job))
                self.metrics.jobs_ended.labels("successful").inc()
                self.metrics.tiles_mapped.inc(result.tiles)
                self.metrics.map_seconds.labels(result.provider).observe(result.seconds)
                self._notify(request, "successUri", job)

    def _check_wanted(self, job: Job) -> None:
        """Check that a job must continue.

        Raises:
            JobStopped: the job was dismissed, or the service ends.
        """
        if job.id in self._dismissed or self._stopping.is_set():
            raise JobStopped

    def _fail(self, job: Job, reason: str) -> None:
        # The tiles are removed first: on a disk full of tiles, the database could not store the job's end.
        self.job_folders.remove_tiles(job.id)
        if self._end(job, "failed", reason):
            log.warning("failed: %s", reason, extra=job_fields(job))
            self.metrics.jobs_ended.labels("failed").inc()
            self.job_folders.remove(job.id)
            self._notify(job.request, "failedUri", job)

    def _end(self, job: Job, status: Status, message: str) -> bool:
        return self._retry(lambda: self.jobs.end(job.id, status, message))

    def _save_progress(self, job: Job, progress: int, message: str) -> None:
        """Store the progress of a job.

        During an outage of the database the progress is not stored, and the job continues.
        """
        try:
            self.jobs.save_progress(job.id, progress, message)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            log.warning("progress not stored: %s", first_line(error), extra=job_fields(job))

    def _notify(self, request: MapRequest, event: str, job: Job) -> None:
        if event in request.subscribers:
            self.resolver.notify(request, event, self._retry(lambda: self.jobs.get(job.id)) or job)

    def _clean_up(self) -> None:
        while not self._stopping.is_set():
            try:
                for job in remove_expired(self.jobs, self.job_folders, self.settings):
                    log.info("removed, because it expired or to free space", extra={"job": job})
            except SQLAlchemyError as error:
                log.warning("the clean-up failed: %s", first_line(error))
            except Exception:
                log.exception("the clean-up failed")
            self._stopping.wait(CLEAN_UP_INTERVAL_SECONDS)
