"""The form of a new export: validated by the API's serializer, with a preview."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from exhaust.api import validation
from exhaust.api.jobs import build_submission
from exhaust.console import exports
from exhaust.console.permissions import (
    SUBMIT_PERMISSIONS,
    ChannelContext,
    clean_params,
    render_page,
    requires,
)
from exhaust.datasets.base import Dataset
from exhaust.datasets.cells import Cell, Column
from exhaust.datasets.layout import list_columns
from exhaust.datasets.own import find_dataset, unknown_dataset
from exhaust.datasets.selection import load_zone
from exhaust.datasets.zones import list_zone_names
from exhaust.files.formats import FORMATS
from exhaust.jobs import preview as previews
from exhaust.jobs import repeats, schedules, submit
from exhaust.jobs.submit import Submission
from exhaust.models import Destination, Job
from ingest.auth import preferences
from ingest.db import time_limit
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.models import Application, Channel, Conversation

SEARCH_SECONDS = 3.0
MAX_CONVERSATIONS = 8
PRESETS = ("yesterday", "last 7 days", "last 30 days", "this month", "last month")
_PRESET_LABELS = {
    "today": gettext_lazy("Today"),
    "yesterday": gettext_lazy("Yesterday"),
    "last 7 days": gettext_lazy("Last 7 days"),
    "last 30 days": gettext_lazy("Last 30 days"),
    "this month": gettext_lazy("This month"),
    "last month": gettext_lazy("Last month"),
}
LIST_FIELDS = ("types", "columns")  # one value a line
# the choices of some datasets: their labels, and their values of which the empty one is the default
_CHOICE_FIELDS = {
    "rows": (
        gettext_lazy("A row for each"),
        [("", gettext_lazy("Session")), ("participant", gettext_lazy("Participant"))],
    ),
    "answers": (
        gettext_lazy("Of several answers"),
        [
            ("", gettext_lazy("The last")),
            ("first", gettext_lazy("The first")),
            ("all", gettext_lazy("All")),
        ],
    ),
    "by": (
        gettext_lazy("Counts for"),
        [("", gettext_lazy("The whole period")), ("day", gettext_lazy("Each day"))],
    ),
}
_REQUEST_FIELDS = (
    "tag", "dataset", "outputFormat", "callbackUrl", "deliverTo", "encryption", "priority",
    "notBefore", "forceNew",
)  # fmt: skip
_FILTER_FIELDS = ("types", "application")
_MORE_FIELDS = ("callbackUrl", "deliverTo", "priority", "notBefore", "since")
_FORMAT_LABELS = {
    "csv": gettext_lazy("CSV, for programs"),
    "csv.gz": gettext_lazy("CSV, compressed (gzip)"),
    "csv-excel": gettext_lazy("CSV, for Excel"),
    "xlsx": gettext_lazy("Excel (XLSX)"),
    "jsonl": gettext_lazy("JSON Lines"),
    "jsonl.gz": gettext_lazy("JSON Lines, compressed (gzip)"),
    "parquet": gettext_lazy("Parquet, for analysis"),
}


@dataclass
class ParsedRequest:
    """The typed values, the errors by field, and the submission where there are no errors."""

    params: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    submission: Submission | None = None


def parse_request_form(ctx: ChannelContext, form: Mapping[str, str]) -> ParsedRequest:
    """Validates the form by the API's rules; keeps the values as they were typed."""
    parsed = ParsedRequest(dict(form))
    params = {name: text.strip() for name, text in parsed.params.items() if text.strip()}
    dataset = params.get("dataset", "")
    chosen = ctx.datasets.get(dataset)
    accepted_fields = (*chosen.required_fields, *chosen.optional_fields) if chosen else ()
    config: dict[str, Any] = {
        name: params[name]
        for name in exports.CONFIG_FIELDS
        if name in params and (name != "conversationId" or name in accepted_fields)
    }
    config |= {name: split_lines(params[name]) for name in LIST_FIELDS if name in params}
    request: dict[str, Any] = {"requestedBy": ctx.username, "datasetConfig": config}
    request |= {name: params[name] for name in _REQUEST_FIELDS if name in params}
    if form.get("encryptionKey"):
        request["encryptionKey"] = form["encryptionKey"]
    if dataset:
        config["type"] = dataset
    serializer = validation.SubmitBody(data={"request": request})
    if not serializer.is_valid():
        parsed.errors = flatten_errors(serializer.errors.get("request", {}))
    if chosen and chosen.default_days != "ever":
        for name in {"startDate", "endDate"} - params.keys():
            parsed.errors[name] = str(_REQUIRED_MESSAGES[name])
    if not chosen and dataset and "dataset" not in parsed.errors:
        parsed.errors["dataset"] = explain_missing(ctx, dataset)
    if params.get("encryption") == "password" and not form.get("encryptionKey"):
        parsed.errors["encryptionKey"] = _(
            "Type the password again. We do not keep it between attempts."
        )
    if parsed.errors:
        return parsed
    try:
        parsed.submission = build_submission(
            {"request": request},
            serializer.validated_data["request"],
            ctx.channel_id,
            ctx.channel,
            ctx.username,
        )
    except RequestError as error:
        parsed.errors = field_errors(error)
    return parsed


def explain_missing(ctx: ChannelContext, dataset: str) -> str:
    """Returns why the user cannot choose a dataset."""
    if find_dataset(ctx.channel_id, dataset) is None:
        return unknown_dataset(ctx.channel_id)
    return _("You may not export this dataset here. Choose another.")


def split_lines(text: str) -> list[str]:
    """Returns the lines of a multi-line field, without blank ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def field_errors(error: RequestError) -> dict[str, str]:
    """`request.datasetConfig.since: …` beside its field; what names none stands above all."""
    path, separator, sentence = error.detail.partition(": ")
    if separator and path.startswith("request."):
        name = path.rpartition(".")[2]
        return {"encryptionKey" if name == "encryption" else name: sentence}
    return {"": error.detail}


_REQUIRED_MESSAGES = {
    "conversationId": gettext_lazy("Choose a conversation."),
    "startDate": gettext_lazy("Choose the first day."),
    "endDate": gettext_lazy("Choose the last day."),
    "dataset": gettext_lazy("Choose a dataset."),
    "tag": gettext_lazy("Enter a tag, so that you find the export again."),
    "url": gettext_lazy("Enter the address of the destination."),
}


def flatten_errors(errors: Mapping[str, Any]) -> dict[str, str]:
    """Returns the first error of each field of a serializer, worded for a form."""
    sentences: dict[str, str] = {}
    for name, error in errors.items():
        if isinstance(error, Mapping):
            inner = flatten_errors(error)
            if any(isinstance(index, int) for index in error):  # a list: show its first error
                inner = {name: next(iter(inner.values()))}
            sentences |= inner
            continue
        first = error[0] if isinstance(error, list) else error
        is_missing = (
            str(first) == "This field is required." or getattr(first, "code", "") == "required"
        )
        sentences[name] = str(_REQUIRED_MESSAGES.get(name, first) if is_missing else first)
    return sentences


# The pages ----------------------------------------------------------------------------------------


def read_form(form: QueryDict) -> dict[str, str]:
    """Returns the values of a form, with the dataset's checked columns as lines."""
    params = clean_params(form)
    checked = form.getlist(f"columns.{params.get('dataset', '')}")
    return params | {"columns": "\n".join(checked).replace("\0", "\ufffd")}


def form_query(form: QueryDict) -> str:
    """Returns the query that fills the form with the same values; never with a password."""
    names = (*exports.CONFIG_FIELDS, *LIST_FIELDS, *_REQUEST_FIELDS)
    params = read_form(form)
    return urlencode({name: params[name] for name in names if params.get(name)})


@requires(*SUBMIT_PERMISSIONS, methods=("GET", "POST"), form_query=form_query)
def create_request(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or handles one of its buttons: search, preset, preview, send, again."""
    if request.method != "POST":
        params = _default_params(ctx) | clean_params(request.GET)
        params |= _preset_days(params.get("preset", ""), params["timezone"])
        return _render_form(request, ctx, ParsedRequest(params))
    params = read_form(request.POST)
    if preset := request.POST.get("preset"):
        params |= _preset_days(preset, params.get("timezone", "UTC"))
        return _render_form(request, ctx, ParsedRequest(params))
    action = request.POST.get("act", "preview")
    if action == "search":
        return _render_form(request, ctx, ParsedRequest(params))
    if action == "again":
        params["forceNew"] = "true"
    parsed = parse_request_form(ctx, params)
    if action in ("send", "again") and parsed.submission:
        try:
            job = submit.submit(parsed.submission)
        except RequestError as error:
            parsed.errors = field_errors(error)
            return _render_form(request, ctx, parsed, error.status)
        if job.is_existing:
            messages.warning(request, _describe_existing(job))
        else:
            messages.success(request, _("Export queued. The file appears here when it is ready."))
        return redirect(exports.job_url(job))
    context = _build_preview(ctx, parsed.submission) if parsed.submission else {}
    return _render_form(request, ctx, parsed, 400 if parsed.errors else 200, **context)


def _describe_existing(job: Job) -> str:
    """Returns the message to a user whose export exists already."""
    age = repeats.measure_age(job)
    if age is None:
        return _("You created this export already today.")
    sentences = [
        _("This export exists already. Its file holds the events until %(time)s UTC.")
        % {"time": f"{age.as_of:%H:%M}"}
    ]
    if age.new_rows is not None:
        arrived = ngettext(
            "%(rows)s row arrived since.", "%(rows)s rows arrived since.", age.new_rows
        )
        sentences.append(arrived % {"rows": f"{age.new_rows:,}"})
    sentences.append(_("To get a new file, duplicate it and check “Make a new file”."))
    return " ".join(sentences)


def _default_params(ctx: ChannelContext) -> dict[str, str]:
    """Returns the values of an empty form."""
    today = read_clock().date()
    return {
        "dataset": next(iter(ctx.datasets)),
        "timezone": str(preferences.get_zone()),
        "outputFormat": "csv",
        "tag": f"console-{today.isoformat()}",
    }


def _preset_days(preset: str, zone_name: str) -> dict[str, str]:
    """Returns the first and last day of a preset; nothing for an unknown one."""
    days = _find_days(preset, zone_name)
    return {"startDate": days[0].isoformat(), "endDate": days[1].isoformat()} if days else {}


def _find_days(preset: str, zone_name: str) -> tuple[date, date] | None:
    try:
        today = read_clock().astimezone(load_zone(zone_name)).date()
        return schedules.window_dates(preset, today)
    except ValueError:
        return None


def _list_presets(zone_name: str) -> list[tuple[str, str, tuple[date, date] | None]]:
    """Returns the name, label and days of each preset, as they are in a time zone now."""
    return [
        (name, str(label), _find_days(name, zone_name)) for name, label in _PRESET_LABELS.items()
    ]


def _render_form(
    request: HttpRequest,
    ctx: ChannelContext,
    parsed: ParsedRequest,
    status: int = 200,
    **context: Any,
) -> HttpResponse:
    response = render_page(
        request,
        ctx,
        "new_export.html",
        {
            "params": parsed.params,
            "errors": parsed.errors,
            "datasets": list(ctx.datasets.values()),
            "formats": format_choices(),
            "file_destinations": file_destination_choices(ctx),
            "presets": _list_presets(parsed.params.get("timezone", "UTC")),
            "encryption": _read_encryption(ctx),
            "has_more": _has_more(parsed),
            "priorities": _list_priorities(),
            "zones": zone_choices(),
            **filter_choices(ctx, parsed.params),
            **column_choices(ctx, parsed.params),
            **conversation_choices(ctx, parsed.params),
            **context,
        },
        status,
    )
    if "preset" in request.POST:
        response["HX-Trigger-After-Swap"] = "preview"
    return response


def _has_more(parsed: ParsedRequest) -> bool:
    """Returns whether a field behind “More options” has an error, or a value of its own."""
    defaults = {"", "interactive"}
    return any(
        name in parsed.errors or parsed.params.get(name, "") not in defaults
        for name in _MORE_FIELDS
    )


def _read_encryption(ctx: ChannelContext) -> dict[str, str]:
    """Returns the channel's public key, and the encryption that its private files must have."""
    row = Channel.objects.only("recipient", "private_encryption").get(pk=ctx.channel_id)
    return {"recipient": row.recipient, "required": row.private_encryption}


def _list_priorities() -> list[tuple[str, str]]:
    hour = f"{settings.EXHAUST_DAILY_HOUR:02}:00 {settings.EXHAUST_DAILY_TIMEZONE}"
    return [
        ("interactive", _("Now")),
        ("low", _("After all other exports")),
        ("nightly", _("Tonight, from %(hour)s") % {"hour": hour}),
    ]


def format_choices() -> list[tuple[str, str]]:
    return [(name, str(_FORMAT_LABELS.get(name, name))) for name in FORMATS]


def file_destination_choices(ctx: ChannelContext) -> list[tuple[str, str]]:
    """Returns the destinations that an export can name; empty where there are none."""
    rows = Destination.objects.filter(channel=ctx.channel_id, kind__in=Destination.FILE_KINDS)
    names = list(rows.order_by("name").values_list("name", flat=True))
    return [("", _("Nowhere else")), *((name, name) for name in names)] if names else []


def application_choices(ctx: ChannelContext, selected: str) -> list[tuple[str, str]]:
    """Returns the applications to choose from, and the selected one even if it is unknown."""
    rows = Application.objects.filter(channel=ctx.channel_id).order_by("identifier")
    names = {
        row.identifier: f"{row.name} ({row.identifier})" if row.name else row.identifier
        for row in rows
    }
    return [("", _("All")), *({selected: selected} | names if selected else names).items()]


def filter_choices(ctx: ChannelContext, params: Mapping[str, str]) -> dict[str, Any]:
    """Returns the fields that narrow or shape the rows, each for the datasets that take it."""
    return {
        "has_filters": any(
            set(_FILTER_FIELDS) & set(each.optional_fields) for each in ctx.datasets.values()
        ),
        "choice_fields": [(name, *field) for name, field in _CHOICE_FIELDS.items()],
        "applications": application_choices(ctx, params.get("application", "")),
    }


def column_choices(ctx: ChannelContext, params: Mapping[str, str]) -> dict[str, Any]:
    """Returns each dataset's columns to check, the checked ones first; layouts; zones of times."""
    checked = split_lines(params.get("columns", ""))
    datasets = list(ctx.datasets.values())
    choices = []
    for each in datasets:
        headers = checked if each.name == params.get("dataset") else []
        by_header = {column.header: column for column in list_columns(each)}
        picked = [by_header.pop(header) for header in headers if header in by_header]
        choices.append(ColumnChoice(each, picked, list(by_header.values())))
    layouts = sorted({name for each in datasets for name in each.layouts})
    return {
        "column_choices": choices,
        "layouts": [
            ("", _("All columns, or those you check")),
            *((name, name) for name in layouts),
        ],
        "timestamps": [("", _("UTC")), ("local", _("The time zone above"))],
    }


@dataclass(frozen=True)
class ColumnChoice:
    """A dataset's columns to choose from, those of the export first."""

    dataset: Dataset
    picked: list[Column]
    others: list[Column]


def zone_choices() -> list[str]:
    """Returns the time zones to choose from, UTC first."""
    return list_zone_names()


def conversation_choices(ctx: ChannelContext, params: Mapping[str, str]) -> dict[str, Any]:
    """Returns the conversations whose name or ID contains `q`, and the selected one."""
    q, selected = params.get("q", "").strip(), params.get("conversationId", "")
    matches, hint = find_conversations(ctx.channel_id, q, MAX_CONVERSATIONS)
    if selected and selected not in {row.identifier for row in matches}:
        matches = [
            *Conversation.objects.filter(channel=ctx.channel_id, identifier=selected),
            *matches,
        ][:MAX_CONVERSATIONS]
    if len(matches) == 1 and not q:
        selected = matches[0].identifier  # the only one
    return {"matches": matches, "selected": selected, "hint": hint, "q": q}


def find_conversations(channel_id: int, q: str, limit: int) -> tuple[list[Conversation], str]:
    """Returns conversations by name, those with a name first, and a hint where there are more."""
    rows = Conversation.objects.filter(channel=channel_id)
    if q:
        rows = rows.filter(Q(name__icontains=q) | Q(identifier__icontains=q))
    named_first = rows.alias(nameless=ExpressionWrapper(Q(name=""), BooleanField())).order_by(
        "nameless", "name", "identifier"
    )
    try:
        with time_limit.limit_query_seconds(SEARCH_SECONDS):
            matches: list[Conversation] = list(named_first[: limit + 1])
    except TimeoutError:
        exact = Conversation.objects.filter(channel=channel_id, identifier=q)
        return list(exact), _("The search took too long. Type the whole ID.")
    more = _("There are more. Type part of the name.") if len(matches) > limit else ""
    return matches[:limit], more


@requires(*SUBMIT_PERMISSIONS, form_query=form_query)
def search_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Renders the form's list of conversations for a search."""
    params = clean_params(request.GET)
    return render_page(
        request,
        ctx,
        "conversation_matches.html",
        {"params": params, **conversation_choices(ctx, params)},
    )


@requires(*SUBMIT_PERMISSIONS, methods=("POST",), form_query=form_query)
def show_preview(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Renders the form's preview. An incomplete form gets hints, not an error status."""
    parsed = parse_request_form(ctx, read_form(request.POST))
    context: dict[str, Any] = {"errors": parsed.errors}
    if parsed.submission:
        context |= _build_preview(ctx, parsed.submission)
    return render_page(request, ctx, "export_preview.html", context)


@dataclass(frozen=True)
class PreviewPage:
    """A preview with the headers of its columns."""

    preview: previews.Preview

    @property
    def headers(self) -> list[str]:
        return [column.header for column in self.preview.columns]

    @property
    def rows(self) -> list[list[tuple[str, Cell]]]:
        """The first rows, each cell with the header of its column."""
        return [[*zip(self.headers, row, strict=True)] for row in self.preview.rows]


def _build_preview(ctx: ChannelContext, submission: Submission) -> dict[str, Any]:
    """Returns the preview, and the export that answers the same question already, with its age."""
    context: dict[str, Any] = {"preview": PreviewPage(previews.build_preview(submission))}
    job = repeats.find_same(submission, ctx.readable)
    if job is not None:
        (context["existing"],) = exports.job_views([job])
        context["age"] = repeats.measure_age(job)
    return context
