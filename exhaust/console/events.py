"""The event explorer: did my data arrive? The newest events of a channel, and one as stored."""

import json
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from exhaust.console.participants import mask_text
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.sentences import translate_sentence
from exhaust.feed import cursor, documents
from ingest.adapters import ADAPTERS, client_session_sources
from ingest.adapters.participants.parser import SOURCE as PARTICIPANTS
from ingest.audit import reads
from ingest.db.time_limit import limit_query_seconds
from ingest.events import RequestError
from ingest.feed import reader
from ingest.feed.values import FeedPosition
from ingest.models import StoredEvent

PER_PAGE = 50
TIMEOUT_SECONDS = 3.0
_FILTERS = ("source", "type", "device")


@requires(*VIEW_PERMISSIONS)
def list_events(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists the newest events; the audit log counts them as it counts pulls."""
    params = clean_params(request.GET)
    filters = {name: params[name].strip() for name in _FILTERS if params.get(name, "").strip()}
    can_see_people = ctx.has_any("submit_private")
    error = ""
    if "device" in filters and not can_see_people:
        del filters["device"]
        error = _("You need the “Export personal data” permission to search by device ID.")
    rows: list[StoredEvent] = []
    next_cursor = ""
    try:
        with limit_query_seconds(TIMEOUT_SECONDS):
            rows, next_cursor = fetch_newest(ctx.channel_id, filters, params.get("cursor", ""))
    except TimeoutError:
        error = _("The search took too long. Remove a filter.")
    except RequestError:
        error = _("This page of the list has expired. You see the newest events.")
        rows, next_cursor = fetch_newest(ctx.channel_id, filters, "")
    is_live = params.get("live") == "1" and not params.get("cursor")
    # who looks on reads the new events only; the position is ours, so nobody reads uncounted
    query = ["seen", ctx.channel_id, ctx.username, filters]
    shown_before = _decode_seen(params.get("seen", ""), query) if is_live else (0, 0)
    new_rows = [row for row in rows if (row.xid, row.pk) > shown_before]
    reads.count_read("feed.pulled", ctx.channel, "events", len(new_rows))
    newest = (rows[0].xid, rows[0].pk) if rows else shown_before
    seen = cursor.encode(list(newest), query)
    return render_page(
        request,
        ctx,
        "events.html",
        {
            "events": [(row, row.device_id if can_see_people else mask_text(row.device_id))
                       for row in rows],
            "next_cursor": next_cursor,
            "filters": filters,
            "query_string": urlencode(filters),
            "live_query": urlencode({**filters, "live": 1, "seen": seen}),
            "is_live": is_live,
            "can_see_people": can_see_people,
            "sources": [
                (name, translate_sentence(ADAPTERS[name].title))
                for name in ADAPTERS
                if name != PARTICIPANTS
            ],
            "types": sorted({row.type for row in rows}),
            "error": error,
            "window": reader.WINDOW_ROWS,
        },
    )  # fmt: skip


def _decode_seen(token: str, query: list[Any]) -> tuple[int, int]:
    """Returns the position of the newest event that the user saw here; the first for none."""
    try:
        xid, pk = cursor.decode(token, query)
    except RequestError:
        return 0, 0
    return xid, pk


def fetch_newest(
    channel_id: int, filters: dict[str, str], after: str
) -> tuple[list[StoredEvent], str]:
    """Returns a page of events, newest first, and the cursor of older ones, or ''.

    Without a device it searches `reader.WINDOW_ROWS` events: no index finds a source or a type. So
    a page can be empty, and have a next one. Raises `RequestError` for a cursor of other filters.
    """
    query = ["newest", channel_id, filters]
    arrivals = StoredEvent.objects.filter(channel=channel_id)
    if after:
        xid, pk = cursor.decode(after, query)
        arrivals = arrivals.filter(xid__lte=xid).exclude(xid=xid, id__gte=pk)
    matching, window_end = arrivals.order_by("-xid", "-id"), None
    if "device" in filters:
        from_clients = Q(source__in=client_session_sources())  # one index has these, one the others
        matching = matching.filter(from_clients | ~from_clients, device_id=filters["device"])
    elif filters:
        matching, window_end = reader.limit_to_newest(arrivals)
    for name in ("source", "type"):
        if name in filters:
            matching = matching.filter(**{name: filters[name]})
    matching = matching.filter(superseded_xid__isnull=True)
    page = matching.select_related("conversation", "application").defer("payload")[: PER_PAGE + 1]
    rows = list(page) if "device" in filters else reader.fetch_ordered(page)
    if len(rows) > PER_PAGE:
        window_end = FeedPosition(rows[PER_PAGE - 1].xid, rows[PER_PAGE - 1].pk)
    return rows[:PER_PAGE], cursor.encode(list(window_end), query) if window_end else ""


@requires(*VIEW_PERMISSIONS)
def show_event(request: HttpRequest, ctx: ChannelContext, pk: int) -> HttpResponse:
    """Shows an event as a pull returns it, where the user may export personal data."""
    rows = StoredEvent.objects.filter(channel=ctx.channel_id)
    row = rows.select_related("conversation", "application").defer("payload").filter(pk=pk).first()
    if row is None:
        raise Http404
    can_see_people = ctx.has_any("submit_private")
    context: dict[str, Any] = {"event": row, "can_see_people": can_see_people}
    context["device_id"] = row.device_id if can_see_people else mask_text(row.device_id)
    if can_see_people:
        (stored,) = reader.fetch_events(rows.filter(pk=pk))
        document = json.loads(documents.encode_event(stored))
        context["document"] = json.dumps(document, indent=2, ensure_ascii=False)
        context["was_erased"] = stored.payload.strip() == b"{}"
        reads.count_read("feed.pulled", ctx.channel, "events", 1)
    return render_page(request, ctx, "event.html", context)
