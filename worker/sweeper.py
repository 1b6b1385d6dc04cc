"""Rings for whatever still waits, and takes jobs away from workers that have fallen silent.

A thread of every worker's main process, so that no message and no worker has to be reliable, and
nobody has to run a scheduler.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from celery import bootsteps
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.artifacts.store import DUE_BATCH
from app.budget import service as budget
from app.evidence.transparency.anchors import Anchoring
from app.services import Services
from app.unlearning import service
from app.webhooks.delivery import Deliveries
from worker import log_context
from worker.records import issue_failure_if_possible
from worker.services import get_services

CLEANING_SECONDS = 600.0
ANCHORING_SECONDS = 2.0  # what is not delivered by then is sent by the next worker
WEBHOOKS_SECONDS = 2.0  # as ANCHORING_SECONDS

logger = structlog.get_logger(__name__)


def sweep(services: Services) -> None:
    """Requeue what silent workers left behind, end what has no attempt left, ring if any waits."""
    most = services.settings.max_attempts

    def requeue(session: Session, job_id: uuid.UUID) -> None:
        if (request := service.requeue_lost(session, job_id)) is not None:
            with log_context.of_request(request, job_id):
                budget.release(session, request.model_id, job_id=job_id, request_id=request.id)
                logger.warning("request.lost_its_worker")

    def end(session: Session, request_id: uuid.UUID) -> None:
        request = service.fail_exhausted(session, services.store, request_id, max_attempts=most)
        if request is not None:
            with log_context.of_request(request):
                logger.warning("request.attempts_exhausted")
                issue_failure_if_possible(session, services, request, request.failure or {})

    with services.sessions.begin() as session:
        lost = service.lost_jobs(session)
    _each(services, lost, requeue)
    with services.sessions.begin() as session:
        exhausted = service.exhausted_requests(session, max_attempts=most)
    _each(services, exhausted, end)
    with services.sessions.begin() as session:
        waiting = service.queued_models(session)
    if waiting:
        services.queue.ring_unless_waiting()


def _each(
    services: Services,
    identifiers: Iterable[uuid.UUID],
    act: Callable[[Session, uuid.UUID], None],
) -> None:
    """Act on each in a transaction of its own: a poison one must not keep the others waiting."""
    for identifier in identifiers:
        try:
            with services.sessions.begin() as session:
                act(session, identifier)
        except OperationalError:
            raise  # The database is away, for the others too.
        except Exception:
            logger.exception("sweep.one_failed", id=str(identifier))


def clean(services: Services) -> None:
    """Destroy the keys of what was kept for a time that is over; remove blobs without a key."""
    while True:
        with services.sessions.begin() as session:
            shredded = services.store.shred_due(session)
        if shredded:
            logger.info("artifacts.retention_ended", count=shredded)
        if shredded < DUE_BATCH:
            break
    with services.sessions.begin() as session:
        if removed := services.store.remove_leftovers(session):
            logger.info("artifacts.leftovers_removed", count=removed)


class Sweeper:
    """Runs `sweep` every few seconds, and `clean` now and then, until it is stopped."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._anchoring = Anchoring(
            services.settings, services.sessions, services.notary, services.checkpoint_signer
        )
        self._webhooks = Deliveries(services.settings, services.sessions, services.keys)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lethe-sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the sweep that is under way."""
        self._stopped.set()
        self._thread.join()
        self._anchoring.wait(ANCHORING_SECONDS)
        self._webhooks.stop(WEBHOOKS_SECONDS)

    def _run(self) -> None:
        cleaned_at = float("-inf")
        while True:
            _survive(lambda: sweep(self._services))
            if time.monotonic() - cleaned_at > CLEANING_SECONDS and _survive(
                lambda: clean(self._services)
            ):
                cleaned_at = time.monotonic()
            _survive(self._anchoring.turn)
            _survive(self._webhooks.turn)
            if self._stopped.wait(self._services.settings.sweep_seconds):
                return


def _survive(act: Callable[[], None]) -> bool:
    """Do one thing, and return whether it went well: what stands against it stops no other."""
    try:
        act()
    except OperationalError as error:
        logger.warning("sweep.database_away", error=str(error))
        return False
    except Exception:
        # Whatever it was may pass; a sweeper that has died does not come back.
        logger.exception("sweep.failed")
        return False
    return True


class SweeperStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery is untyped
    """Ties the sweeper to the life of a worker's main process."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own attribute

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._sweeper: Sweeper | None = None

    def start(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Start sweeping with the worker."""
        self._sweeper = Sweeper(get_services())
        self._sweeper.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop sweeping with the worker."""
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None

    terminate = stop
