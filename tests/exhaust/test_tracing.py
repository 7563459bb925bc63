"""Traces: one from the submission to the file, and nothing of somebody's in it."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client

from exhaust import tracing
from exhaust.jobs import attempt, transitions
from exhaust.models import Job
from tests.conftest import bearer, make_key
from tests.exhaust.api.test_api import post, submit_body
from tests.exhaust.factories import make_claimed, make_job

export = pytest.importorskip(
    "opentelemetry.sdk.trace.export.in_memory_span_exporter",
    reason="needs the extra otel: pip install '.[otel]'",
)
pytest.importorskip("opentelemetry.instrumentation.django")

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[Any]:
    """The spans that have left."""
    exporter = export.InMemorySpanExporter()
    tracing.start_tracing(exporter)
    yield exporter
    tracing.stop_tracing()
    assert "opentelemetry" not in str(settings.MIDDLEWARE)


@pytest.mark.django_db(transaction=True)
def test_one_trace_from_submit_to_file(spans: Any) -> None:
    client = Client(headers=bearer(make_key("export:response"), traceparent=CALLER))
    assert post(client, submit_body()).status_code == 200
    job = transitions.claim(Job.objects.get().pk)
    assert job is not None
    assert attempt.run(job)

    finished = {span.name: span for span in spans.get_finished_spans()}
    server, made = finished["POST dataset/v1/request/submit"], finished["attempt"]
    assert f"{server.context.trace_id:032x}" == CALLER[3:35]
    assert made.context.trace_id == server.context.trace_id
    assert made.parent.span_id == server.context.span_id
    assert dict(made.attributes) == {
        "exhaust.job": job.pk,
        "exhaust.attempt": 1,
        "exhaust.channel": "ORG_001",
        "exhaust.dataset": job.dataset,
        "exhaust.request_id": job.request_id,
    }
    assert {span.context.trace_id for span in finished.values()} == {server.context.trace_id}


@pytest.mark.django_db
def test_spans_hold_nothing_of_a_person(spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Client().get("/dataset/v1/download/a-link-token?user=asha", headers={"User-Agent": "asha"})

    def fail(*_: Any) -> None:
        raise ValueError("+919876501234")

    monkeypatch.setattr(attempt, "_run", fail)
    with pytest.raises(ValueError, match="9198"):
        attempt.run(make_claimed())

    text = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "dataset/v1/download/<str:token>" in text
    assert '"exception.type": "ValueError"' in text
    for secret in ("a-link-token", "asha", "9876501234", "127.0.0.1"):
        assert secret not in text


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_statements_are_spans_of_a_trace_only(spans: Any) -> None:
    options = {**connection.settings_dict["OPTIONS"]}
    options.pop("pool")
    connection.settings_dict, before = (
        {**connection.settings_dict, "OPTIONS": options}, connection.settings_dict,
    )  # fmt: skip
    connection.close()
    try:
        job = make_job()
        assert spans.get_finished_spans() == ()  # as those of a poller
        with tracing.continue_trace("attempt", CALLER):
            Job.objects.get(pk=job.pk)
    finally:
        connection.close()
        connection.settings_dict = before
    statement, made = spans.get_finished_spans()
    assert statement.name == "SELECT"
    assert statement.parent.span_id == made.context.span_id
    assert "db.statement" not in statement.attributes


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_of_any_host_are_untraced(path: str, spans: Any) -> None:
    assert Client(HTTP_HOST="10.0.3.17:8000").get(path).status_code in {200, 404}
    assert Client(HTTP_HOST="evil.example").get("/console/").status_code == 400
    assert spans.get_finished_spans() == ()


@pytest.mark.django_db
def test_tracing_is_off_by_default() -> None:
    assert tracing.current_traceparent() == ""
    with tracing.continue_trace("attempt", CALLER):
        assert tracing.current_traceparent() == ""
    assert make_job().traceparent == ""
