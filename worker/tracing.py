"""The spans of a job: one that belongs to the traces of its requests, and one below it a stage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind
from sqlalchemy import select

from app.services import Services
from app.tracing import Tracing, context_of, links_to, logged_trace
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


class Stages:
    """Records the stages that a computation reports, each until the next begins.

    Example:
        with Stages(services.tracing, heartbeat.report) as stages:
            compute(progress=stages.report)
    """

    def __init__(self, tracing: Tracing, report: Progress) -> None:
        self._tracing = tracing
        self._report = report
        self._stage: str | None = None
        self._span: Span | None = None

    def report(self, stage: str, fraction: float) -> None:
        """Take the progress of the computation, and hand it on."""
        if stage != self._stage:
            self._end()
            self._stage = stage
            self._span = self._tracing.tracer.start_span(f"{_NAME}.{stage}")
        self._report(stage, fraction)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None
