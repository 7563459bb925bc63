"""The query of a list, a read and a search; each error names the field and the remedy."""

import re
from typing import Any

from rest_framework import serializers

from exhaust.api.field_names import EnvelopeSerializer, StrictSerializer
from exhaust.api.validation import DATASET, ChoiceField, DayField
from exhaust.models import Job
from ingest.http.schema import Text

MAX_WAIT_SECONDS = 30


def read_wait(text: str) -> int:
    """Returns the seconds that a read may wait. Raises `ValidationError` (400)."""
    if re.fullmatch("[0-9]{1,2}", text) and int(text) <= MAX_WAIT_SECONDS:
        return int(text)
    sentence = f"Whole seconds from 0 to {MAX_WAIT_SECONDS}."
    raise serializers.ValidationError({"wait": sentence})


class Paging(serializers.Serializer[dict[str, Any]]):
    """The query of a list."""

    limit = serializers.IntegerField(
        min_value=1, max_value=1000, default=100, help_text="The largest number of rows."
    )
    cursor = serializers.CharField(
        required=False,
        allow_null=True,
        default=None,
        help_text="nextCursor of the previous page, unchanged.",
    )


class OneOrMany(serializers.ListField):
    """One value, or a list of them."""

    def to_internal_value(self, data: Any) -> list[Any]:
        return list(super().to_internal_value([data] if isinstance(data, str) else data))


class SearchFilters(StrictSerializer):
    """Filters of a search, all optional. Days are those of the submission, in UTC."""

    noun = "filter"
    dataset = OneOrMany(
        child=Text(DATASET, max_length=64),
        required=False,
        max_length=100,
        help_text="A dataset or a list.",
    )
    status = OneOrMany(
        child=ChoiceField(Job.Status.values),
        required=False,
        max_length=len(Job.Status.values),
        help_text="A status or a list.",
    )
    channel = serializers.CharField(
        required=False, help_text="A channel of the key; overrides X-Channel-ID."
    )
    requestedBy = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The requester."
    )
    tag = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The whole tag, or tag:channel."
    )
    tagPrefix = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The start of the tag."
    )
    requestId = serializers.CharField(required=False, help_text="The id of the export.")
    conversationId = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The conversation."
    )
    text = serializers.CharField(
        required=False,
        max_length=255,
        help_text="A part of the tag, of the id, or of the conversation's id or name, in any case.",
    )
    requestedDate = DayField(required=False, help_text="The day of the submission, UTC.")
    requestedFrom = DayField(required=False, help_text="The first day of submissions, UTC.")
    requestedTo = DayField(required=False, help_text="The last day of submissions, UTC.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "requestedDate" in attrs and {"requestedFrom", "requestedTo"} & set(attrs):
            raise serializers.ValidationError(
                {"requestedDate": "Either this, or requestedFrom and requestedTo."}
            )
        return attrs


class SearchRequest(Paging, StrictSerializer):
    """The `request` of a search."""

    filters = SearchFilters(required=False, default=dict, help_text="The filters; by default none.")


class SearchBody(EnvelopeSerializer):
    """The body of a search; the other fields of the envelope are ignored."""

    example = {
        "request": {"filters": {"status": ["SUCCESS", "FAILED"], "tagPrefix": "april"}, "limit": 50}
    }
    request = SearchRequest(help_text="The search.")
