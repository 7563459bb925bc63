"""The audit log in the dataset API: pages, in the envelope or as CSV."""

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import HttpResponse
from rest_framework import serializers
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

from exhaust.api import channel_bodies, envelope, list_fields, responses, validation
from exhaust.api.base import DatasetView
from exhaust.datasets.cells import escape_formula
from exhaust.feed import cursor
from exhaust.files.formats.lines import format_csv_line
from ingest.audit import reads
from ingest.auth import keys
from ingest.http.schema import extend_schema
from ingest.models import AuditEvent

CSV_HEADERS = (
    "ID", "Time", "Action", "Outcome", "Actor", "Key", "Channel", "Subject", "Address", "Details",
)  # fmt: skip
ONE_DAY = timedelta(days=1)
WINDOW_ROWS = 10_000  # that a page searches, however rare its action is


def filter_events(
    channel: str | None = None,
    first_day: date | None = None,
    last_day: date | None = None,
) -> QuerySet[AuditEvent]:
    """Returns events by time. Days are in UTC and both are included; None stands for all."""
    conditions: dict[str, Any] = {}
    if channel is not None:
        conditions["channel"] = channel
    if first_day is not None:
        conditions["recorded_at__gte"] = datetime.combine(first_day, time.min, UTC)
    if last_day is not None:
        conditions["recorded_at__lt"] = datetime.combine(last_day + ONE_DAY, time.min, UTC)
    return AuditEvent.objects.filter(**conditions).order_by("recorded_at", "id")


def _limit_to_window(
    events: QuerySet[AuditEvent],
) -> tuple[QuerySet[AuditEvent], AuditEvent | None]:
    """Returns the first `WINDOW_ROWS` events, and the last of them; None where no more follow."""
    ends = list(events.only("recorded_at")[WINDOW_ROWS - 1 : WINDOW_ROWS + 1])
    if len(ends) < 2:
        return events, None
    last = ends[0]
    is_before = Q(recorded_at__lt=last.recorded_at) | Q(
        recorded_at=last.recorded_at, id__lte=last.pk
    )
    return events.filter(is_before, recorded_at__lte=last.recorded_at), last


def render_csv(events: Iterable[AuditEvent]) -> Iterable[bytes]:
    """Yields a header and a line for each event, in the format of the exports."""
    yield format_csv_line(CSV_HEADERS)
    for event in events:
        timestamp = event.recorded_at.astimezone(UTC).isoformat(timespec="milliseconds")
        cells = list(channel_bodies.AuditEvent.render(event).values())[2:-1]
        details = json.dumps(event.details, sort_keys=True, ensure_ascii=False)
        yield format_csv_line(
            [str(event.pk), timestamp, *(escape_formula(cell) or None for cell in cells), details]
        )


class AuditQuery(list_fields.Paging):
    """The query of a page."""

    action = serializers.CharField(max_length=64, default="", help_text="One action.")
    format = validation.ChoiceField(["json", "csv"], required=False, help_text="json or csv.")

    def get_fields(self) -> dict[str, Any]:
        days = {  # `from` is a keyword of Python
            name: serializers.DateField(
                default=None, input_formats=["%Y-%m-%d"], help_text=f"The {which} day, UTC."
            )
            for name, which in (("from", "first"), ("to", "last"))
        }
        return {**super().get_fields(), **days}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        for name in ("from", "to"):
            if attrs[name] and not 1970 <= attrs[name].year <= 9000:
                raise serializers.ValidationError({name: "Write a day as YYYY-MM-DD."})
        if attrs["from"] and attrs["to"] and attrs["from"] > attrs["to"]:
            raise serializers.ValidationError({"to": "Must not lie before from."})
        if "\0" in attrs["action"]:
            raise serializers.ValidationError({"action": "Holds a character that no action has."})
        return attrs


class AuditView(DatasetView):
    operation = "audit.list"
    openapi_tag = "Operate"

    def perform_content_negotiation(
        self, request: Request, force: bool = False
    ) -> tuple[BaseRenderer, str]:
        renderer = self.get_renderers()[0]  # CSV is made here; an error is always JSON
        return renderer, renderer.media_type

    @extend_schema(
        "listAuditEvents",
        {
            200: responses.AuditPage,
            (200, "text/csv"): {
                "type": "string",
                "description": "A header, then an entry a line.",
                "examples": ["ID,Time,Action,Outcome,Actor,Key,Channel,…"],
            },
        },
        parameters=[AuditQuery],
    )
    def get(self, request: Request) -> HttpResponse:
        """List the audit log.

        Needs `audit`. CSV for `Accept: text/csv` too. With `action` a page can be empty and have a
        next one.
        """
        params = validation.read_fields(AuditQuery, request.query_params.dict())
        keys.get_caller(request).require("audit")
        _, channel = self.resolve_channel(request)
        events = filter_events(channel, params["from"], params["to"])
        query_fingerprint = [
            "audit",
            channel,
            str(params["from"]),
            str(params["to"]),
            params["action"],
        ]
        if params["cursor"] is not None:
            last_time, pk = cursor.decode(params["cursor"], query_fingerprint)
            last_moment = datetime.fromisoformat(last_time)
            events = events.filter(
                Q(recorded_at__gt=last_moment) | Q(recorded_at=last_moment, id__gt=pk),
                recorded_at__gte=last_moment,
            )
        last = None
        if params["action"]:
            events, last = _limit_to_window(events)
            events = events.filter(action=params["action"])
        rows = list(events[: params["limit"] + 1])
        shown = envelope.cut_list(rows[: params["limit"]], lambda row: len(str(row.details)))
        has_more, rows = len(rows) > len(shown), list(shown)
        last = rows[-1] if has_more else last
        next_cursor = (
            cursor.encode([last.recorded_at.isoformat(), last.pk], query_fingerprint)
            if last
            else None
        )
        reads.count_read("audit.viewed", channel, "api", len(rows))
        response: HttpResponse
        if params.get("format", _preferred_format(request)) == "csv":
            response = HttpResponse(
                b"".join(render_csv(rows)), content_type="text/csv; charset=utf-8"
            )
            response["Content-Disposition"] = 'attachment; filename="audit.csv"'
            if next_cursor:
                query = urlencode({**request.query_params.dict(), "cursor": next_cursor})
                response["Link"] = (
                    f'<{request.build_absolute_uri(request.path)}?{query}>; rel="next"'
                )
        else:
            items = [channel_bodies.AuditEvent.render(event) for event in rows]
            result = {"count": len(items), "entries": items, "nextCursor": next_cursor}
            response = envelope.build_success(self.operation, result)
        return response


def _preferred_format(request: Request) -> str:
    return "csv" if request.headers.get("Accept", "").startswith("text/csv") else "json"
