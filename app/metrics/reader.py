"""Reads the figures for a scrape, which neither hangs nor fails when the database does."""

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.orm import Session

from app.metrics.figures import Figures

TIMEOUT_SECONDS = 3.0  # Prometheus gives up after 10
FRESH_SECONDS = 5.0  # however many scrape, the database is read so often

logger = structlog.get_logger(__name__)


def make_metrics_engine(database_url: str) -> Engine:
    """Return an engine for readings: no connection is kept, and no query outlives the scrape.

    It is not the API's pool: metrics have to be there when that one is used up.
    """
    milliseconds = int(1000 * TIMEOUT_SECONDS)
    return create_engine(
        database_url,
        poolclass=NullPool,
        hide_parameters=True,
        isolation_level="REPEATABLE READ",
        connect_args={
            "connect_timeout": 2,
            "options": f"-c timezone=UTC -c statement_timeout={milliseconds} -c jit=off"
            " -c default_transaction_read_only=on",
        },
    )


class _Reading(threading.Thread):
    """One reading, in a thread that may be left behind: a server that hangs answers no timeout."""

    def __init__(self, engine: Engine, read: Callable[[Session], Figures]) -> None:
        super().__init__(name="lethe-metrics", daemon=True)
        self._engine = engine
        self._read = read
        self.figures: Figures | None = None
        self.ended_at: float | None = None

    def run(self) -> None:
        """Read; what goes wrong is logged, and told by the absence of figures."""
        try:
            with Session(self._engine) as session:
                self.figures = self._read(session)
        except Exception:
            logger.exception("metrics.not_read")
        self.ended_at = time.monotonic()


class Reader:
    """Gives the newest figures; all who ask meanwhile share one reading."""

    def __init__(
        self,
        engine: Engine,
        read: Callable[[Session], Figures],
        *,
        timeout: float = TIMEOUT_SECONDS,
        fresh: float = FRESH_SECONDS,
    ) -> None:
        self._engine = engine
        self._read = read
        self._timeout = timeout
        self._fresh = fresh
        self._lock = threading.Lock()
        self._reading: _Reading | None = None

    def figures(self) -> Figures | None:
        """Return figures of a few seconds ago at most; None when the database does not answer."""
        reading = self._current()
        reading.join(self._timeout)
        return reading.figures

    def _current(self) -> _Reading:
        with self._lock:
            reading = self._reading
            # One that hangs is waited for again: a second one would only hang beside it.
            if reading is None or (
                reading.ended_at is not None
                and (reading.figures is None or time.monotonic() - reading.ended_at >= self._fresh)
            ):
                reading = self._reading = _Reading(self._engine, self._read)
                reading.start()
            return reading
