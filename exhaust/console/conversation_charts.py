"""A conversation's charts: responses by day, its funnel, the answers to each question."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from django.db.models import Case, OuterRef, Q, Subquery, When
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from exhaust.console import svg
from exhaust.console.charts import (
    TIMEOUT_SECONDS,
    Chart,
    DayRange,
    daily_chart,
)
from exhaust.console.templatetags.console import ago, thousands
from exhaust.datasets.answers import (
    ANSWER,
    ID,
    MAX_NAME,
    OPTIONS,
    PATH,
    TITLE,
    Choice,
    count_cells,
    list_choices,
)
from exhaust.datasets.resolve import resolve_selection
from exhaust.datasets.summary import FREE_TEXT, SUMMARY, find_choices
from ingest.db.time_limit import limit_query_seconds
from ingest.feed import daily_counts
from ingest.models import DailyCount, Session, StoredEvent

MAX_FUNNEL_ANSWERS = 50_000  # more take longer than a reader waits
MAX_COUNTED_ANSWERS = 50_000
MAX_QUESTIONS = 40
MAX_ANSWER_CHARTS = 20
MAX_OPTIONS = 12
ALL_COMMITTED = 2**62  # a watermark above all events, as a chart repeats no file
UNKNOWN = "unknown"  # a question without path and id

# the derived session of an event that names none
_DERIVED_SESSION = Session.objects.alias(owner=Coalesce("application_id", 0)).filter(
    channel=OuterRef("channel"),
    device_id=OuterRef("device_id"),
    owner=Coalesce(OuterRef("application_id"), 0),
    ended_at__gte=OuterRef("occurred_at"),
    started_at__lte=OuterRef("occurred_at"),
    sender_session_id="",
    is_client_session=False,
    parent=None,
)


def draw_days(channel_id: int, pk: int, days: DayRange) -> Chart:
    counts = daily_counts.count_days(channel_id, DailyCount.Kind.ANSWER, days.first, days.last)
    own = [(day, _("Responses"), count) for (day, name), count in counts.items() if name == str(pk)]
    return daily_chart(days, own, None, _("No responses in this period."))


def draw_funnel(pk: int, days: DayRange) -> Chart:
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
            "application",
            "session_id",
            Case(When(session_id="", then=Subquery(_DERIVED_SESSION.values("pk")[:1]))),
            "occurred_at",
            KT("payload__edata__item__id"),
            KT("payload__edata__item__title"),
            KT("payload__context__rollup__l3"),
            KT("payload__context__rollup__l4"),
        )[:MAX_FUNNEL_ANSWERS]
    )
    return _funnel_chart(rows[::-1]) if rows else Chart(_("No responses in this period."))


@dataclass
class _FunnelStep:
    """A question's answers: their places in their sessions, and which sessions end with it."""

    places: list[int] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    titles: Counter[str] = field(default_factory=Counter)  # they differ by language
    left: int = 0


def _funnel_chart(rows: Sequence[tuple[Any, ...]]) -> Chart:
    """Returns the chart of answers in the order of their time.

    The path in the form identifies a question, or its ID where it has no path. Questions are
    ordered by the median place at which sessions answer them.
    """
    steps: defaultdict[str, _FunnelStep] = defaultdict(_FunnelStep)
    # an answer of which no session is derived yet counts with the others of its device
    places: Counter[tuple[Any, ...]] = Counter()
    last_answers: dict[tuple[Any, ...], tuple[str, bool]] = {}
    for *session, _at, identifier, title, path, is_end in rows:
        question = path or identifier or UNKNOWN
        step, key = steps[question], tuple(session)
        step.places.append(places[key])
        step.devices.add(session[0])
        if title is not None:
            step.titles[title] += 1
        places[key] += 1
        last_answers[key] = question, (is_end or "").lower() == "true"
    unfinished = [question for question, is_end in last_answers.values() if not is_end]
    for question in unfinished:
        steps[question].left += 1
    participant_count = len({device for device, *_others in rows})
    sessions_label = ngettext("%(count)s session", "%(count)s sessions", len(last_answers))
    people = ngettext("%(count)s participant", "%(count)s participants", participant_count)
    sentence = _("%(sessions)s of %(participants)s. %(left)s ended before the last question.")
    caption = sentence % {
        "sessions": sessions_label % {"count": thousands(len(last_answers))},
        "participants": people % {"count": thousands(participant_count)},
        "left": thousands(len(unfinished)),
    }
    is_complete = len(rows) < MAX_FUNNEL_ANSWERS
    if not is_complete:
        caption += " " + _describe_sample(MAX_FUNNEL_ANSWERS)
    table: list[tuple[str, str, int, float, int]] = []
    in_order = sorted(
        steps.items(), key=lambda pair: (median(pair[1].places), len(pair[1].devices))
    )
    for question, step in in_order[:MAX_QUESTIONS]:
        label = max(step.titles, key=step.titles.__getitem__, default="") or question
        count = len(step.devices)
        table.append((label, question, count, count / participant_count, step.left))
    bars = [
        (label, float(count), f"{thousands(count)}, {share:.0%}")
        for label, _path, count, share, _left in table
    ]
    header = [_("Question"), _("Path"), _("Participants"), _("Share"), _("Left after it")]
    figures = [
        (_("Responses"), thousands(len(rows)) + ("" if is_complete else "+")),
        (_("Participants"), thousands(participant_count)),
        (_("Sessions"), thousands(len(last_answers))),
        (_("Reached the last question"), f"{1 - len(unfinished) / len(last_answers):.0%}"),
        (_("Last response"), ago(rows[-1][4])),
    ]
    return Chart(caption, svg.draw_bars(bars), header, table, figures=figures)


def _describe_sample(limit: int) -> str:
    return _("Counted from the newest %(limit)s responses.") % {"limit": thousands(limit)}


@dataclass
class _Question:
    """A question's answers by option, whatever their language. Free text is under ''."""

    titles: Counter[str] = field(default_factory=Counter)
    answers: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # by the option's key
    texts: dict[str, Counter[str]] = field(default_factory=dict)  # of the offered options

    def add(self, options: str, answer: str, count: int) -> None:
        choices = find_choices(options, answer)
        if not choices:  # consent is refused, or nothing is chosen
            return
        self.answers += count
        for choice in list_choices(options):
            self.texts.setdefault(_identify(choice), Counter())[choice[1][:MAX_NAME]] += count
        for key in {"" if choice == FREE_TEXT else _identify(choice) for choice in choices}:
            self.counts[key] += count

    def list_options(self) -> list[tuple[str, str, int]]:
        """Label, key and count of each option by key; then rare ones together, and free text."""
        keys = sorted(self.texts, key=lambda key: (len(key), key))
        others: list[str] = []
        if len(keys) > MAX_OPTIONS:
            common = sorted(keys, key=lambda key: -self.counts[key])[:MAX_OPTIONS]
            others = [key for key in keys if key not in common]
            keys = [key for key in keys if key in common]
        rows = [(self.texts[key].most_common(1)[0][0], key, self.counts[key]) for key in keys]
        if others:
            label = ngettext("%(count)s other option", "%(count)s other options", len(others))
            total = sum(self.counts[key] for key in others)
            rows.append((label % {"count": len(others)}, "", total))
        if self.counts[""]:
            rows.append((_("Free text"), "", self.counts[""]))
        return rows


def _identify(choice: Choice) -> str:
    """Returns the key of an option, or its text where it has none."""
    return (choice[0] or choice[1])[:MAX_NAME]


def draw_answers(
    channel_id: int, conversation: str, days: DayRange, order: Sequence[str]
) -> tuple[list[Chart], str]:
    """Returns a chart for each question, those of `order` first, and a hint or ''.

    Raises `TimeoutError`.
    """
    config = {
        "conversationId": conversation,
        "startDate": days.first.isoformat(),
        "endDate": days.last.isoformat(),
    }
    with limit_query_seconds(TIMEOUT_SECONDS):
        selection = resolve_selection(SUMMARY, channel_id, config, ALL_COMMITTED)
        columns = (PATH, ID, TITLE, OPTIONS, ANSWER)
        cells = count_cells(selection, columns, MAX_COUNTED_ANSWERS)
    questions: defaultdict[str, _Question] = defaultdict(_Question)
    for (path, identifier, title, options, answer), count in cells.items():
        question = questions[path or identifier or UNKNOWN]
        question.titles[title or ""] += count
        question.add(options or "[]", answer or "[]", count)
    places = {name: place for place, name in enumerate(order)}
    names = [name for name, question in questions.items() if question.answers]
    names.sort(key=lambda name: (places.get(name, len(places)), -questions[name].answers, name))
    hints = []
    if cells.total() == MAX_COUNTED_ANSWERS:
        hints.append(_describe_sample(MAX_COUNTED_ANSWERS))
    if (hidden := len(names) - MAX_ANSWER_CHARTS) > 0:
        sentence = ngettext(
            "%(count)s further question is in the dataset %(dataset)s.",
            "%(count)s further questions are in the dataset %(dataset)s.",
            hidden,
        )
        hints.append(sentence % {"count": hidden, "dataset": SUMMARY.name})
    charts = [
        _answers_chart(f"answers-{number}", name, questions[name])
        for number, name in enumerate(names[:MAX_ANSWER_CHARTS], 1)
    ]
    return charts, " ".join(hints)


def _answers_chart(chart_name: str, path: str, question: _Question) -> Chart:
    options = question.list_options()
    caption = ngettext("%(count)s answer", "%(count)s answers", question.answers)
    title = next((title for title, _count in question.titles.most_common() if title), path)
    rows = [(label, key, count, count / question.answers) for label, key, count in options]
    bars = [
        (label, float(count), f"{thousands(count)}, {share:.0%}")
        for label, _key, count, share in rows
    ]
    return Chart(
        caption % {"count": thousands(question.answers)},
        svg.draw_bars(bars),
        [_("Answer"), _("Key"), _("Answers"), _("Share")],
        rows,
        name=chart_name,
        title=title,
    )
