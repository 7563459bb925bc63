"""Times every page of the console with a full channel.

    python -m benchmarks.console [--jobs 100000] [--events 1000000] [--seconds 1] [--embedded]

Needs the PostgreSQL server of DATABASE_URL; `--embedded` fills SQLite in a temporary folder. The
server is the shipped one with two workers. One channel has all the jobs with their files, events of
half a year, participants, rejected events, deliveries, audit events, schedules and destinations.
Each address of the URLconf that answers a GET, the lists with each filter and the admin's lists
are fetched one after the other: once for `first`, then for `--seconds` each.
"""

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from urllib.parse import urlencode

from benchmarks import harness, results
from benchmarks.console_rows import DAYS, fill
from benchmarks.generator import percentile
from benchmarks.harness import CHANNEL, FIRST_DAY, Process, wait_for_server
from benchmarks.results import Result
from exhaust.processes import web_command

P95_MS, MAX_KB = 300, 200
MOST_VISITS = 50


def main() -> None:
    parser = results.argument_parser("Every page of the console, with a full channel.")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=1, help="Seconds of each page.")
    parser.add_argument("--embedded", action="store_true", help="SQLite in place of PostgreSQL.")
    options = parser.parse_args()
    harness.stop_on_term()
    with harness.temporary_folder() as var:
        if options.embedded:
            run(options, "", harness.environment("", var))
        else:
            with harness.postgresql() as url:
                run(options, url, harness.environment(url, var))


def run(options: Any, url: str, variables: dict[str, str]) -> None:
    variables |= {"EXHAUST_RATE_LIMIT_MULTIPLIER": "0"}
    harness.setup_django(variables)
    harness.migrate()
    start_time = time.monotonic()
    fill(options.jobs, options.events)
    filled = f"{options.jobs:,} jobs, {options.events:,} events in {DAYS} days"
    ground = harness.print_environment(
        url, rows=f"{filled}, filled in {time.monotonic() - start_time:.0f} s"
    )
    cookie, pages = sign_in(), list_pages()
    port = harness.free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with Process(web_command(port), variables, **quiet) as web:
        wait_for_server(port, web)
        records = list(time_pages(port, cookie, pages, options.seconds))
    largest = max(pages.values())
    records.append(Result("largest page", "kB", [largest / 1000], bar=f"<= {MAX_KB}"))
    results.print_report("console", records, ground, options.json)


# The pages ----------------------------------------------------------------------------------------


def sign_in() -> str:
    """Returns the cookie of a superuser."""
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.test import Client

    browser = Client()
    browser.force_login(get_user_model().objects.create_superuser("operator"))
    name = settings.SESSION_COOKIE_NAME
    return f"{name}={browser.cookies[name].value}"


def list_pages() -> dict[str, int]:
    """Returns the addresses to ask, each with no bytes yet."""
    from django.contrib import admin
    from django.urls import NoReverseMatch, reverse

    from exhaust.console.urls import urlpatterns
    from exhaust.models import Delivery, Destination, Job
    from ingest.models import Participant, RejectedEvent, StoredEvent

    job = Job.objects.filter(status="SUCCESS").order_by("-pk")[0]
    destination = Destination.objects.order_by("pk")[0]
    newest = {
        "event": StoredEvent,
        "participant": Participant,
        "rejected-event": RejectedEvent,
    }
    addresses: list[str] = []
    for pattern in urlpatterns:
        values: dict[str, Any] = {
            "channel": CHANNEL, "tag": job.tag, "request_id": job.request_id, "part": 1,
            "name": "schedule-1" if "schedule" in str(pattern.name) else destination.name,
        }  # fmt: skip
        if pattern.name in newest:
            values["pk"] = (
                newest[pattern.name]._default_manager.order_by("-pk").values_list("pk")[0][0]
            )
        if pattern.name == "delivery":
            values["pk"] = Delivery.objects.filter(destination=destination).latest("pk").pk
        wanted = pattern.pattern.converters
        if pattern.name and pattern.name not in _NOT_ASKED and wanted.keys() <= values.keys():
            try:
                path = reverse(
                    f"console:{pattern.name}", kwargs={name: values[name] for name in wanted}
                )
            except NoReverseMatch:
                continue
            addresses.append(path)
            addresses += [
                f"{path}?{query}"
                for query in (*_VARIANTS.get(pattern.name, ()), *list_last(pattern.name))
            ]
    for model in admin.site._registry:
        path = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
        addresses.append(path)
    addresses.append(f"{reverse('admin:exhaust_job_changelist')}?status__exact=FAILED&q=april")
    return dict.fromkeys(addresses, 0)


# posts only, files, and what changes something
_NOT_ASKED = {"sign-out", "download", "download-audit", "download-rejected"}
_YEAR = f"startDate={datetime.now(UTC).date() - timedelta(days=DAYS)}"
_VARIANTS: dict[str, tuple[str, ...]] = {
    "exports": (
        *(f"status={status}" for status in ("SUBMITTED", "PROCESSING", "SUCCESS", "FAILED")),
        "status=CANCELLED", "limit=100", "text=april", "text=nothing-like-it", "text=bot-000123",
        "tagPrefix=adhoc-1", "tagPrefix=nothing", "dataset=uci-survey-exhaust", "status=FAILED"
        "&dataset=uci-private-exhaust&tagPrefix=april", f"requestedFrom={FIRST_DAY}",
        "requestedTo=2025-01-01",
    ),
    "export": ("tab=columns", "tab=api", "tab=downloads"),
    "charts": (
        "preset=today", "compare=1", "dayOf=event", f"dayOf=event&compare=1&{_YEAR}", _YEAR,
        "csv=events_by_source", "csv=time_to_export",
    ),
    "conversations": ("q=lunch", "q=nothing"),
    "conversation": ("id=bot-000000", f"id=bot-000000&{_YEAR}", "id=bot-000007"),
    "search-conversations": ("q=lunch",),
    "new-export": ("dataset=uci-response-exhaust", "dataset=uci-survey-exhaust"),
    "events": (
        "source=telemetry", "source=desk", "type=ASSESS", "type=nothing", "device=device-7",
        "device=nobody", "live=1",
    ),
    "rejected-events": ("reason=invalid_time", "reason=nothing"),
    "audit": (
        "action=file", "actor=person-7", "actor=nobody", "subject=nothing", f"from={FIRST_DAY}",
        f"to={FIRST_DAY}",
    ),
    "new-destination": ("kind=webhook", "kind=sftp"),
}  # fmt: skip


def list_last(name: str) -> Iterator[str]:
    """Yields the query of the last page of a list."""
    from exhaust.console.permissions import ChannelContext
    from exhaust.feed import cursor
    from exhaust.jobs import queries
    from exhaust.models import Job
    from ingest.models import AuditEvent, Channel, StoredEvent

    channel_id = Channel.objects.get(identifier=CHANNEL).pk
    token = ""
    if name == "exports":
        ctx = ChannelContext(
            channel_id, CHANNEL, frozenset(("submit_response", "submit_private")), ""
        )
        job = Job.objects.order_by("submitted_at")[20]
        filters = queries.Filters(channel_id, ctx.readable)
        token = queries.encode_cursor(filters, job.submitted_at, job.pk)
    elif name == "events":
        event = StoredEvent.objects.order_by("pk")[20]
        token = cursor.encode([event.xid, event.pk], ["newest", channel_id, {}])
    elif name == "rejected-events":
        token = cursor.encode([20], ["rejected", channel_id, ""])
    elif name == "participants":
        token = cursor.encode([20], ["participants", channel_id, ""])
    elif name == "audit":
        entry = AuditEvent.objects.order_by("recorded_at")[20]
        token = cursor.encode([entry.recorded_at.isoformat(), entry.pk], ["audit", CHANNEL, {}])
    if token:
        yield urlencode({"cursor": token})


def count_statements(cookie: str) -> Callable[[str], int]:
    """Returns a function that asks a page in this process and counts its statements.

    Those that bypass Django's cursors are not counted.
    """
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    browser = Client(headers={"host": "127.0.0.1"})
    name, _, value = cookie.partition("=")
    browser.cookies[name] = value

    def count(path: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            browser.get(path)
        return len(captured)

    return count


def time_pages(port: int, cookie: str, pages: dict[str, int], seconds: float) -> Iterator[Result]:
    """Asks each page; sets its bytes. Those that take no GET are left out."""
    count = count_statements(cookie)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path in list(pages):
        durations: list[float] = []
        started = time.perf_counter()
        status = 0
        while not durations or (
            time.perf_counter() - started < seconds and len(durations) < MOST_VISITS
        ):
            begun = time.perf_counter()
            connection.request("GET", path, headers={"Cookie": cookie, "Host": "127.0.0.1"})
            answer = connection.getresponse()
            body = answer.read()
            durations.append((time.perf_counter() - begun) * 1000)
            status, pages[path] = answer.status, len(body)
            if status != 200:
                break
        if status != 200:
            if status != 405:
                print(f"  {path}: {status}", file=sys.stderr)
            pages[path] = 0
            continue
        first, *others = durations
        ordered = sorted(others or durations)
        note = (
            f"first {first:.0f} ms, p50 {median(ordered):.0f}, {pages[path] / 1000:.0f} kB,"
            f" {count(path)} queries"
        )
        name = path.replace(f"/console/{CHANNEL}/", "").partition("cursor=")
        work = f"{name[0] or 'home'}{name[1] and 'cursor=last'}"
        p95 = percentile(ordered, 0.95)
        print(f"  {work}: {p95:.0f} ms ({note})", file=sys.stderr, flush=True)
        yield Result(work, "ms", [p95], bar=f"<= {P95_MS}", note=note)


if __name__ == "__main__":
    main()
