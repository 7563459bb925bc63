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
from exhaust.api.views import build_submission
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
from ingest.events import RequestError
from ingest.models import Application, Conversation

MAX_CONVERSATIONS = 8
PRESETS = ("yesterday", "last 7 days", "last 30 days", "this month", "last month")
# names are the API's, so that its errors stand beside the right field
_CONFIG_FIELDS = ("conversationId", "application", "startDate", "endDate", "timezone", "since")
_REQUEST_FIELDS = ("tag", "dataset", "outputFormat", "callbackUrl", "encryption")
_NARROWING_FIELDS = ("types", "application")
_FORMAT_LABELS = {
    "csv": "CSV, for spreadsheets",
    "csv.gz": "CSV, packed",
    "xlsx": "Excel",
    "jsonl": "JSON Lines",
    "jsonl.gz": "JSON Lines, packed",
    "parquet": "Parquet, for analysis",
}


@dataclass
class ParsedRequest:
    """What was typed, what is wrong with it by field, and the submission where nothing is."""

    params: dict[str, str]
    errors: dict[str, str] = field(default_factory=dict)
    submission: Submission | None = None


def parse_request_form(ctx: ChannelContext, form: Mapping[str, str]) -> ParsedRequest:
    """The form by the API's rules; what was typed is kept as it was."""
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
        parsed.errors["dataset"] = "You may not ask for this one here; choose another."
    if params.get("encryption") == "password" and not form.get("encryptionKey"):
        parsed.errors["encryptionKey"] = "Type the password again; it is not kept between tries."
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
    """What a field holds that takes one a line."""
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
    "dataset": "Choose what you want.",
    "tag": "Name the request, so that it can be found again.",
    "url": "Say where to send.",
}


def flatten_errors(errors: Mapping[str, Any]) -> dict[str, str]:
    """A serializer's errors, the first of each field, in a form's words."""
    sentences: dict[str, str] = {}
    for name, error in errors.items():
        if isinstance(error, Mapping):
            inner = flatten_errors(error)
            if any(isinstance(index, int) for index in error):  # of a list's items the first
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
    """The form. Each button of it sends all of it: search, days, preview, send."""
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
        messages.success(request, "Your request is in. The file appears here when it is ready.")
        return redirect(exports.job_url(job))
    context = {"preview": _build_preview(parsed.submission)} if parsed.submission else {}
    return _render_form(request, ctx, parsed, 400 if parsed.errors else 200, **context)


def _default_params(ctx: ChannelContext) -> dict[str, str]:
    """What a new form holds."""
    today = timezone.now().date()
    return {
        "dataset": ctx.datasets[0],
        "timezone": "UTC",
        "outputFormat": "csv",
        "tag": f"console-{today.isoformat()}",
    }


def _preset_days(preset: str, zone_name: str) -> dict[str, str]:
    """First and last day of a preset, seen from now; nothing where it is none."""
    try:
        first, last = schedules.window_dates(
            preset, timezone.now().astimezone(load_zone(zone_name)).date()
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
        "ask.html",
        {
            "params": parsed.params,
            "errors": parsed.errors,
            "datasets": [DATASETS[name] for name in ctx.datasets],
            "formats": format_choices(),
            "narrowed": any(
                set(_NARROWING_FIELDS) & set(DATASETS[name].optional_fields)
                for name in ctx.datasets
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
    """What a form offers; what was said is kept, though there is none of that name."""
    rows = Application.objects.filter(channel=ctx.channel_id).order_by("identifier")
    names = {
        row.identifier: f"{row.name} ({row.identifier})" if row.name else row.identifier
        for row in rows
    }
    return [("", "All"), *({selected: selected} | names if selected else names).items()]


def zone_choices() -> list[str]:
    """What a form offers, UTC first."""
    return ["UTC", *sorted(name for name in available_timezones() if "/" in name)]


def conversation_choices(ctx: ChannelContext, params: Mapping[str, str]) -> dict[str, Any]:
    """The conversations to choose from: those whose name or id holds `q`, and the chosen one."""
    q, selected = params.get("q", "").strip(), params.get("conversationId", "")
    rows = filter_conversations(ctx.channel_id, q)
    matches = list(rows[: MAX_CONVERSATIONS + 1])
    if selected and selected not in {row.identifier for row in matches[:MAX_CONVERSATIONS]}:
        matches = [
            *rows.model.objects.filter(channel=ctx.channel_id, identifier=selected),
            *matches,
        ]
    if len(matches) == 1 and not q:
        selected = matches[0].identifier  # there is nothing to choose
    return {
        "found": matches[:MAX_CONVERSATIONS],
        "chosen": selected,
        "more": len(matches) > MAX_CONVERSATIONS,
        "q": q,
    }


def filter_conversations(channel_id: int, q: str) -> Any:
    """Conversations by name; the named ones first."""
    rows = Conversation.objects.filter(channel=channel_id)
    if q:
        rows = rows.filter(Q(name__icontains=q) | Q(identifier__icontains=q))
    return rows.alias(nameless=ExpressionWrapper(Q(name=""), BooleanField())).order_by(
        "nameless", "name", "identifier"
    )


@requires(*SUBMIT_PERMISSIONS)
def search_conversations(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """The part of the form that lists them, while somebody types."""
    params = clean_params(request.GET)
    return render_page(
        request, ctx, "ask_found.html", {"params": params, **conversation_choices(ctx, params)}
    )


@requires(*SUBMIT_PERMISSIONS, methods=("POST",))
def show_preview(request: HttpRequest, ctx: ChannelContext) -> HttpResponse:
    """The part of the form that shows what would come; incomplete is not wrong yet."""
    parsed = parse_request_form(ctx, clean_params(request.POST))
    context: dict[str, Any] = {"errors": parsed.errors}
    if parsed.submission:
        context["preview"] = _build_preview(parsed.submission)
    return render_page(request, ctx, "ask_preview.html", context)


@dataclass(frozen=True)
class PreviewPage:
    """A preview as the page shows it."""

    preview: previews.Preview
    headers: list[str]

    @property
    def is_estimate(self) -> bool:
        return not self.preview.is_counted


def _build_preview(submission: Submission) -> PreviewPage:
    columns = DATASETS[submission.dataset].columns
    return PreviewPage(previews.build_preview(submission), [column.header for column in columns])
