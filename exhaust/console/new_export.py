"""The form of a new export: validated by the API's serializer, with a preview."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import available_timezones

from django.contrib import messages
from django.db.models import BooleanField, ExpressionWrapper, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

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
from exhaust.datasets import DATASETS
from exhaust.datasets.selection import load_zone
from exhaust.files.formats import FORMATS
from exhaust.jobs import preview as previews
from exhaust.jobs import schedules, submit
from exhaust.jobs.submit import Submission
from ingest.db.clock import read_clock
from ingest.events import RequestError
from ingest.models import Application, Conversation

SEARCH_SECONDS = 3.0
MAX_CONVERSATIONS = 8
PRESETS = ("yesterday", "last 7 days", "last 30 days", "this month", "last month")
# the API's names, so that its errors find their field
_CONFIG_FIELDS = ("conversationId", "application", "startDate", "endDate", "timezone", "since")
_REQUEST_FIELDS = ("tag", "dataset", "outputFormat", "callbackUrl", "encryption")
_FILTER_FIELDS = ("types", "application")
_FORMAT_LABELS = {
    "csv": "CSV, for programs",
    "csv.gz": "CSV, compressed (gzip)",
    "csv-excel": "CSV, for Excel",
    "xlsx": "Excel (XLSX)",
    "jsonl": "JSON Lines",
    "jsonl.gz": "JSON Lines, compressed (gzip)",
    "parquet": "Parquet, for analysis",
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
    accepted_fields = (
        (*DATASETS[dataset].required_fields, *DATASETS[dataset].optional_fields)
        if is_dataset(dataset)
        else ()
    )
    config: dict[str, Any] = {
        name: params[name]
        for name in _CONFIG_FIELDS
        if name in params and (name != "conversationId" or name in accepted_fields)
    }
    if "types" in params:
        config["types"] = split_lines(params["types"])
    request: dict[str, Any] = {"requestedBy": ctx.username, "datasetConfig": config}
    request |= {name: params[name] for name in _REQUEST_FIELDS if name in params}
    if form.get("encryptionKey"):
        request["encryptionKey"] = form["encryptionKey"]
    if dataset:
        config["type"] = dataset
    serializer = validation.SubmitBody(data={"request": request})
    if not serializer.is_valid():
        parsed.errors = flatten_errors(serializer.errors.get("request", {}))
    if is_dataset(dataset) and dataset not in ctx.datasets:
        parsed.errors["dataset"] = "You may not export this dataset here. Choose another."
    if params.get("encryption") == "password" and not form.get("encryptionKey"):
        parsed.errors["encryptionKey"] = (
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


def split_lines(text: str) -> list[str]:
    """Returns the lines of a multi-line field, without blank ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_dataset(dataset: str) -> bool:
    return dataset in DATASETS


def field_errors(error: RequestError) -> dict[str, str]:
    """`request.datasetConfig.since: …` beside its field; what names none stands above all."""
    path, separator, sentence = error.detail.partition(": ")
    if separator and path.startswith("request."):
        name = path.rpartition(".")[2]
        return {"encryptionKey" if name == "encryption" else name: sentence}
    return {"": error.detail}


_REQUIRED_MESSAGES = {
    "conversationId": "Choose a conversation.",
    "startDate": "Choose the first day.",
    "endDate": "Choose the last day.",
    "dataset": "Choose a dataset.",
    "tag": "Enter a tag, so that you find the export again.",
    "url": "Enter the address of the destination.",
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
        sentences[name] = _REQUIRED_MESSAGES.get(name, str(first)) if is_missing else str(first)
    return sentences


# The pages ----------------------------------------------------------------------------------------


@requires(*SUBMIT_PERMISSIONS, methods=("GET", "POST"))
def create_request(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Shows the form, or handles one of its buttons: search, preset, preview, send."""
    if request.method != "POST":
        params = _default_params(ctx) | clean_params(request.GET)
        return _render_form(request, ctx, ParsedRequest(params))
    params = clean_params(request.POST)
    if preset := request.POST.get("preset"):
        params |= _preset_days(preset, params.get("timezone", "UTC"))
        return _render_form(request, ctx, ParsedRequest(params))
    action = request.POST.get("act", "preview")
    if action == "search":
        return _render_form(request, ctx, ParsedRequest(params))
    parsed = parse_request_form(ctx, params)
    if action == "send" and parsed.submission:
        try:
            job = submit.submit(parsed.submission)
        except RequestError as error:
            parsed.errors = field_errors(error)
            return _render_form(request, ctx, parsed, error.status)
        messages.success(request, "Export queued. The file appears here when it is ready.")
        return redirect(exports.job_url(job))
    context = {"preview": _build_preview(parsed.submission)} if parsed.submission else {}
    return _render_form(request, ctx, parsed, 400 if parsed.errors else 200, **context)


def _default_params(ctx: ChannelContext) -> dict[str, str]:
    """Returns the values of an empty form."""
    today = read_clock().date()
    return {
        "dataset": ctx.datasets[0],
        "timezone": "UTC",
        "outputFormat": "csv",
        "tag": f"console-{today.isoformat()}",
    }


def _preset_days(preset: str, zone_name: str) -> dict[str, str]:
    """Returns the first and last day of a preset; nothing for an unknown one."""
    try:
        first, last = schedules.window_dates(
            preset, read_clock().astimezone(load_zone(zone_name)).date()
        )
    except ValueError:
        return {}
    return {"startDate": first.isoformat(), "endDate": last.isoformat()}


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
            "datasets": [DATASETS[name] for name in ctx.datasets],
            "formats": format_choices(),
            "has_filters": any(
                set(_FILTER_FIELDS) & set(DATASETS[name].optional_fields) for name in ctx.datasets
            ),
            "applications": _application_choices(ctx, parsed.params.get("application", "")),
            "presets": PRESETS,
            "zones": zone_choices(),
            **conversation_choices(ctx, parsed.params),
            **context,
        },
        status,
    )
    if "preset" in request.POST:
        response["HX-Trigger-After-Swap"] = "preview"
    return response


def format_choices() -> list[tuple[str, str]]:
    return [(name, _FORMAT_LABELS.get(name, name)) for name in FORMATS]


def _application_choices(ctx: ChannelContext, selected: str) -> list[tuple[str, str]]:
    """Returns the applications to choose from, and the selected one even if it is unknown."""
    rows = Application.objects.filter(channel=ctx.channel_id).order_by("identifier")
    names = {
        row.identifier: f"{row.name} ({row.identifier})" if row.name else row.identifier
        for row in rows
    }
    return [("", "All"), *({selected: selected} | names if selected else names).items()]


def zone_choices() -> list[str]:
    """Returns the time zones to choose from, UTC first."""
    return ["UTC", *sorted(name for name in available_timezones() if "/" in name)]


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
        with previews.limit_query_seconds(SEARCH_SECONDS):
            matches: list[Conversation] = list(named_first[: limit + 1])
    except TimeoutError:
        exact = Conversation.objects.filter(channel=channel_id, identifier=q)
        return list(exact), "The search took too long. Type the whole ID."
    more = "There are more. Type part of the name." if len(matches) > limit else ""
    return matches[:limit], more


@requires(*SUBMIT_PERMISSIONS)
def search_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Renders the form's list of conversations for a search."""
    params = clean_params(request.GET)
    return render_page(
        request,
        ctx,
        "conversation_matches.html",
        {"params": params, **conversation_choices(ctx, params)},
    )


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def show_preview(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """Renders the form's preview. An incomplete form gets hints, not an error status."""
    parsed = parse_request_form(ctx, clean_params(request.POST))
    context: dict[str, Any] = {"errors": parsed.errors}
    if parsed.submission:
        context["preview"] = _build_preview(parsed.submission)
    return render_page(request, ctx, "export_preview.html", context)


@dataclass(frozen=True)
class PreviewPage:
    """A preview with the headers of its columns."""

    preview: previews.Preview
    headers: list[str]

    @property
    def is_estimate(self) -> bool:
        return not self.preview.is_counted


def _build_preview(submission: Submission) -> PreviewPage:
    columns = DATASETS[submission.dataset].columns
    return PreviewPage(previews.build_preview(submission), [column.header for column in columns])
