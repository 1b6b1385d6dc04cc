"""The heartbeat of a job: keeps its lease, carries its progress, and notices when it is lost."""

import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog
from sqlalchemy.exc import OperationalError

from app.errors import LeaseLostError
from app.services import Services
from app.unlearning import service
from worker import log_context

BEATS_A_LEASE = 4
PROGRESS_SECONDS = 0.2  # progress is written at most so often
RETRY_SECONDS = 0.5

Result = TypeVar("Result")

logger = structlog.get_logger(__name__)


def insist(services: Services, step: Callable[[], Result]) -> Result:
    """Repeat a step while the database is away, for as long as a lease lasts.

    A restarted PostgreSQL should not cost an attempt. What is repeated has to be one transaction;
    if it was committed and only the answer was lost, the lease is closed and `hold` says so.

    Raises:
        OperationalError: The database stayed away.
    """
    until = time.monotonic() + services.settings.lease_seconds
    while True:
        try:
            return step()
        except OperationalError:
            if time.monotonic() >= until:
                raise
            logger.warning("database.away", exc_info=True)
            time.sleep(RETRY_SECONDS)


class Heartbeat:
    """Renews a lease in a thread of its own while a job computes.

    Example:
        with Heartbeat(services, job.id) as heartbeat:
            compute(progress=heartbeat.report)
        # here the lease is fresh, or LeaseLostError was raised
    """

    def __init__(self, services: Services, job_id: uuid.UUID) -> None:
        self._services = services
        self._job_id = job_id
        self._lease_seconds = services.settings.lease_seconds
        self._progress: dict[str, Any] | None = None
        self._news = threading.Event()
        self._done = threading.Event()
        self._lost = threading.Event()
        self._thread = log_context.thread(self._beat, name=f"lease-{job_id}")

    def report(self, stage: str, fraction: float) -> None:
        """Take the progress of the computation, to be written soon.

        Raises:
            LeaseLostError: Somebody else has the job: whatever is computed on would be thrown away.
        """
        self._require_lease()
        self._progress = {"stage": stage, "fraction": fraction}
        self._news.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Stopped before the job's row is locked for good: the two would wait for each other.
        self._done.set()
        self._news.set()
        self._thread.join()
        if kind is None:
            self._require_lease()
            if not insist(self._services, self._renew):
                raise self._loss()

    def _beat(self) -> None:
        renewed_at = time.monotonic()
        while True:
            self._news.wait(self._lease_seconds / BEATS_A_LEASE)
            if self._done.is_set():
                return
            self._news.clear()
            try:
                kept = self._renew()
            except Exception:
                # The database is away, or worse. The lease holds until its end all the same.
                logger.exception("lease.not_renewed", job_id=str(self._job_id))
                kept = time.monotonic() - renewed_at < self._lease_seconds
            else:
                renewed_at = time.monotonic()
            if not kept:
                self._lost.set()
                return
            self._done.wait(PROGRESS_SECONDS)

    def _renew(self) -> bool:
        with self._services.sessions.begin() as session:
            return service.renew(
                session,
                self._job_id,
                lease_seconds=self._lease_seconds,
                progress=self._progress,
            )

    def _require_lease(self) -> None:
        if self._lost.is_set():
            raise self._loss()

    def _loss(self) -> LeaseLostError:
        return LeaseLostError(
            f"job {self._job_id}: its lease of {self._lease_seconds} s ran out, or was taken",
            remedy="Nothing to do: another worker has the request. If it happens often, raise"
            " LEASE_SECONDS.",
        )
