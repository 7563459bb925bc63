"""One form for a request: checked by the API's own words, shown before it is sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import available_timezones

from django.contrib import messages
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone

from exhaust.api import validation
from exhaust.api.views import submission
from exhaust.console import exports
from exhaust.console.permissions import ASK, Here, show, typed, within
from exhaust.datasets import DATASETS
from exhaust.datasets.selection import zone
from exhaust.files.formats import FORMATS
from exhaust.jobs import preview as previews
from exhaust.jobs import schedules, submit
from exhaust.jobs.submit import Submission
from ingest.events import Refused
from ingest.models import Application, Conversation

FOUND = 8
PRESETS = ("yesterday", "last 7 days", "last 30 days", "this month", "last month")
# names are the API's, so that its errors stand beside the right field
_CONFIG = ("conversationId", "application", "startDate", "endDate", "timezone", "since")
_BESIDE = ("tag", "dataset", "outputFormat", "callbackUrl", "sealing")
_NARROWING = ("types", "application")
_FORMATS = {
    "csv": "CSV, for spreadsheets",
    "csv.gz": "CSV, packed",
    "xlsx": "Excel",
    "jsonl": "JSON Lines",
    "jsonl.gz": "JSON Lines, packed",
    "parquet": "Parquet, for analysis",
}


@dataclass
class Asked:
    """What was typed, what is wrong with it by field, and the submission where nothing is."""

    said: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    submission: Submission | None = None


def read(here: Here, form: Mapping[str, str]) -> Asked:
    """The form by the API's rules; what was typed is kept as it was."""
    asked = Asked(dict(form))
    said = {name: text.strip() for name, text in asked.said.items() if text.strip()}
    dataset = said.get("dataset", "")
    takes = (*DATASETS[dataset].required, *DATASETS[dataset].optional) if _known(dataset) else ()
    config: dict[str, Any] = {
        name: said[name]
        for name in _CONFIG
        if name in said and (name != "conversationId" or name in takes)
    }
    if "types" in said:
        config["types"] = lines(said["types"])
    request: dict[str, Any] = {"requestedBy": here.person, "datasetConfig": config}
    request |= {name: said[name] for name in _BESIDE if name in said}
    if form.get("encryptionKey"):
        request["encryptionKey"] = form["encryptionKey"]
    if dataset:
        config["type"] = dataset
    checked = validation.Submit(data={"request": request})
    if not checked.is_valid():
        asked.errors = by_field(checked.errors.get("request", {}))
    if _known(dataset) and dataset not in here.datasets:
        asked.errors["dataset"] = "You may not ask for this one here; choose another."
    if said.get("sealing") == "password" and not form.get("encryptionKey"):
        asked.errors["encryptionKey"] = "Type the password again; it is not kept between tries."
    if asked.errors:
        return asked
    try:
        asked.submission = submission(
            {"request": request},
            checked.validated_data["request"],
            here.channel_id,
            here.channel,
            here.person,
        )
    except Refused as error:
        asked.errors = refusal(error)
    return asked


def lines(text: str) -> list[str]:
    """What a field holds that takes one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _known(dataset: str) -> bool:
    return dataset in DATASETS


def refusal(error: Refused) -> dict[str, str]:
    """`request.datasetConfig.since: …` beside its field; what names none stands above all."""
    where, colon, sentence = error.detail.partition(": ")
    if colon and where.startswith("request."):
        name = where.rpartition(".")[2]
        return {"encryptionKey" if name == "sealing" else name: sentence}
    return {"": error.detail}


_MEANT = {
    "conversationId": "Choose a conversation.",
    "startDate": "Choose the first day.",
    "endDate": "Choose the last day.",
    "dataset": "Choose what you want.",
    "tag": "Name the request, so that it can be found again.",
    "url": "Say where to send.",
}


def by_field(errors: Mapping[str, Any]) -> dict[str, str]:
    """A serializer's errors, the first of each field, in a form's words."""
    found: dict[str, str] = {}
    for name, told in errors.items():
        if isinstance(told, Mapping):
            inner = by_field(told)
            if any(isinstance(place, int) for place in told):  # of a list's items the first
                inner = {name: next(iter(inner.values()))}
            found |= inner
            continue
        first = told[0] if isinstance(told, list) else told
        lacks = str(first) == "This field is required." or getattr(first, "code", "") == "required"
        found[name] = _MEANT.get(name, str(first)) if lacks else str(first)
    return found


# The pages ----------------------------------------------------------------------------------------


@within(*ASK, methods=("GET", "POST"))
def ask(request: HttpRequest, here: Here) -> HttpResponse:
    """The form. Each button of it sends all of it: search, days, preview, send."""
    if request.method != "POST":
        said = _fresh(here) | typed(request.GET)
        return _form(request, here, Asked(said))
    said = typed(request.POST)
    if preset := request.POST.get("preset"):
        said |= _days(preset, said.get("timezone", "UTC"))
        return _form(request, here, Asked(said))
    act = request.POST.get("act", "preview")
    if act == "search":
        return _form(request, here, Asked(said))
    asked = read(here, said)
    if act == "send" and asked.submission:
        try:
            job = submit.submit(asked.submission)
        except Refused as error:
            asked.errors = refusal(error)
            return _form(request, here, asked, error.status)
        messages.success(request, "Your request is in. The file appears here when it is ready.")
        return redirect(exports.address(job))
    context = {"preview": _preview(asked.submission)} if asked.submission else {}
    return _form(request, here, asked, 400 if asked.errors else 200, **context)


def _fresh(here: Here) -> dict[str, str]:
    """What a new form holds."""
    today = timezone.now().date()
    return {
        "dataset": here.datasets[0],
        "timezone": "UTC",
        "outputFormat": "csv",
        "tag": f"console-{today.isoformat()}",
    }


def _days(preset: str, zone_name: str) -> dict[str, str]:
    """First and last day of a preset, seen from now; nothing where it is none."""
    try:
        first, last = schedules.days(preset, timezone.now().astimezone(zone(zone_name)).date())
    except ValueError:
        return {}
    return {"startDate": first.isoformat(), "endDate": last.isoformat()}


def _form(
    request: HttpRequest, here: Here, asked: Asked, status: int = 200, **context: Any
) -> HttpResponse:
    answer = show(
        request,
        here,
        "ask.html",
        {
            "said": asked.said,
            "errors": asked.errors,
            "datasets": [DATASETS[name] for name in here.datasets],
            "formats": formats(),
            "narrowed": any(
                set(_NARROWING) & set(DATASETS[name].optional) for name in here.datasets
            ),
            "applications": _applications(here, asked.said.get("application", "")),
            "presets": PRESETS,
            "zones": zones(),
            **found(here, asked.said),
            **context,
        },
        status,
    )
    if "preset" in request.POST:
        answer["HX-Trigger-After-Swap"] = "preview"
    return answer


def formats() -> list[tuple[str, str]]:
    return [(name, _FORMATS.get(name, name)) for name in FORMATS]


def _applications(here: Here, said: str) -> list[tuple[str, str]]:
    """What a form offers; what was said is kept, though there is none of that name."""
    rows = Application.objects.filter(channel=here.channel_id).order_by("identifier")
    names = {
        row.identifier: f"{row.name} ({row.identifier})" if row.name else row.identifier
        for row in rows
    }
    return [("", "All"), *({said: said} | names if said else names).items()]


def zones() -> list[str]:
    """What a form offers, UTC first."""
    return ["UTC", *sorted(name for name in available_timezones() if "/" in name)]


def found(here: Here, said: Mapping[str, str]) -> dict[str, Any]:
    """The conversations to choose from: those whose name or id holds `q`, and the chosen one."""
    q, chosen = said.get("q", "").strip(), said.get("conversationId", "")
    rows = matching(here.channel_id, q)
    some = list(rows[: FOUND + 1])
    if chosen and chosen not in {row.identifier for row in some[:FOUND]}:
        some = [*rows.model.objects.filter(channel=here.channel_id, identifier=chosen), *some]
    if len(some) == 1 and not q:
        chosen = some[0].identifier  # there is nothing to choose
    return {
        "found": some[:FOUND],
        "chosen": chosen,
        "more": len(some) > FOUND,
        "q": q,
    }


def matching(channel_id: int, q: str) -> Any:
    """Conversations by name; the named ones first."""
    rows = Conversation.objects.filter(channel=channel_id)
    if q:
        rows = rows.filter(Q(name__icontains=q) | Q(identifier__icontains=q))
    return rows.alias(nameless=ExpressionWrapper(Q(name=""), BooleanField())).order_by(
        "nameless", "name", "identifier"
    )


@within(*ASK)
def conversations(request: HttpRequest, here: Here) -> HttpResponse:
    """The part of the form that lists them, while somebody types."""
    said = typed(request.GET)
    return show(request, here, "ask_found.html", {"said": said, **found(here, said)})


@within(*ASK, methods=("POST",))
def preview(request: HttpRequest, here: Here) -> HttpResponse:
    """The part of the form that shows what would come; incomplete is not wrong yet."""
    asked = read(here, typed(request.POST))
    context: dict[str, Any] = {"errors": asked.errors}
    if asked.submission:
        context["preview"] = _preview(asked.submission)
    return show(request, here, "ask_preview.html", context)


@dataclass(frozen=True)
class Seen:
    """A preview as the page shows it."""

    preview: previews.Preview
    headers: list[str]

    @property
    def slow(self) -> bool:
        return not self.preview.counted


def _preview(submission: Submission) -> Seen:
    columns = DATASETS[submission.dataset].columns
    return Seen(previews.preview(submission), [column.header for column in columns])
