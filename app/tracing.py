"""Traces for OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT says where to send them.

One trace leads from an HTTP request through the unlearning request that it made to the job that
computed it. Attributes name routes, models, tiers and outcomes: never what a client wrote, never a
request's id, since that leads to a person. Nothing waits for the collector, and what it does not
take is dropped.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Self

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# An export that takes longer is given up; a process that ends waits for the last one.
EXPORT_SECONDS = 5.0

_W3C = TraceContextTextMapPropagator()
_PARENT = "traceparent"

Attributes = Mapping[str, str | int | float | bool]


class TracingUnavailableError(ValueError):
    """Traces are asked for, and what sends them is not installed."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """Makes a process's spans; without a provider none of them is recorded."""

    tracer: Tracer = field(default_factory=lambda: trace.NoOpTracerProvider().get_tracer("lethe"))
    provider: "TracerProvider | None" = None

    @classmethod
    def start(cls, settings: Settings, service: str) -> Self:
        """Return what the settings ask for: spans sent as those of `service`, or none.

        Raises:
            TracingUnavailableError: The extra `otel` is not installed.
        """
        endpoint = settings.otel_exporter_otlp_endpoint
        if endpoint is None:
            return cls()
        try:
            provider = _make_provider(endpoint, settings.traces_sample_ratio, service)
        except ImportError as error:
            raise TracingUnavailableError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, and the OpenTelemetry SDK is not installed:"
                " `pip install 'lethe[otel]'`, or leave the setting empty"
            ) from error
        return cls(provider.get_tracer("lethe", metadata.version("lethe")), provider)

    @property
    def is_on(self) -> bool:
        """Whether anything is recorded."""
        return self.provider is not None

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: Context | None = None,
        links: Iterable[Link] = (),
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """Record a block. An error is told by its type alone: its text may quote samples."""
        with self.tracer.start_as_current_span(
            name,
            context=parent,
            kind=kind,
            links=list(links),
            attributes=dict(attributes or {}),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                mark_failed(span, error)
                raise

    def close(self) -> None:
        """Send what is left."""
        if self.provider is not None:
            self.provider.shutdown()


def _make_provider(endpoint: str, ratio: float, service: str) -> "TracerProvider":
    # Here, so that a process without traces loads none of it.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    share = TraceIdRatioBased(ratio)
    provider = TracerProvider(
        # A client's word that its trace is sampled is not enough: clients would choose the load.
        sampler=ParentBased(root=share, remote_parent_sampled=share),
        resource=Resource.create(
            {"service.name": service, "service.version": metadata.version("lethe")}
        ),
        # `Services.close` and the worker's signal end it; an exit hook would do so a second time.
        shutdown_on_exit=False,
    )
    url = f"{endpoint.removesuffix('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def mark_failed(span: Span, error: BaseException | None = None) -> None:
    """Say that what a span records went wrong, and by which type of error."""
    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)


def current_trace_parent() -> str | None:
    """Return the trace that this runs in, as W3C `traceparent` writes it; None outside of any."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get(_PARENT)


def context_of(trace_parent: str | None) -> Context:
    """Return the context that a `traceparent` names; an empty one of what is none."""
    return _W3C.extract({} if trace_parent is None else {_PARENT: trace_parent}, Context())


def links_to(trace_parents: Iterable[str | None]) -> list[Link]:
    """Return links to other traces; what names none is left out."""
    found = (trace.get_current_span(context_of(one)).get_span_context() for one in trace_parents)
    return [Link(context) for context in found if context.is_valid]


@contextmanager
def logged_trace(span: Span) -> Iterator[None]:
    """Have log lines of a block name the trace of a span, so that each leads to the other."""
    found = span.get_span_context()
    if not found.is_valid:
        yield
        return
    with structlog.contextvars.bound_contextvars(trace_id=trace.format_trace_id(found.trace_id)):
        yield
