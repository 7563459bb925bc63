"""The conversations of a channel; of one its questions, who answered them, where people leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.db.models.fields.json import KT
from django.http import Http404, HttpRequest, HttpResponse

from exhaust.console import svg
from exhaust.console.charts import SECONDS, Picture, Span, span
from exhaust.console.new_export import PRESETS, matching
from exhaust.console.permissions import VIEW, Here, show, typed, within
from exhaust.console.templatetags.console import grouped
from exhaust.jobs.preview import within_seconds
from ingest.models import Conversation, StoredEvent

if TYPE_CHECKING:
    import pandas as pd

ANSWERS = 200_000  # read for a funnel
TITLE = "Who answered which question"


@within(*VIEW)
def listing(request: HttpRequest, here: Here) -> HttpResponse:
    q = typed(request.GET).get("q", "").strip()
    found = list(matching(here.channel_id, q)[:101])
    return show(
        request,
        here,
        "conversations.html",
        {"found": found[:100], "more": len(found) > 100, "q": q},
    )


@within(*VIEW)
def one(request: HttpRequest, here: Here) -> HttpResponse:
    """`?id=`: its questions in the order they are asked, how many answered, where people leave."""
    said = typed(request.GET)
    identifier = said.get("id", "")
    row = Conversation.objects.filter(channel=here.channel_id, identifier=identifier).first()
    if row is None:
        raise Http404
    days, wrong = span(said)
    try:
        with within_seconds(SECONDS):
            drawn = funnel(row.pk, days)
    except TimeoutError:
        drawn = Picture("funnel", TITLE, "Reading took too long; choose fewer days.")
    return show(
        request,
        here,
        "conversation.html",
        {
            "conversation": row,
            "picture": drawn,
            "span": days,
            "wrong": wrong,
            "presets": PRESETS,
        },
    )


def funnel(pk: int, days: Span) -> Picture:
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
        )[:ANSWERS]
    )
    if not rows:
        return Picture("funnel", TITLE, "Nobody answered in these days; choose others.")
    names = ["device", "session", "at", "id", "title", "path", "last"]
    table = pd.DataFrame(rows, columns=names).sort_values("at", kind="stable")
    return _funnel(table, whole=len(rows) < ANSWERS)


def _commonest(titles: pd.Series[Any]) -> str:
    """Of a question asked in several languages."""
    counted = titles.dropna().value_counts()
    return str(counted.index[0]) if len(counted) else ""


def _funnel(table: pd.DataFrame, *, whole: bool) -> Picture:
    """A question is its place in the form, or its id where it has none; it stands where most
    sessions meet it."""
    table["question"] = table["path"].where(table["path"].fillna("") != "", table["id"])
    table["question"] = table["question"].fillna("unknown")
    sessions = table.groupby(["device", "session"], sort=False)
    table["place"] = sessions.cumcount()
    ends = table.loc[sessions["place"].idxmax()]
    left = ends[ends["last"].fillna("").str.lower() != "true"]
    questions = table.groupby("question").agg(
        place=("place", "median"),
        people=("device", "nunique"),
        title=("title", _commonest),
        answers=("at", "size"),
    )
    questions["left"] = left.groupby("question").size()
    questions = questions.fillna({"left": 0, "title": ""}).sort_values(["place", "people"])
    people = table["device"].nunique()
    told = (
        f"{grouped(len(ends))} conversations of {grouped(people)} people;"
        f" {grouped(len(left))} ended before the last question."
    )
    if not whole:
        told += f" Read were the newest {grouped(ANSWERS)} answers."
    shown = []
    for question, row in questions.head(40).iterrows():
        label = str(row["title"] or question)
        shown.append((label, str(question), int(row["people"]), int(row["left"])))
    drawing = svg.bars(
        "funnel",
        TITLE,
        told,
        [
            (label, count, f"{grouped(count)} people, {count / people:.0%}")
            for label, _, count, _ in shown
        ],
    )
    return Picture(
        "funnel",
        TITLE,
        told,
        drawing,
        ["Question", "In the form", "People", "Share", "Left after it"],
        [
            [label, question, grouped(count), f"{count / people:.0%}", grouped(gone)]
            for label, question, count, gone in shown
        ],
    )
