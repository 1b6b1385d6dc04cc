"""The spans of a job: one that belongs to the traces of its requests, and one below it a stage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from sqlalchemy import select

from app.services import Services
from app.tracing import context_of, links_to, logged_trace
from app.unlearning.models import UnlearningJob, UnlearningRequest
from worker.problems import Progress

_NAME = "unlearning"


@contextmanager
def of_job(services: Services, job: UnlearningJob) -> Iterator[Span]:
    """Record a job in the trace that its first request came with, linked to those of the others.

    Where nobody traces, nothing is read.
    """
    if not services.tracing.is_on:
        yield trace.INVALID_SPAN
        return
    with services.sessions() as session:
        requests = session.execute(
            select(
                UnlearningRequest.trace_parent,
                UnlearningRequest.method,
                UnlearningRequest.tier,
                UnlearningRequest.attempts,
            )
            .where(UnlearningRequest.job_id == job.id)
            .order_by(UnlearningRequest.arrival)
        ).all()
    attributes: dict[str, str | int] = {
        "lethe.job_id": str(job.id),
        "lethe.model_id": str(job.model_id),
        "lethe.requests": len(requests),
    }
    if requests:  # none, if the lease was lost already
        first = requests[0]
        attributes |= {
            "lethe.method": first.method,
            "lethe.tier": first.tier,
            "lethe.attempt": first.attempts,
        }
    with (
        services.tracing.span(
            f"{_NAME}.job",
            kind=SpanKind.CONSUMER,
            parent=context_of(requests[0].trace_parent if requests else None),
            links=links_to(one.trace_parent for one in requests[1:]),
            attributes=attributes,
        ) as span,
        logged_trace(span),
    ):
        yield span


def stage(services: Services, name: str) -> AbstractContextManager[Span]:
    """Record a stage that is a block."""
    return services.tracing.span(f"{_NAME}.{name}")


@contextmanager
def stages(services: Services, report: Progress) -> Iterator[Progress]:
    """Yield a progress callback that records the stages it is told of, each until the next begins.

    Args:
        services: The worker's.
        report: Where progress goes on to.
    """
    reported: str | None = None
    with ExitStack() as running:

        def note(stage: str, fraction: float) -> None:
            nonlocal reported
            if stage != reported:
                running.close()
                reported = stage
                span = services.tracing.tracer.start_span(f"{_NAME}.{stage}")
                running.callback(span.end)
            report(stage, fraction)

        yield note
