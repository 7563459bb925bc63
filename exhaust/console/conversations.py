"""The conversations of a channel, and the funnel of one: responses and drop-off by question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.db.models.fields.json import KT
from django.http import Http404, HttpRequest, HttpResponse

from exhaust.console import svg
from exhaust.console.charts import TIMEOUT_SECONDS, Chart, DayRange, parse_days
from exhaust.console.new_export import PRESETS, find_conversations
from exhaust.console.permissions import (
    VIEW_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.console.templatetags.console import thousands
from exhaust.jobs.preview import limit_query_seconds
from ingest.models import Conversation, StoredEvent

if TYPE_CHECKING:
    import pandas as pd

MAX_LISTED = 100
MAX_ANSWERS = 200_000  # read per funnel
FUNNEL_TITLE = "Responses by question"


@requires(*VIEW_PERMISSIONS)
def list_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    q = clean_params(request.GET).get("q", "").strip()
    matches, hint = find_conversations(ctx.channel_id, q, MAX_LISTED)
    context = {"matches": matches, "hint": hint, "q": q}
    return render_page(request, ctx, "conversations.html", context)


@requires(*VIEW_PERMISSIONS)
def show_conversation(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the conversation of `?id=` with its funnel."""
    params = clean_params(request.GET)
    identifier = params.get("id", "")
    row = Conversation.objects.filter(channel=ctx.channel_id, identifier=identifier).first()
    if row is None:
        raise Http404
    days, error = parse_days(params)
    try:
        with limit_query_seconds(TIMEOUT_SECONDS):
            chart = draw_funnel(row.pk, days)
    except TimeoutError:
        chart = Chart("funnel", FUNNEL_TITLE, "Reading took too long. Choose fewer days.")
    return render_page(
        request,
        ctx,
        "conversation.html",
        {
            "conversation": row,
            "chart": chart,
            "period": days,
            "error": error,
            "presets": PRESETS,
        },
    )


def draw_funnel(pk: int, days: DayRange) -> Chart:
    import pandas as pd

    rows = list(
        StoredEvent.objects.filter(
            Q(occurred_at__gte=days.start, occurred_at__lt=days.end),
            conversation=pk,
            is_answer=True,
            superseded_xid__isnull=True,
        )
        .order_by("-occurred_at", "-pk")
        .values_list(
            "device_id",
            "session_id",
            "occurred_at",
            KT("payload__edata__item__id"),
            KT("payload__edata__item__title"),
            KT("payload__context__rollup__l3"),
            KT("payload__context__rollup__l4"),
        )[:MAX_ANSWERS]
    )
    if not rows:
        return Chart("funnel", FUNNEL_TITLE, "No responses in this period.")
    names = ["device", "session", "at", "id", "title", "path", "last"]
    table = pd.DataFrame(rows, columns=names).sort_values("at", kind="stable")
    return _funnel_chart(table, is_complete=len(rows) < MAX_ANSWERS)


def _most_common(titles: pd.Series[Any]) -> str:
    """Returns the most common title of a question; titles differ by language."""
    counts = titles.dropna().value_counts()
    return str(counts.index[0]) if len(counts) else ""


def _funnel_chart(table: pd.DataFrame, *, is_complete: bool) -> Chart:
    """Returns the chart of a table of answers.

    The path in the form identifies a question, or its ID where it has no path. Questions are
    ordered by the median position at which sessions answer them.
    """
    table["question"] = table["path"].where(table["path"].fillna("") != "", table["id"])
    table["question"] = table["question"].fillna("unknown")
    sessions = table.groupby(["device", "session"], sort=False)
    table["position"] = sessions.cumcount()
    last_answers = table.loc[sessions["position"].idxmax()]
    unfinished = last_answers[last_answers["last"].fillna("").str.lower() != "true"]
    questions = table.groupby("question").agg(
        position=("position", "median"),
        participants=("device", "nunique"),
        title=("title", _most_common),
        answers=("at", "size"),
    )
    questions["left"] = unfinished.groupby("question").size()
    questions = questions.fillna({"left": 0, "title": ""}).sort_values(["position", "participants"])
    participant_count = table["device"].nunique()
    caption = (
        f"{thousands(len(last_answers))} sessions of {thousands(participant_count)} participants."
        f" {thousands(len(unfinished))} ended before the last question."
    )
    if not is_complete:
        caption += f" Counted from the newest {thousands(MAX_ANSWERS)} responses."
    rows = []
    for question, row in questions.head(40).iterrows():
        label = str(row["title"] or question)
        rows.append((label, str(question), int(row["participants"]), int(row["left"])))
    drawing = svg.draw_bars(
        "funnel",
        FUNNEL_TITLE,
        caption,
        [
            (label, count, f"{thousands(count)} participants, {count / participant_count:.0%}")
            for label, _, count, _ in rows
        ],
    )
    return Chart(
        "funnel",
        FUNNEL_TITLE,
        caption,
        drawing,
        ["Question", "Path", "Participants", "Share", "Left after it"],
        [
            [
                label,
                question,
                thousands(count),
                f"{count / participant_count:.0%}",
                thousands(left_after),
            ]
            for label, question, count, left_after in rows
        ],
    )
