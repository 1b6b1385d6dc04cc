"""The doorbell of the workers.

PostgreSQL is the queue: a lost, late or doubled message does no harm.
"""

import structlog
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.orm import Session

TASK = "lethe.work"
QUEUE = "unlearning"

# A request waits for the broker no longer than this; the sweeper rings again.
BROKER_TIMEOUT_SECONDS = 1.0

_RINGING = "lethe.jobs.ringing"  # where a session keeps the transaction that rings

logger = structlog.get_logger(__name__)


def broker_url(redis_url: str) -> str:
    """Return the address as Celery writes it: redis-py's `unix://` is its `redis+socket://`."""
    scheme, separator, rest = redis_url.partition("://")
    return f"redis+socket{separator}{rest}" if scheme == "unix" else redis_url


class JobQueue:
    """Sends the message that makes a worker look into the queue."""

    def __init__(self, redis_url: str) -> None:
        self._celery = Celery("lethe-doorbell", broker=broker_url(redis_url), set_as_current=False)
        self._celery.conf.update(
            task_ignore_result=True,
            task_serializer="json",
            accept_content=["json"],
            broker_connection_timeout=BROKER_TIMEOUT_SECONDS,
            broker_transport_options={
                "socket_timeout": BROKER_TIMEOUT_SECONDS,
                "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
                # Without these kombu tries again for as long as the broker is away.
                "max_retries": 0,
                "interval_start": 0,
                "interval_step": 0,
                "interval_max": 0,
            },
        )

    def ring(self, session: Session) -> None:
        """Ring once the session's transaction is committed; never if it is rolled back."""
        if _RINGING not in session.info:
            event.listen(session, "after_commit", self._after_commit)
        session.info[_RINGING] = session.get_transaction() or session.begin()

    def _after_commit(self, session: Session) -> None:
        # The end of a savepoint fires this too, and a later transaction of the session asked for
        # nothing.
        if (
            session.in_nested_transaction()
            or session.get_transaction() is not session.info[_RINGING]
        ):
            return
        self.ring_now()

    def ring_now(self) -> bool:
        """Ring; return False, and log, when the broker cannot be reached."""
        try:
            self._celery.send_task(TASK, queue=QUEUE, ignore_result=True, retry=False)
        except (KombuError, OperationalError, RedisError, OSError) as error:
            logger.warning("doorbell.unreachable", error=repr(error), remedy="the sweeper rings")
            return False
        return True

    def ring_unless_waiting(self) -> bool:
        """Ring unless a message waits already: whoever takes that one finds all there is.

        So repeated rings never fill the broker while every worker is busy.

        Returns:
            Whether a message is waiting now; False, and a log entry, when the broker is away.
        """
        try:
            with self._celery.producer_or_acquire() as producer:
                waiting = producer.channel.queue_declare(QUEUE).message_count
        except (KombuError, OperationalError, RedisError, OSError) as error:
            logger.warning("doorbell.unreachable", error=repr(error), remedy="the sweeper rings")
            return False
        return bool(waiting) or self.ring_now()

    def close(self) -> None:
        """Give the broker's connections back."""
        self._celery.close()
