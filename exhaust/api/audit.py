"""The ledger for auditors: page by page, in the envelope or as CSV."""

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

from exhaust.api import envelope, validation
from exhaust.api.views import DatasetView
from exhaust.datasets.columns import guarded
from exhaust.feed import cursor
from exhaust.feed.documents import milliseconds
from exhaust.files.formats.lines import csv_line
from ingest.auth import keys
from ingest.models import LedgerEntry

HEADERS = (
    "ID", "Time", "Action", "Outcome", "Actor", "Key", "Channel", "Subject", "Address", "Details",
)  # fmt: skip
_DAY = timedelta(days=1)


def entries(
    channel: str | None = None,
    first: date | None = None,
    last: date | None = None,
    action: str = "",
) -> QuerySet[LedgerEntry]:
    """By time; of all channels where none is named. Days are UTC's, both ends included."""
    asked: dict[str, Any] = {}
    if channel is not None:
        asked["channel"] = channel
    if first is not None:
        asked["at__gte"] = datetime.combine(first, time.min, UTC)
    if last is not None:
        asked["at__lt"] = datetime.combine(last + _DAY, time.min, UTC)
    if action:
        asked["action"] = action
    return LedgerEntry.objects.filter(**asked).order_by("at", "id")


def presented(entry: LedgerEntry) -> dict[str, Any]:
    return {
        "id": entry.pk,
        "time": milliseconds(entry.at),
        "action": entry.action,
        "outcome": entry.outcome,
        "actor": entry.actor,
        "key": entry.key,
        "channel": entry.channel,
        "subject": entry.subject,
        "address": entry.address,
        "details": entry.details,
    }


def csv(found: Iterable[LedgerEntry]) -> Iterable[bytes]:
    """Lines, a header first, as the exhausts' are."""
    yield csv_line(HEADERS)
    for entry in found:
        when = entry.at.astimezone(UTC).isoformat(timespec="milliseconds")
        said = list(presented(entry).values())[2:-1]
        details = json.dumps(entry.details, sort_keys=True, ensure_ascii=False)
        yield csv_line([str(entry.pk), when, *(guarded(word) or None for word in said), details])


class Query(validation.Paging):
    """What a page is asked with."""

    action = serializers.CharField(max_length=64, default="")
    format = validation.OneOf(["json", "csv"], required=False)

    def get_fields(self) -> dict[str, Any]:
        days = {  # the one is a word of Python's
            name: serializers.DateField(default=None, input_formats=["%Y-%m-%d"])
            for name in ("from", "to")
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


class LedgerView(DatasetView):
    """`GET /dataset/v1/ledger?from=&to=&action=&limit=&cursor=&format=`"""

    operation = "ledger.list"

    def perform_content_negotiation(
        self, request: Request, force: bool = False
    ) -> tuple[BaseRenderer, str]:
        renderer = self.get_renderers()[0]  # CSV is made here; an error is always JSON
        return renderer, renderer.media_type

    def get(self, request: Request) -> HttpResponse:
        asked = Query(data=request.query_params.dict())
        asked.is_valid(raise_exception=True)
        said: dict[str, Any] = asked.validated_data
        keys.caller(request).require("audit")
        _, channel = self.channel(request)
        found = entries(channel, said["from"], said["to"], said["action"])
        question = ["ledger", channel, str(said["from"]), str(said["to"]), said["action"]]
        if said["cursor"] is not None:
            at, pk = cursor.unseal(said["cursor"], question)
            moment = datetime.fromisoformat(at)
            found = found.filter(Q(at__gt=moment) | Q(at=moment, id__gt=pk), at__gte=moment)
        rows = list(found[: said["limit"] + 1])
        more = len(rows) > said["limit"]
        rows = rows[: said["limit"]]
        next_ = cursor.seal([rows[-1].at.isoformat(), rows[-1].pk], question) if more else None
        answer: HttpResponse
        if said.get("format", _accepted(request)) == "csv":
            answer = HttpResponse(b"".join(csv(rows)), content_type="text/csv; charset=utf-8")
            answer["Content-Disposition"] = 'attachment; filename="ledger.csv"'
            if next_:
                query = urlencode({**request.query_params.dict(), "cursor": next_})
                answer["Link"] = f'<{request.build_absolute_uri(request.path)}?{query}>; rel="next"'
        else:
            told = [presented(entry) for entry in rows]
            result = {"count": len(told), "entries": told, "nextCursor": next_}
            answer = envelope.wrapped(self.operation, result)
        answer["Cache-Control"] = "no-store"
        return answer


def _accepted(request: Request) -> str:
    return "csv" if request.headers.get("Accept", "").startswith("text/csv") else "json"
