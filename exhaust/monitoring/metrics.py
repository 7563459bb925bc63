"""`GET /metrics` for Prometheus, and the same from a worker's own port."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db.models import Case, Count, Sum, Value, When
from django.db.models.functions import Now
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

import exhaust.metrics
import ingest.metrics
from exhaust.archive import objects, runs
from exhaust.datasets import DATASETS
from exhaust.delivery import states
from exhaust.jobs import transitions, wakeup
from exhaust.models import ArchiveFile, Delivery, Destination, Job, Schedule
from exhaust.monitoring import health
from ingest.adapters import ADAPTERS
from ingest.auth import keys
from ingest.derive import deriver
from ingest.http import problems
from ingest.http.schema import PROBLEM, Problem, extend_schema
from ingest.models import ApiKey, Channel, DerivationState


@extend_schema(
    "metrics",
    {
        (200, "text/plain"): {
            "type": "string",
            "description": "All metrics.",
            "examples": ["# TYPE exhaust_events_total counter\n"],
        },
        (401, "text/plain"): {"type": "string", "description": "The token is not the setting's."},
        (404, PROBLEM): Problem,
        "4XX": None,
    },
    methods=["GET"],
    auth=[{"metrics": []}],
)
def serve_metrics(request: HttpRequest) -> HttpResponse:
    """Get the metrics for Prometheus.

    Send `Authorization: Bearer EXHAUST_METRICS_TOKEN`. Without that setting it is 404.
    """
    if not settings.EXHAUST_METRICS_TOKEN:
        return problems.build_response(404, "not_found", "There is nothing at this address.")
    if not health.has_metrics_token(request):
        response = HttpResponse(
            "Send EXHAUST_METRICS_TOKEN as Authorization: Bearer.\n", "text/plain", 401
        )
        response["WWW-Authenticate"] = "Bearer"
        return response
    return HttpResponse(generate_latest(_build_registry(has_rows=True)), CONTENT_TYPE_LATEST)


def start_metrics_server() -> None:
    """Serves a worker's counts on `EXHAUST_METRICS_PORT`, if it is set."""
    if settings.EXHAUST_METRICS_PORT:
        start_http_server(settings.EXHAUST_METRICS_PORT, registry=_build_registry(has_rows=False))


def _build_registry(*, has_rows: bool) -> CollectorRegistry:
    """What the processes that share the folder have counted.

    A worker with a port has a folder of its own (`config/settings.py`), so each count is shown
    once.
    """
    exhaust.metrics.begin_counts([*DATASETS, "own"])
    ingest.metrics.begin_counts(ADAPTERS)
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    if has_rows:
        registry.register(DatabaseCollector())
    return registry


class DatabaseCollector(Collector):
    """Read from the database at each look: the same in every process."""

    def collect(self) -> Iterator[Metric]:
        unfinished = GaugeMetricFamily(
            "exhaust_jobs_unfinished", "Jobs not ended.", labels=["status", "priority"]
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
                unfinished.add_metric([status.value, priority.name.lower()], count)
        yield unfinished
        yield GaugeMetricFamily(
            "exhaust_queue_wait_seconds",
            "How long the job that waits longest has waited for a worker.",
            value=transitions.queue_wait().total_seconds(),
        )
        age = wakeup.fetch_sweep_age()
        yield GaugeMetricFamily(
            "exhaust_sweep_age_seconds",
            "How long ago a worker looked for due work.",
            value=age.total_seconds() if age is not None else 0.0,
        )
        health_of_parts = GaugeMetricFamily(
            "exhaust_part_up", "1 for a part that /readyz calls ok.", labels=["part"]
        )
        state = health.read_state(health.SERVER_CHECKS)
        for check in health.SERVER_CHECKS:
            health_of_parts.add_metric([check.name], float(state.get(check.name) == "ok"))
        yield health_of_parts
        failing = GaugeMetricFamily(
            "exhaust_schedules_failing",
            "Schedules whose last slot submitted no request.",
            labels=["channel"],
        )
        rejected = Schedule.objects.exclude(last_error="").values_list("channel__identifier")
        for channel, count in rejected.annotate(count=Count("pk")).order_by("channel__identifier"):
            failing.add_metric([channel], count)
        yield failing
        ending = GaugeMetricFamily(
            "exhaust_keys_ending",
            "API keys in use that end within two weeks.",
            labels=["channel"],
        )
        of_channels = keys.filter_ending_keys(ApiKey.objects.all()).values_list(
            "channels__identifier"
        )
        for channel, count in of_channels.annotate(count=Count("pk")).order_by(
            "channels__identifier"
        ):
            ending.add_metric([channel], count)
        yield ending
        feed = GaugeMetricFamily(
            "exhaust_session_lag_seconds",
            "Age of the oldest event not yet in sessions and users.",
            labels=["channel"],
        )
        for pk, channel in DerivationState.objects.values_list("pk", "channel__identifier"):
            feed.add_metric([channel], deriver.measure_lag(pk).age.total_seconds())
        yield feed
        lag = GaugeMetricFamily(
            "exhaust_destination_lag_seconds",
            "Age of the oldest document not yet taken.",
            labels=["channel", "destination"],
        )
        disabled = GaugeMetricFamily(
            "exhaust_destination_disabled",
            "1 for a destination that is switched off or fails so often that it is only probed.",
            labels=["channel", "destination"],
        )
        rows = list(Destination.objects.select_related("channel"))
        for destination, waiting in zip(rows, states.measure_lags(rows), strict=True):
            names = [destination.channel.identifier, destination.name]
            lag.add_metric(names, waiting.seconds)
            disabled.add_metric(
                names,
                float(states.determine_state(destination) in ("disabled", "circuit_open")),
            )
        yield lag
        yield disabled
        yield from _collect_archive()
        dead = GaugeMetricFamily(
            "exhaust_deliveries_dead",
            "Callbacks, and exports to a destination, that were given up within a day.",
            labels=["channel", "kind", "destination"],
        )
        for *names, count in _count_dead_deliveries():
            dead.add_metric(names, count)
        yield dead


def _collect_archive() -> Iterator[Metric]:
    rows = GaugeMetricFamily(
        "exhaust_archive_rows", "Rows in archived files.", labels=["channel", "table"]
    )
    sizes = GaugeMetricFamily(
        "exhaust_archive_bytes", "Bytes of archived files.", labels=["channel", "table"]
    )
    files = GaugeMetricFamily(
        "exhaust_archive_files", "Archived files.", labels=["channel", "table"]
    )
    current = ArchiveFile.objects.filter(archive_until=None)
    by_table = current.values_list("channel__identifier", "table").order_by(
        "channel__identifier", "table"
    )
    totals = by_table.annotate(Sum("row_count"), Sum("byte_count"), Count("pk"))
    for channel, table, *sums in totals:
        for family, value in zip((rows, sizes, files), sums, strict=True):
            family.add_metric([channel, table], value)
    yield rows
    yield sizes
    yield files
    lag = GaugeMetricFamily(
        "exhaust_archive_lag_seconds",
        "For how long the oldest event that is not archived has been due.",
        labels=["channel"],
    )
    channels = Channel.objects.order_by("pk") if objects.is_enabled() else Channel.objects.none()
    for pk, channel in channels.values_list("pk", "identifier"):
        lag.add_metric([channel], runs.measure_lag(pk).total_seconds())
    yield lag


def _count_dead_deliveries() -> list[tuple[Any, ...]]:
    """Channel, kind, destination and number; the destination of a callback is empty."""
    rows = Delivery.objects.filter(
        kind__in=(Delivery.Kind.CALLBACK, Delivery.Kind.FILES),
        status=Delivery.Status.DEAD,
        ended_at__gt=Now() - timedelta(days=1),
    )
    destination = Case(When(kind=Delivery.Kind.FILES, then="job__deliver_to"), default=Value(""))
    names = ("channel__identifier", "kind", "to")
    counted: Any = rows.annotate(to=destination).values(*names).annotate(count=Count("pk"))
    return list(counted.order_by(*names).values_list(*names, "count"))
