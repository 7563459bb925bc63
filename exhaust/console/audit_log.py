"""The audit log of a channel: filter by days, actor, action and target; download."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import reverse
from django.utils.translation import gettext as _

from exhaust.api.audit import render_csv
from exhaust.console.participants import PER_PAGE
from exhaust.console.permissions import ChannelContext, clean_params, render_page, requires
from exhaust.feed import cursor
from ingest.audit import reads
from ingest.auth.roles import Permission
from ingest.db.time_limit import limit_query_seconds
from ingest.events import RequestError
from ingest.models import AuditEvent

MAX_DOWNLOADED = 10_000  # entries
SEARCH_SECONDS = 2.0
NEWEST_ENTRIES = 500  # whose actors and actions the form offers
_FILTERS = ("from", "to", "action", "actor", "subject")
# the page of an action's target: its URL name, the argument that names it, and who may open it
_TARGETS: dict[str, tuple[str, str, Permission]] = {
    "destination": ("destination", "name", "administer"),
    "schedule": ("schedule", "name", "administer"),
}
_SUBMITTED = ("job", "link", "file")


@requires("audit")
def list_audit_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the audit events of the channel, newest first. The log counts the entries read."""
    filters, error = _read_filters(request)
    query = ["audit", ctx.channel, filters]
    rows = _select_events(ctx, filters)
    page: list[AuditEvent] = []
    next_cursor = ""
    try:
        with limit_query_seconds(SEARCH_SECONDS):  # no index finds an actor
            page, next_cursor = _paginate(rows, request.GET.get("cursor", ""), query)
    except RequestError:
        page, next_cursor = _paginate(rows, "", query)
    except TimeoutError:
        error = _("Reading took too long. Choose fewer days.")
    reads.count_read("audit.viewed", ctx.channel, "console", len(page))
    newest = list(_select_events(ctx, {})[:NEWEST_ENTRIES].values_list("actor", "action"))
    context = {
        "events": [(event, find_target(ctx, event)) for event in page],
        "next_cursor": next_cursor,
        "params": filters,
        "error": error,
        "query_string": urlencode(filters),
        "actors": sorted({actor for actor, _action in newest}),
        "actions": sorted({action for _actor, action in newest}),
        "max_downloaded": MAX_DOWNLOADED,
    }
    return render_page(request, ctx, "audit_log.html", context, 400 if error else 200)


@requires("audit")
def download_audit_log(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Downloads up to `MAX_DOWNLOADED` entries as CSV, in the API's columns, newest first."""
    filters, error = _read_filters(request)
    if error:
        return list_audit_events(request, channel=ctx.channel)
    try:
        with limit_query_seconds(SEARCH_SECONDS):
            rows = list(_select_events(ctx, filters)[:MAX_DOWNLOADED])
    except TimeoutError:
        return list_audit_events(request, channel=ctx.channel)
    reads.count_read("audit.viewed", ctx.channel, "console", len(rows))
    response = StreamingHttpResponse(render_csv(rows), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="audit.csv"'
    return response  # type: ignore[return-value]


def _read_filters(request: HttpRequest) -> tuple[dict[str, str], str]:
    """Returns the filters that are set, and an error about the days or ''."""
    params = clean_params(request.GET)
    filters = {name: params[name].strip() for name in _FILTERS if params.get(name, "").strip()}
    error = ""
    for name in ("from", "to"):
        try:
            day = date.fromisoformat(filters.get(name, "2000-01-01"))
        except ValueError:
            day = date.min
        if not 1970 <= day.year <= 9000:
            del filters[name]
            error = _("Enter days as YYYY-MM-DD.")
    return filters, error


def _select_events(ctx: ChannelContext, filters: dict[str, str]) -> QuerySet[AuditEvent]:
    """Returns the channel's events, newest first. Days are in UTC and both are included."""
    rows = AuditEvent.objects.filter(channel=ctx.channel).order_by("-recorded_at", "-id")
    if "from" in filters:
        first = datetime.combine(date.fromisoformat(filters["from"]), time.min, UTC)
        rows = rows.filter(recorded_at__gte=first)
    if "to" in filters:
        last = datetime.combine(date.fromisoformat(filters["to"]), time.min, UTC)
        rows = rows.filter(recorded_at__lt=last + timedelta(days=1))
    if "action" in filters:
        rows = rows.filter(action__startswith=filters["action"])
    return rows.filter(**{name: filters[name] for name in ("actor", "subject") if name in filters})


def _paginate(
    rows: QuerySet[AuditEvent], after: str, query: list[Any]
) -> tuple[list[AuditEvent], str]:
    """Returns a page and the cursor of the next one, or ''; raises `RequestError`."""
    if after:
        recorded_at, pk = cursor.decode(after, query)
        last = datetime.fromisoformat(recorded_at)
        is_older = Q(recorded_at__lt=last) | Q(recorded_at=last, id__lt=pk)
        rows = rows.filter(is_older, recorded_at__lte=last)
    page = list(rows[: PER_PAGE + 1])
    if len(page) <= PER_PAGE:
        return page, ""
    last_event = page[PER_PAGE - 1]
    position = [last_event.recorded_at.isoformat(), last_event.pk]
    return page[:PER_PAGE], cursor.encode(position, query)


def find_target(ctx: ChannelContext, event: AuditEvent) -> str:
    """Returns the page of what an event is about; '' for none, or one the user may not open."""
    kind, _dot, act = event.action.partition(".")
    subject = event.subject
    if not subject or act == "deleted":
        return ""
    if kind in _TARGETS:
        name, argument, permission = _TARGETS[kind]
        if ctx.has_any(permission):
            return reverse(f"console:{name}", kwargs={"channel": ctx.channel, argument: subject})
    if kind in _SUBMITTED and ctx.can_submit:
        return f"{reverse('console:exports', args=[ctx.channel])}?{urlencode({'text': subject})}"
    if kind == "key" and ctx.is_administrator:
        return reverse("console:keys", args=[ctx.channel])
    if kind == "dataset" and ctx.can_submit:
        return reverse("console:datasets", args=[ctx.channel])
    if kind in ("rejected", "rejected_event") and subject.isdecimal() and act != "dismissed":
        return reverse("console:rejected-event", args=[ctx.channel, subject[:18]])
    number = subject.removeprefix("participant ")
    if kind == "participants" and number.isdecimal() and ctx.has_any("submit_private"):
        return reverse("console:participant", args=[ctx.channel, number[:18]])
    return ""
