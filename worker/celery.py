"""The Celery application of the workers: `celery --app worker.celery worker --queues unlearning`.

PostgreSQL is the queue; a message only makes a worker look there. So nothing here tries to make
messages reliable: no late acknowledgement, no results, no redelivery.
"""

from celery import Celery

from app.jobs import QUEUE, broker_url
from app.production import require_safe
from app.settings import get_settings
from worker import signals as _signals  # noqa: F401 - connects them
from worker.sweeper import SweeperStep

require_safe(get_settings())
app = Celery("lethe", broker=broker_url(get_settings().redis_url), include=["worker.tasks"])
app.conf.update(
    # torch and CUDA hang in a forked child of a process with threads.
    worker_pool="prefork",
    worker_pool_start_method="spawn",
    worker_concurrency=1,
    # Busy workers leave messages to idle ones.
    worker_disable_prefetch=True,
    worker_prefetch_multiplier=1,
    task_acks_late=False,
    task_ignore_result=True,
    task_default_queue=QUEUE,
    task_serializer="json",
    accept_content=["json"],
    enable_utc=True,
    # Starting before the broker, or losing it, is no reason to give up.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # A job outlives a broken connection: its lease is in PostgreSQL.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Nobody listens to Celery's own events.
    worker_send_task_events=False,
    worker_enable_remote_control=True,  # answers `ping` at start-up
)
app.steps["worker"].add(SweeperStep)
