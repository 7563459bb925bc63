"""The conversations of a channel, and the page of one: its charts, newest responses and exports."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import OuterRef, Subquery
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from exhaust.console import conversation_charts
from exhaust.console.charts import (
    PRESETS,
    TIMEOUT_SECONDS,
    Chart,
    DayRange,
    build_chart,
    parse_period,
    respond_with_csv,
)
from exhaust.console.exports import job_views
from exhaust.console.new_export import find_conversations
from exhaust.console.participants import mask_text
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.datasets.answers import ANSWER, DEVICE, ID, TIME, TITLE, count_cells, read_text
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.response import RESPONSE
from exhaust.jobs import queries
from ingest.audit import reads
from ingest.db.time_limit import limit_query_seconds
from ingest.feed import daily_counts
from ingest.models import Conversation, DailyCount, StoredEvent

MAX_LISTED = 100
MAX_AT_ONCE = 2_000  # responses that are read before the page is shown
MAX_RESPONSES = 50
MAX_EXPORTS = 20
TABS = {
    "": gettext_lazy("Overview"),
    "responses": gettext_lazy("Newest responses"),
    "exports": gettext_lazy("Exports"),
}


@requires(*VIEW_PERMISSIONS)
def list_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Lists conversations by name, each with the time of its last event."""
    q = clean_params(request.GET).get("q", "").strip()
    matches, hint = find_conversations(ctx.channel_id, q, MAX_LISTED)
    newest = StoredEvent.objects.filter(conversation=OuterRef("pk")).order_by("-occurred_at", "-pk")
    rows = Conversation.objects.filter(pk__in=[row.pk for row in matches])
    times = dict(rows.values_list("pk", Subquery(newest.values("occurred_at")[:1])))
    context = {"matches": [(row, times.get(row.pk)) for row in matches], "hint": hint, "q": q}
    return render_page(request, ctx, "conversations.html", context)


@requires(*VIEW_PERMISSIONS)
def show_conversation(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows a tab of the conversation of `?id=`, or the table of a chart in `?csv=` as CSV.

    Where charts read many responses, the page comes first and asks for them by `?charts=`.
    """
    params = clean_params(request.GET)
    row = Conversation.objects.filter(
        channel=ctx.channel_id, identifier=params.get("id", "")
    ).first()
    tab = params.get("tab", "")
    tabs = {name: label for name, label in TABS.items() if name != "exports" or ctx.can_submit}
    if row is None or tab not in tabs:
        raise Http404
    period, error = parse_period(params)
    waiting = 0 if tab or {"csv", "charts"} & params.keys() else _count(ctx, row, period.days)
    context: dict[str, Any] = {"waiting": waiting}
    if waiting <= MAX_AT_ONCE:
        context = _TAB_CONTEXTS[tab](ctx, row, period.days)
    if "csv" in params:
        charts = [*context.get("charts", []), *context.get("answers", [])]
        return respond_with_csv(charts, params["csv"], period.days)
    query = f"{urlencode({'id': row.identifier})}&{period.query}"
    return render_page(
        request,
        ctx,
        "conversation.html",
        {
            "conversation": row,
            "tab": tab,
            "tabs": tabs.items(),
            "period": period,
            "query": query,
            "error": error,
            "presets": PRESETS,
            **context,
        },
    )


def _count(ctx: ChannelContext, row: Conversation, days: DayRange) -> int:
    counts = daily_counts.count_names(ctx.channel_id, DailyCount.Kind.ANSWER, days.first, days.last)
    return counts[str(row.pk),]


def _show_charts(ctx: ChannelContext, row: Conversation, days: DayRange) -> dict[str, Any]:
    by_day = build_chart(
        "days", _("Responses by day"), conversation_charts.draw_days, ctx.channel_id, row.pk, days
    )
    title = _("Participants by question")
    funnel = build_chart("funnel", title, conversation_charts.draw_funnel, row.pk, days)
    answers: list[Chart] = []
    order = [str(path) for _title, path, *_counts in funnel.rows]
    try:
        answers, hint = conversation_charts.draw_answers(
            ctx.channel_id, row.identifier, days, order
        )
    except TimeoutError:
        hint = _("Counting took too long. Choose fewer days.")
    charts = [by_day, funnel] if funnel.rows or by_day.rows else [by_day]
    return {"charts": charts, "figures": funnel.figures, "answers": answers, "hint": hint}


@dataclass(frozen=True)
class Response:
    """An answer to a question; its device is masked where the user may not see people."""

    at: datetime
    device: str
    question: str
    answer: str


def _show_responses(ctx: ChannelContext, row: Conversation, days: DayRange) -> dict[str, Any]:
    """Reads the newest responses; the audit log counts them as it counts pulls."""
    can_see_people = ctx.has_any("submit_private")
    try:
        responses = _read_responses(ctx, row, days, can_see_people=can_see_people)
    except TimeoutError:
        return {"hint": _("Reading took too long. Choose fewer days.")}
    reads.count_read("feed.pulled", ctx.channel, "events", len(responses))
    return {"responses": responses, "can_see_people": can_see_people, "most": MAX_RESPONSES}


def _read_responses(
    ctx: ChannelContext, row: Conversation, days: DayRange, *, can_see_people: bool
) -> list[Response]:
    config = {
        "conversationId": row.identifier,
        "startDate": days.first.isoformat(),
        "endDate": days.last.isoformat(),
    }
    columns = (TIME, DEVICE, TITLE, ID, ANSWER)
    with limit_query_seconds(TIMEOUT_SECONDS):
        selection = resolve_selection(
            RESPONSE, ctx.channel_id, config, conversation_charts.ALL_COMMITTED
        )
        cells = count_cells(selection, columns, MAX_RESPONSES)
    return [
        Response(
            datetime.fromisoformat(at or ""),
            (device or "") if can_see_people else mask_text(device or ""),
            title or identifier or "",
            read_text(answer or "[]") if can_see_people else "",
        )
        for at, device, title, identifier, answer in sorted(
            cells.elements(), key=lambda cell: cell[0] or "", reverse=True
        )
    ]


def _show_exports(ctx: ChannelContext, row: Conversation, _days: DayRange) -> dict[str, Any]:
    filters = queries.Filters(ctx.channel_id, ctx.readable, conversation=row.identifier)
    return {"exports": job_views(queries.search_jobs(filters, MAX_EXPORTS).jobs)}


_TAB_CONTEXTS: dict[str, Callable[[ChannelContext, Conversation, DayRange], dict[str, Any]]] = {
    "": _show_charts,
    "responses": _show_responses,
    "exports": _show_exports,
}
