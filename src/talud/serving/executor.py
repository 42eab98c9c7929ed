"""Executor of jobs: hands them to workers and resumes them after a restart."""

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

MAX_FETCHES = 4  # rasters of other machines that come, or wait for a worker, at once
POLL_INTERVAL_SECONDS = 0.5  # seconds between two looks for jobs that wait
RETRY_DELAY_SECONDS = 10  # seconds before a cluster that was lost is asked for again
MAX_ATTEMPTS = 5  # at one job, while clusters are lost under it
CLEAN_UP_INTERVAL_SECONDS = 600  # seconds between two clean-ups
Result = TypeVar("Result")


@dataclass
class Executor:
    """Carries jobs out, one for each task that the workers take at once.

    Attributes:
        settings: of the agency.
        jobs: to be done.
        job_folders: where their files lie.
        resolver: what settles a job's raster and model.
        metrics: in which it counts.
        slots: how many jobs can run at once now; 0 while no cluster is there.
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
        """Carry jobs out within the block; those that run at its end go on when the service is started again."""
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
        """End a job that waits or runs, or throw away the map of one that has ended."""
        self.jobs.dismiss(job)
        self.metrics.jobs_ended.labels("dismissed").inc()
        self._dismissed.add(job)
        for waiting in [each for each in self._fetched if each.id == job]:
            with suppress(ValueError):  # a worker has just taken it
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
                log.warning("no workers: %s; trying again in %s s", error, RETRY_DELAY_SECONDS)
                self._stopping.wait(RETRY_DELAY_SECONDS)
            except Exception:
                log.exception("no workers, for a fault of talud's; trying again in %s s", RETRY_DELAY_SECONDS)
                self._stopping.wait(RETRY_DELAY_SECONDS)
            finally:  # the workers are gone, and whoever waits for one hears of it
                self.slots = 0
                for thread in list(self._running.values()):
                    thread.join()

    def _serve_cluster(self, cluster: Cluster) -> None:
        """Hand jobs to the workers of a cluster, until the service ends.

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
                log.warning("the database does not answer; no job is begun: %s", first_line(error))
                self._retry(self._requeue_lost)

    def _start_jobs(self, cluster: Cluster) -> None:
        """Start as many jobs and fetches as the limits allow.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        while len(self._running) < self.slots and (job := self._next_job()):
            self._start_thread(job, self._running, lambda job: self._map(job, cluster))
        while len(self._fetching) + len(self._fetched) < MAX_FETCHES and (job := self.jobs.claim(remote_raster=True)):
            self._start_thread(job, self._fetching, self._fetch)

    def _next_job(self) -> Job | None:
        """Return the next job for a worker.

        Its raster was fetched, or needs no fetching.
        """
        return self._fetched.popleft() if self._fetched else self.jobs.claim(remote_raster=False)

    def _start_thread(self, job: Job, threads: dict[str, threading.Thread], step: Callable[[Job], None]) -> None:
        threads[job.id] = threading.Thread(target=self._run, args=(job, threads, step), name=f"job {job.id}")
        threads[job.id].start()

    def _requeue_lost(self) -> None:
        """Requeue jobs that are stored as running although no worker has them.

        An earlier service, or a claim whose answer was lost, has left them.
        """
        at_work = {*self._running, *self._fetching, *(job.id for job in self._fetched)}
        for job in self.jobs.list(("running",), limit=10**6):
            if job.id not in at_work:
                self.jobs.requeue(job.id, "waits for a worker again, and goes on from its finished tiles")

    def _retry(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call of the database, waiting out outages.

        Raises:
            JobStopped: the service ends before that.
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
            if threads.get(job.id) is threading.current_thread():  # the job may have begun again
                del threads[job.id]

    def _run_step(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step of a job and record its failure.

        Errors because the service ends do not count as failures of the job.

        Raises:
            JobStopped: the job is to go on no more.
        """
        try:
            step(job)
        except JobStopped:
            raise
        except ClusterError as error:
            self._attempts[job.id] = self._attempts.get(job.id, 0) + 1
            log.warning("%s", error, extra=job_fields(job))
            if self._attempts[job.id] < MAX_ATTEMPTS:
                self._retry(lambda: self.jobs.requeue(job.id, "waits for a worker again: the workers were lost"))
            else:
                self._fail(job, str(error))
        except TaludError as error:
            self._fail(job, self.settings.remove_folders(str(error)))
        except Exception:
            self._check_wanted(job)
            log.exception("failed because of a fault in talud", extra=job_fields(job))
            self._fail(job, "failed because of a fault in talud; see the service's log")

    def _fetch(self, job: Job) -> None:
        """Fetch a job's raster without occupying a worker."""
        self._save_progress(job, 0, "its raster is fetched")
        self.resolver.fetch(job, lambda: self._check_wanted(job))
        self._save_progress(job, 0, "its raster is there; waits for a worker")
        self._fetched.append(job)

    def _map(self, job: Job, cluster: Cluster) -> None:
        self._check_wanted(job)
        raster, request = self.resolver.resolve(job)
        self._check_wanted(job)
        self._retry(lambda: self.jobs.save_request(job.id, request))
        log.info(
            "begins: %s, by version %s of %s",
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

        def on_message(_: MapTask, said: list[int]) -> None:
            self._check_wanted(job)
            done, tiles = said
            if tiles:
                self._save_progress(job, 99 * done // tiles, f"{done} of {tiles} tiles are done")

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
        """See that a job is still wanted.

        Raises:
            JobStopped: it is not.
        """
        if job.id in self._dismissed or self._stopping.is_set():
            raise JobStopped

    def _fail(self, job: Job, why: str) -> None:
        # This comes first: on a disk full of tiles, the database could not store the job's end.
        self.job_folders.remove_tiles(job.id)
        if self._end(job, "failed", why):
            log.warning("failed: %s", why, extra=job_fields(job))
            self.metrics.jobs_ended.labels("failed").inc()
            self.job_folders.remove(job.id)
            self._notify(job.request, "failedUri", job)

    def _end(self, job: Job, status: Status, message: str) -> bool:
        return self._retry(lambda: self.jobs.end(job.id, status, message))

    def _save_progress(self, job: Job, progress: int, message: str) -> None:
        """Store the progress of a job.

        During an outage of the database it is not stored, and the job continues.
        """
        try:
            self.jobs.save_progress(job.id, progress, message)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            log.warning("its progress is not stored: %s", first_line(error), extra=job_fields(job))

    def _notify(self, request: MapRequest, event: str, job: Job) -> None:
        if event in request.subscribers:
            self.resolver.notify(request, event, self._retry(lambda: self.jobs.get(job.id)) or job)

    def _clean_up(self) -> None:
        while not self._stopping.is_set():
            try:
                for job in remove_expired(self.jobs, self.job_folders, self.settings):
                    log.info("removed because of its age or to free space", extra={"job": job})
            except SQLAlchemyError as error:
                log.warning("the clean-up failed: %s", first_line(error))
            except Exception:
                log.exception("the clean-up failed")
            self._stopping.wait(CLEAN_UP_INTERVAL_SECONDS)
