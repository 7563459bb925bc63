"""The conversations of a channel; of one its questions, who answered them, where people leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.db.models.fields.json import KT
from django.http import Http404, HttpRequest, HttpResponse

from exhaust.console import svg
from exhaust.console.charts import TIMEOUT_SECONDS, Chart, DayRange, parse_days
from exhaust.console.new_export import PRESETS, filter_conversations
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

MAX_ANSWERS = 200_000  # read for a funnel
FUNNEL_TITLE = "Who answered which question"


@requires(*VIEW_PERMISSIONS)
def list_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    q = clean_params(request.GET).get("q", "").strip()
    matches = list(filter_conversations(ctx.channel_id, q)[:101])
    return render_page(
        request,
        ctx,
        "conversations.html",
        {"found": matches[:100], "more": len(matches) > 100, "q": q},
    )


@requires(*VIEW_PERMISSIONS)
def show_conversation(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """`?id=`: its questions in the order they are asked, how many answered, where people leave."""
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
        chart = Chart("funnel", FUNNEL_TITLE, "Reading took too long; choose fewer days.")
    return render_page(
        request,
        ctx,
        "conversation.html",
        {
            "conversation": row,
            "chart": chart,
            "span": days,
            "wrong": error,
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
        return Chart("funnel", FUNNEL_TITLE, "Nobody answered in these days; choose others.")
    names = ["device", "session", "at", "id", "title", "path", "last"]
    table = pd.DataFrame(rows, columns=names).sort_values("at", kind="stable")
    return _funnel_chart(table, is_complete=len(rows) < MAX_ANSWERS)


def _most_common(titles: pd.Series[Any]) -> str:
    """Of a question asked in several languages."""
    counts = titles.dropna().value_counts()
    return str(counts.index[0]) if len(counts) else ""


def _funnel_chart(table: pd.DataFrame, *, is_complete: bool) -> Chart:
    """A question is its place in the form, or its id where it has none; it stands where most
    sessions meet it."""
    table["question"] = table["path"].where(table["path"].fillna("") != "", table["id"])
    table["question"] = table["question"].fillna("unknown")
    sessions = table.groupby(["device", "session"], sort=False)
    table["place"] = sessions.cumcount()
    last_answers = table.loc[sessions["place"].idxmax()]
    unfinished = last_answers[last_answers["last"].fillna("").str.lower() != "true"]
    questions = table.groupby("question").agg(
        place=("place", "median"),
        people=("device", "nunique"),
        title=("title", _most_common),
        answers=("at", "size"),
    )
    questions["left"] = unfinished.groupby("question").size()
    questions = questions.fillna({"left": 0, "title": ""}).sort_values(["place", "people"])
    participant_count = table["device"].nunique()
    caption = (
        f"{thousands(len(last_answers))} conversations of {thousands(participant_count)} people;"
        f" {thousands(len(unfinished))} ended before the last question."
    )
    if not is_complete:
        caption += f" Read were the newest {thousands(MAX_ANSWERS)} answers."
    rows = []
    for question, row in questions.head(40).iterrows():
        label = str(row["title"] or question)
        rows.append((label, str(question), int(row["people"]), int(row["left"])))
    drawing = svg.draw_bars(
        "funnel",
        FUNNEL_TITLE,
        caption,
        [
            (label, count, f"{thousands(count)} people, {count / participant_count:.0%}")
            for label, _, count, _ in rows
        ],
    )
    return Chart(
        "funnel",
        FUNNEL_TITLE,
        caption,
        drawing,
        ["Question", "In the form", "People", "Share", "Left after it"],
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
