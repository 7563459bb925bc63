"""`GET /metrics` for Prometheus, and the same from a worker's own port."""

import os
from collections.abc import Iterator
from hmac import compare_digest

from django.conf import settings
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    generate_latest,
    multiprocess,
    start_http_server,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exhaust.delivery import destinations
from exhaust.jobs import transitions
from exhaust.models import Job, Sink
from exhaust.monitoring import health
from ingest.derive import deriver
from ingest.models import Deriver


def shown(request: HttpRequest) -> HttpResponse:
    """`GET /metrics` with `Authorization: Bearer METRICS_TOKEN`; without such a setting 404."""
    token = settings.METRICS_TOKEN
    if not token:
        return health.not_found(request, LookupError())
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not compare_digest(given.strip().encode(), token.encode()):
        answer = HttpResponse("Send METRICS_TOKEN as Authorization: Bearer.\n", "text/plain", 401)
        answer["WWW-Authenticate"] = "Bearer"
        return answer
    return HttpResponse(generate_latest(_all(rows=True)), CONTENT_TYPE_LATEST)


def serve() -> None:
    """A worker's counts on `METRICS_PORT`, if one is named. What rows say, the web tells."""
    if settings.METRICS_PORT:
        start_http_server(settings.METRICS_PORT, registry=_all(rows=False))


def _all(*, rows: bool) -> CollectorRegistry:
    """What all processes that share the folder have counted."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    if rows:
        registry.register(Rows())
    return registry


class Rows(Collector):
    """Read from the database at each look: the same in every process."""

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "exhaust_jobs_open", "Jobs not ended.", labels=["status", "priority"]
        )
        open_jobs = (
            Job.objects.filter(status__in=(Job.Status.SUBMITTED, Job.Status.PROCESSING))
            .order_by()
            .values_list("status", "priority")
            .annotate(count=Count("pk"))
        )
        counts = {(status, priority): count for status, priority, count in open_jobs}
        for status in (Job.Status.SUBMITTED, Job.Status.PROCESSING):
            for priority in Job.Priority:
                count = counts.get((status.value, priority.value), 0)
                waiting.add_metric([status.value, priority.name.lower()], count)
        yield waiting
        yield GaugeMetricFamily(
            "exhaust_oldest_due_job_seconds",
            "How long the job that waits longest has waited for a worker.",
            value=transitions.oldest_due().total_seconds(),
        )
        feed = GaugeMetricFamily(
            "exhaust_feed_lag_seconds",
            "Age of the oldest event not yet in sessions and users.",
            labels=["channel"],
        )
        for pk, channel in Deriver.objects.values_list("pk", "channel__identifier"):
            feed.add_metric([channel], deriver.lag(pk).age.total_seconds())
        yield feed
        seconds = GaugeMetricFamily(
            "exhaust_sink_lag_seconds",
            "Age of the oldest document not yet taken.",
            labels=["channel", "sink"],
        )
        stopped = GaugeMetricFamily(
            "exhaust_sink_stopped",
            "1 for a sink that is switched off or fails so often that it is only probed.",
            labels=["channel", "sink"],
        )
        for sink in Sink.objects.select_related("channel"):
            names = [sink.channel.identifier, sink.name]
            seconds.add_metric(names, destinations.lag(sink).seconds)
            stopped.add_metric(names, float(destinations.state(sink) in ("off", "open")))
        yield seconds
        yield stopped
