"""What every process of a worker does first.

A module of its own, imported by the tasks too: a spawned child of the pool builds its Celery
application anew, and never imports `worker.celery`.
"""

import logging
import os
from typing import Any

from celery import signals

from app.logging import configure_logging
from app.process import forbid_core_dumps
from worker.services import get_services


@signals.setup_logging.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _configure_logging(loglevel: int | str | None = None, **_: Any) -> None:
    """Log as the API does, instead of Celery's way."""
    level = loglevel if isinstance(loglevel, int) else logging.INFO
    configure_logging(level)
    # Celery's default is WARNING. What became of a job is told all the same; libraries stay quiet,
    # since some log addresses with what is secret in them.
    for name in ("app", "worker"):
        logging.getLogger(name).setLevel(min(level, logging.INFO))


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _configure_logging_of_child(**_: Any) -> None:
    """Log JSON in the pool's children, too: where they are spawned, Celery does not ask for it."""
    chosen = os.environ.get("CELERY_LOG_LEVEL", "")  # what Celery hands on to them
    _configure_logging(int(chosen) if chosen.isdecimal() else logging.INFO)


@signals.worker_init.connect  # type: ignore[untyped-decorator]  # Celery is untyped
@signals.worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _forbid_core_dumps(**_: Any) -> None:
    """Keep what the main process and the pool's children compute on out of crash dumps."""
    forbid_core_dumps()


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _send_last_spans(**_: Any) -> None:
    """Send what was traced last: the pool's children end without Python's exit hooks."""
    if get_services.cache_info().currsize:
        get_services().tracing.close()
