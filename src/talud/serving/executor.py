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
from talud.engine.runtime import Origin
from talud.engine.session import physical_cores
from talud.errors import ClusterError, TaludError
from talud.serving.database import Stopped, is_outage, wait_out
from talud.serving.jobs import JobStore
from talud.serving.monitoring import Metrics, log, of_job, shown
from talud.serving.request_resolution import RequestResolver
from talud.serving.settings import Settings
from talud.serving.storage import Maps, remove_expired
from talud.serving.tables import Job, Request, Status
from talud.serving.work import NICE, Work, map_landslides
from talud.text import first_line

FETCHES = 4  # rasters of other machines that come, or wait for a worker, at once
PULSE = 0.5  # seconds between two looks for jobs that wait
REST = 10  # seconds before a cluster that was lost is asked for again
TRIES = 5  # at one job, while clusters are lost under it
CLEANING = 600  # seconds between two clean-ups
Result = TypeVar("Result")


@dataclass
class Executor:
    """Carries jobs out, one for each task that the workers take at once.

    Attributes:
        settings: of the agency.
        jobs: to be done.
        maps: where their files lie.
        intake: what settles a job's raster and model.
        metrics: in which it counts.
        slots: how many jobs can run at once now; 0 while no cluster is there.
    """

    settings: Settings
    jobs: JobStore
    maps: Maps
    intake: RequestResolver
    metrics: Metrics
    slots: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _running: dict[str, threading.Thread] = field(default_factory=dict)
    _fetching: dict[str, threading.Thread] = field(default_factory=dict)
    _fetched: deque[Job] = field(default_factory=deque)
    _dismissed: set[str] = field(default_factory=set)
    _tries: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Carry jobs out within the block; those that run at its end go on when the service is started again."""
        threads = [threading.Thread(target=work, name=work.__name__) for work in (self._dispatch, self._clean)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in (*threads, *self._fetching.values()):
                thread.join()

    def dismiss(self, job: str) -> None:
        """End a job that waits or runs, or throw away the map of one that has ended."""
        self.jobs.dismiss(job)
        self.metrics.jobs.labels("dismissed").inc()
        self._dismissed.add(job)
        for waiting in [each for each in self._fetched if each.id == job]:
            with suppress(ValueError):  # a worker has just taken it
                self._fetched.remove(waiting)
        if job not in self._running and job not in self._fetching:
            self.maps.remove(job)

    def _dispatch(self) -> None:
        while not self._ending.is_set():
            try:
                self._stored(self._requeue_lost)
                with open_cluster(self.settings.workers, self.settings.results, {}) as cluster:
                    self._serve(cluster)
            except Stopped:
                pass
            except TaludError as error:
                log.warning("no workers: %s; trying again in %s s", error, REST)
                self._ending.wait(REST)
            except Exception:
                log.exception("no workers, for a fault of talud's; trying again in %s s", REST)
                self._ending.wait(REST)
            finally:  # the workers are gone, and whoever waits for one hears of it
                self.slots = 0
                for thread in list(self._running.values()):
                    thread.join()

    def _serve(self, cluster: Cluster) -> None:
        """Hand jobs to the workers of a cluster, until the service ends.

        Raises:
            ClusterError: the cluster is lost.
        """
        while not self._ending.wait(PULSE):
            self.slots = cluster.count_slots()
            try:
                self._hand_out(cluster)
            except SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                log.warning("the database does not answer; no job is begun: %s", first_line(error))
                self._stored(self._requeue_lost)

    def _hand_out(self, cluster: Cluster) -> None:
        """Start as many jobs and fetches as the limits allow.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        while len(self._running) < self.slots and (job := self._next()):
            self._begin(job, self._running, lambda job: self._carry_out(job, cluster))
        while len(self._fetching) + len(self._fetched) < FETCHES and (job := self.jobs.claim(remote_raster=True)):
            self._begin(job, self._fetching, self._fetch)

    def _next(self) -> Job | None:
        """Return the next job for a worker.

        Its raster was fetched, or needs no fetching.
        """
        return self._fetched.popleft() if self._fetched else self.jobs.claim(remote_raster=False)

    def _begin(self, job: Job, threads: dict[str, threading.Thread], step: Callable[[Job], None]) -> None:
        threads[job.id] = threading.Thread(target=self._run, args=(job, threads, step), name=f"job {job.id}")
        threads[job.id].start()

    def _requeue_lost(self) -> None:
        """Requeue jobs that are stored as running although no worker has them.

        An earlier service, or a claim whose answer was lost, has left them.
        """
        at_work = {*self._running, *self._fetching, *(job.id for job in self._fetched)}
        for job in self.jobs.list(("running",), limit=10**6):
            if job.id not in at_work:
                self.jobs.wait_again(job.id, "waits for a worker again, and goes on from its finished tiles")

    def _stored(self, call: Callable[[], Result]) -> Result:
        """Return the result of a call of the database, waiting out outages.

        Raises:
            Stopped: the service ends before that.
        """
        return wait_out(call, self._ending)

    def _run(self, job: Job, threads: dict[str, threading.Thread], step: Callable[[Job], None]) -> None:
        try:
            self._try(job, step)
        except Stopped:
            log.info("stopped", extra=of_job(job))
        finally:
            if job.id in self._dismissed:
                self.maps.remove(job.id)
            if threads.get(job.id) is threading.current_thread():  # the job may have begun again
                del threads[job.id]

    def _try(self, job: Job, step: Callable[[Job], None]) -> None:
        """Run a step of a job and record its failure.

        Errors because the service ends do not count as failures of the job.

        Raises:
            Stopped: the job is to go on no more.
        """
        try:
            step(job)
        except Stopped:
            raise
        except ClusterError as error:
            self._tries[job.id] = self._tries.get(job.id, 0) + 1
            log.warning("%s", error, extra=of_job(job))
            if self._tries[job.id] < TRIES:
                self._stored(lambda: self.jobs.wait_again(job.id, "waits for a worker again: the workers were lost"))
            else:
                self._fail(job, str(error))
        except TaludError as error:
            self._fail(job, self.settings.without_folders(str(error)))
        except Exception:
            self._go_on(job)
            log.exception("failed because of a fault in talud", extra=of_job(job))
            self._fail(job, "failed because of a fault in talud; see the service's log")

    def _fetch(self, job: Job) -> None:
        """Fetch a job's raster without occupying a worker."""
        self._note(job, 0, "its raster is fetched")
        self.intake.fetch(job, lambda: self._go_on(job))
        self._note(job, 0, "its raster is there; waits for a worker")
        self._fetched.append(job)

    def _carry_out(self, job: Job, cluster: Cluster) -> None:
        self._go_on(job)
        raster, request = self.intake.settle(job)
        self._go_on(job)
        self._stored(lambda: self.jobs.settle(job.id, request))
        log.info("begins: %s, by version %s of %s", shown(request), request.version, request.model, extra=of_job(job))
        self._tell(request, "inProgressUri", job)
        workers = self.settings.workers
        work = Work(
            raster,
            self.maps.model(job.id).absolute(),
            Origin(request.model, request.version),
            self.maps.out(job.id).absolute(),
            request.options,
            max(physical_cores() // workers, 1) if isinstance(workers, int) else None,
            NICE if isinstance(workers, int) else 0,
        )

        def on_message(_: Work, said: list[int]) -> None:
            self._go_on(job)
            done, tiles = said
            if tiles:
                self._note(job, 99 * done // tiles, f"{done} of {tiles} tiles are done")

        for _, result in run_tasks(map_landslides, [work], cluster, on_message):
            if isinstance(result, LostTask):
                self._fail(job, result.reason)
            elif self._end(job, "successful", result.message):
                log.info("%s", result.message, extra=of_job(job))
                self.metrics.jobs.labels("successful").inc()
                self.metrics.tiles.inc(result.tiles)
                self.metrics.seconds.labels(result.provider).observe(result.seconds)
                self._tell(request, "successUri", job)

    def _go_on(self, job: Job) -> None:
        """See that a job is still wanted.

        Raises:
            Stopped: it is not.
        """
        if job.id in self._dismissed or self._ending.is_set():
            raise Stopped

    def _fail(self, job: Job, why: str) -> None:
        # This comes first: on a disk full of tiles, the database could not store the job's end.
        self.maps.remove_tiles(job.id)
        if self._end(job, "failed", why):
            log.warning("failed: %s", why, extra=of_job(job))
            self.metrics.jobs.labels("failed").inc()
            self.maps.remove(job.id)
            self._tell(job.request, "failedUri", job)

    def _end(self, job: Job, status: Status, message: str) -> bool:
        return self._stored(lambda: self.jobs.end(job.id, status, message))

    def _note(self, job: Job, progress: int, message: str) -> None:
        """Store the progress of a job.

        During an outage of the database it is not stored, and the job continues.
        """
        try:
            self.jobs.note(job.id, progress, message)
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            log.warning("its progress is not stored: %s", first_line(error), extra=of_job(job))

    def _tell(self, request: Request, event: str, job: Job) -> None:
        if event in request.subscribers:
            self.intake.tell(request, event, self._stored(lambda: self.jobs.get(job.id)) or job)

    def _clean(self) -> None:
        while not self._ending.is_set():
            try:
                for job in remove_expired(self.jobs, self.maps, self.settings):
                    log.info("removed because of its age or to free space", extra={"job": job})
            except SQLAlchemyError as error:
                log.warning("the clean-up failed: %s", first_line(error))
            except Exception:
                log.exception("the clean-up failed")
            self._ending.wait(CLEANING)
