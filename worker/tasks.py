"""The one Celery task: a doorbell was rung, so work off what waits in PostgreSQL."""

from celery import shared_task

from app.jobs import TASK
from worker import signals  # noqa: F401 - connects them in the pool's children
from worker.services import get_services


@shared_task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]  # Celery is untyped
def work(*_: object) -> None:
    """Run the next unlearning request, and ring for the one after it."""
    # Here, in the pool's child, and before anything is claimed: torch takes seconds to import, and
    # a worker that cannot import it must not use up a request's attempts.
    from worker.runner import run_next  # noqa: PLC0415

    services = get_services()
    while run_next(services):
        # One request a message: a worker that was told to stop ends after this one, and the message
        # is answered by others. Without a broker the rest is worked off here.
        if services.queue.ring_unless_waiting():
            return
