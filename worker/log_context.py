"""What every log line about a job says: which request, job and model, and who asked for it."""

import contextvars
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

import structlog
from sqlalchemy import select

from app.logging import HTTP_REQUEST_ID
from app.services import Services
from app.unlearning.models import UnlearningJob, UnlearningRequest


def of_request(
    request: UnlearningRequest, job_id: uuid.UUID | None = None
) -> AbstractContextManager[None]:
    """Have the log lines of a block name a request, and the job that runs it or ran it last."""
    found = {"request_id": str(request.id), "model_id": str(request.model_id)}
    if job_id is not None:
        found["job_id"] = str(job_id)
    if request.http_request_id is not None:
        found[HTTP_REQUEST_ID] = request.http_request_id
    return structlog.contextvars.bound_contextvars(**found)


def of_job(services: Services, job: UnlearningJob) -> AbstractContextManager[None]:
    """Have the log lines of a block name a job that was just claimed, and its request.

    A job whose lease was lost already has no request any more: then its lines name job and model.
    """
    with services.sessions() as session:
        request = session.scalars(
            select(UnlearningRequest).where(UnlearningRequest.job_id == job.id)
        ).one_or_none()
    if request is None:
        return structlog.contextvars.bound_contextvars(
            job_id=str(job.id), model_id=str(job.model_id)
        )
    return of_request(request, job.id)


def thread(target: Callable[[], None], *, name: str) -> threading.Thread:
    """Return a daemon thread whose log lines name what those of its maker do."""
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(target,), name=name, daemon=True)
