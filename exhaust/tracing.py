"""Traces by OpenTelemetry, from a request's submission to its file. Off by default.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns them on, and the SDK's other `OTEL_…` variables apply. What
leaves holds names of routes and operations, and ids of ours; no address, statement or message.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.conf import settings

ALLOWED_ATTRIBUTES = {
    "aws.region", "celery.action", "celery.state", "celery.task_name", "db.name", "db.system",
    "exception.type", "exhaust.attempt", "exhaust.channel", "exhaust.dataset", "exhaust.job",
    "exhaust.request_id", "http.method", "http.request.method", "http.response.status_code",
    "http.route", "http.status_code", "messaging.destination", "rpc.method", "rpc.service",
    "rpc.system",
}  # fmt: skip
UNTRACED_PATHS = "/healthz$,/readyz$,/metrics$"
_MIDDLEWARE = "ingest.http.middleware.HostMiddleware"  # ours is next: it asks for the host
_provider: Any = None  # None while tracing is off


def start_tracing(exporter: Any = None) -> None:
    """Turns tracing on in this process and its children, where the settings name a collector.

    A test gives its own exporter, which gets each span as soon as it ends.
    """
    global _provider
    if _provider is not None or not (exporter or settings.OTEL_EXPORTER_OTLP_ENDPOINT):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "exhaust")
    _provider = TracerProvider()
    _provider.sampler = _make_sampler(_provider.sampler)
    _provider.add_span_processor(
        SimpleSpanProcessor(_make_exporter(exporter))
        if exporter
        else BatchSpanProcessor(_make_exporter(OTLPSpanExporter()))
    )
    for instrumentor in _make_instrumentors():  # each takes the options that it knows
        instrumentor.instrument(
            tracer_provider=_provider,
            excluded_urls=UNTRACED_PATHS,
            middleware_position=settings.MIDDLEWARE.index(_MIDDLEWARE) + 1,
        )


def stop_tracing() -> None:
    """Turns tracing off, and sends what is left."""
    global _provider
    for instrumentor in _make_instrumentors():
        instrumentor.uninstrument()
    _provider.shutdown()
    _provider = None


def _make_instrumentors() -> list[Any]:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

    kinds: list[Any] = [CeleryInstrumentor, DjangoInstrumentor, PsycopgInstrumentor]
    if settings.S3_BUCKET:
        from opentelemetry.instrumentation.botocore import BotocoreInstrumentor

        kinds.append(BotocoreInstrumentor)
    return [kind() for kind in kinds]


def current_traceparent() -> str:
    """Returns the current span as W3C's `traceparent`; "" while tracing is off."""
    if _provider is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def continue_trace(name: str, traceparent: str, **attributes: Any) -> Iterator[None]:
    """Makes what happens within a span of the trace that `traceparent` names.

    The span is linked to the current one: a worker's message is not of the job that it claims.
    """
    if _provider is None:
        yield
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    current = get_current_span().get_span_context()
    with _provider.get_tracer("exhaust").start_as_current_span(
        name,
        context=TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context()),
        links=[Link(current)] if current.is_valid else [],
        attributes={f"exhaust.{name}": value for name, value in attributes.items()},
    ):
        yield


def _make_sampler(inner: Any) -> Any:
    """Returns the sampler without statements and calls that are of no trace, as the poller's."""
    from opentelemetry.sdk.trace import sampling
    from opentelemetry.trace import SpanKind, get_current_span

    class WithoutLoneCalls(sampling.Sampler):
        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, kind: Any = None, *more: Any,
            **others: Any,
        ) -> Any:  # fmt: skip
            is_lone = not get_current_span(parent_context).get_span_context().is_valid
            if is_lone and kind is SpanKind.CLIENT:
                return sampling.SamplingResult(sampling.Decision.DROP)
            return inner.should_sample(parent_context, trace_id, name, kind, *more, **others)

        def get_description(self) -> str:
            return f"WithoutLoneCalls({inner.get_description()})"

    return WithoutLoneCalls()


def _make_exporter(inner: Any) -> Any:
    """Returns the exporter for spans without what may be somebody's."""
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Status

    def keep(attributes: Any) -> dict[str, Any]:
        return {name: attributes[name] for name in attributes or () if name in ALLOWED_ATTRIBUTES}

    def clean(span: ReadableSpan) -> ReadableSpan:
        events = [Event(each.name, keep(each.attributes), each.timestamp) for each in span.events]
        return ReadableSpan(
            name=span.name,
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=keep(span.attributes),
            events=events,
            links=span.links,
            kind=span.kind,
            status=Status(span.status.status_code),  # its description is an error's message
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    class CleanExporter(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> Any:
            return inner.export([clean(span) for span in spans])

        def shutdown(self) -> None:
            inner.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return bool(inner.force_flush(timeout_millis))

    return CleanExporter()
