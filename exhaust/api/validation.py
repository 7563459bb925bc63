"""The fields of submitted requests; each error names the field and the remedy.

A dataset checks its own filters (`Dataset.find_errors`), and `exhaust.jobs.submit` what needs the
database: applications, `since`.
"""

import re
from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Any

from django.conf import settings
from rest_framework import serializers

from exhaust.datasets import DATASETS
from exhaust.datasets.selection import load_zone
from exhaust.delivery import http_client
from exhaust.files.formats import FORMATS
from exhaust.models import Job
from ingest.http.schema import Text
from ingest.models import IDENTIFIER, IDENTIFIER_RULE

DATASET = {"enum": list(DATASETS)}
URL = {"format": "uri", "maxLength": 2000}
MAX_TYPES = 100  # event types of a query


def read_fields(serializer: type[serializers.Serializer[Any]], data: Any) -> dict[str, Any]:
    """Returns the validated fields. Raises `ValidationError`, which names the field."""
    try:
        fields: dict[str, Any] = _shared(serializer).run_validation(data)
    except serializers.ValidationError:  # once more, for the error in DRF's own shape
        bound = serializer(data=data)
        bound.is_valid(raise_exception=True)
        fields = bound.validated_data
    return fields


@cache
def _shared(serializer: type[serializers.Serializer[Any]]) -> serializers.Serializer[Any]:
    """Returns an instance that keeps no state between calls: to copy its fields takes longer than
    to validate by them."""
    return serializer()


class FormatField(Text):
    """The name of a file format, in any case."""

    schema = {"enum": list(FORMATS)}

    def to_internal_value(self, data: Any) -> str:
        name = super().to_internal_value(data).lower()
        if name not in FORMATS:
            raise serializers.ValidationError(f"One of {', '.join(FORMATS)}.")
        return name


class ChoiceField(serializers.ChoiceField):
    """A choice whose error lists the values, and never repeats the one that was sent."""

    def __init__(self, choices: Sequence[str], **options: Any) -> None:
        super().__init__(
            choices, error_messages={"invalid_choice": f"One of {', '.join(choices)}."}, **options
        )


class StrictSerializer(serializers.Serializer[dict[str, Any]]):
    """Rejects unknown fields, so that a misspelt one does not go unnoticed."""

    def to_internal_value(self, data: Any) -> Any:
        unknown = set(data) - set(self.fields) if isinstance(data, dict) else set()
        if unknown:
            raise serializers.ValidationError(
                {min(unknown): f"Unknown field; there are {', '.join(self.fields)}."}
            )
        return super().to_internal_value(data)


class DayField(Text):
    """A day, written as YYYY-MM-DD."""

    schema = {"format": "date"}

    def to_internal_value(self, data: Any) -> Any:
        value = super().to_internal_value(data)
        try:
            day = date.fromisoformat(value if _DAY_PATTERN.fullmatch(value) else "")
        except ValueError:
            day = date.min
        if not 1970 <= day.year <= 9000:
            raise serializers.ValidationError("Write a day as YYYY-MM-DD.")
        return day


_DAY_PATTERN = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


class DatasetConfig(serializers.Serializer[dict[str, Any]]):
    """The days and filters; each dataset names its filters. Further fields are stored and
    returned."""

    # the checked text is the stored one, so nothing is trimmed
    type = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The dataset again; optional."
    )
    conversationId = serializers.CharField(
        required=False,
        max_length=255,
        trim_whitespace=False,
        help_text="The conversation. Required for uci-response-exhaust and uci-private-exhaust.",
    )
    types = serializers.ListField(
        child=serializers.CharField(max_length=255, trim_whitespace=False),
        required=False,
        allow_empty=False,
        max_length=MAX_TYPES,
        help_text="Event types, for events-exhaust.",
    )
    application = serializers.CharField(
        required=False,
        max_length=128,
        trim_whitespace=False,
        help_text="An application of the channel, for events-exhaust and sessions-exhaust.",
    )
    since = serializers.CharField(
        required=False,
        max_length=32,
        trim_whitespace=False,
        help_text="The requestId of a SUCCESS: only data that arrived after it.",
    )
    startDate = DayField(trim_whitespace=False, help_text="The first day, included: YYYY-MM-DD.")
    endDate = DayField(
        trim_whitespace=False,
        help_text="The last day, included: YYYY-MM-DD, not before startDate.",
    )
    timezone = serializers.CharField(
        required=False,
        default="UTC",
        trim_whitespace=False,
        help_text="The time zone of the days: an IANA name.",
    )

    def to_internal_value(self, data: Any) -> Any:
        """Rejects a secret: these fields are stored and returned."""
        if isinstance(data, dict) and any(name.lower() == "encryptionkey" for name in data):
            raise serializers.ValidationError(
                {"encryptionKey": "Belongs into request, beside datasetConfig; move it there."}
            )
        return super().to_internal_value(data)

    def validate_timezone(self, value: str) -> str:
        try:
            load_zone(value)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from None
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        days = (attrs["endDate"] - attrs["startDate"]).days + 1
        if days < 1:
            raise serializers.ValidationError({"endDate": "Must not lie before startDate."})
        if days > settings.EXHAUST_MAX_DAYS:
            raise serializers.ValidationError(
                {"endDate": f"At most {settings.EXHAUST_MAX_DAYS} days at once; ask in parts."}
            )
        return attrs


class SubmitRequest(serializers.Serializer[dict[str, Any]]):
    """The `request` of a submission. `requestedChannel` is ignored: the header has the channel."""

    tag = serializers.RegexField(
        IDENTIFIER,
        error_messages={"invalid": IDENTIFIER_RULE},
        help_text="Your name for the request: letters, digits, '.', '_' and '-', up to 128; not"
        " '.' and not '..'.",
    )
    dataset = Text(DATASET, help_text="The dataset.")
    datasetConfig = DatasetConfig(
        help_text="The days and filters. Further fields are stored and returned."
    )
    requestedBy = serializers.CharField(
        max_length=255, required=False, help_text="The requester; by default the name of the key."
    )
    outputFormat = FormatField(
        required=False, help_text="The same as output_format; one of them is enough."
    )
    output_format = FormatField(required=False, help_text="The file format; by default csv.")
    priority = ChoiceField(
        [name.lower() for name in Job.Priority.names],
        required=False,
        default="interactive",
        help_text="nightly runs after all others.",
    )
    callbackUrl = Text(
        URL,
        required=False,
        trim_whitespace=False,
        help_text="Receives a signed POST when the export ends: http:// or https://.",
    )
    encryption = ChoiceField(
        ["password", "publickey"],
        required=False,
        allow_null=True,
        help_text="The file encryption: under encryptionKey, or for the channel's public key.",
    )
    encryptionKey = Text(
        {"minLength": 12, "maxLength": 128},
        required=False,
        allow_null=True,
        allow_blank=True,
        trim_whitespace=False,
        help_text="The password of an AES-256 zip of the file; deleted when the job ends.",
    )

    def validate_dataset(self, value: str) -> str:
        if value not in DATASETS:
            raise serializers.ValidationError(
                f"There is no dataset of that name; ask for one of {', '.join(DATASETS)}."
            )
        return value

    def validate_callbackUrl(self, value: str) -> str:
        try:
            http_client.split_url(value)
        except http_client.AddressNotAllowed as error:
            raise serializers.ValidationError(str(error)) from None
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        kind = attrs["datasetConfig"].get("type")
        if kind is not None and kind != attrs["dataset"]:
            raise serializers.ValidationError(
                {"datasetConfig": {"type": "Must be the same as dataset, or left out."}}
            )
        if faults := DATASETS[attrs["dataset"]].find_errors(attrs["datasetConfig"]):
            raise serializers.ValidationError({"datasetConfig": faults})
        formats = {attrs[name] for name in ("outputFormat", "output_format") if name in attrs}
        if len(formats) > 1:
            raise serializers.ValidationError(
                {"outputFormat": "Differs from output_format; leave one of them out."}
            )
        attrs["output_format"] = formats.pop() if formats else "csv"
        return attrs


class SubmitBody(serializers.Serializer[dict[str, Any]]):
    """The body of a submission; the other fields of the envelope are ignored."""

    example = {
        "request": {
            "tag": "april",
            "dataset": "uci-response-exhaust",
            "requestedBy": "asha",
            "datasetConfig": {
                "type": "uci-response-exhaust",
                "conversationId": "bot-1",
                "startDate": "2022-04-01",
                "endDate": "2022-04-30",
            },
        }
    }
    request = SubmitRequest(help_text="The request.")


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


class SearchFilters(serializers.Serializer[dict[str, Any]]):
    """Filters of a search, all optional. Days are those of the submission, in UTC."""

    dataset = OneOrMany(
        child=ChoiceField(list(DATASETS)),
        required=False,
        max_length=len(DATASETS),
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
        required=False, trim_whitespace=False, help_text="The whole tag, without the channel."
    )
    tagPrefix = serializers.CharField(
        required=False, trim_whitespace=False, help_text="The start of the tag."
    )
    requestedDate = DayField(required=False, help_text="The day of the submission, UTC.")
    requestedFrom = DayField(required=False, help_text="The first day of submissions, UTC.")
    requestedTo = DayField(required=False, help_text="The last day of submissions, UTC.")

    def to_internal_value(self, data: Any) -> Any:
        """Rejects unknown filters: to ignore one would find too much."""
        unknown = set(data) - set(self.fields) if isinstance(data, dict) else set()
        if unknown:
            raise serializers.ValidationError(
                {min(unknown): f"Unknown filter; there are {', '.join(self.fields)}."}
            )
        return super().to_internal_value(data)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if "requestedDate" in attrs and {"requestedFrom", "requestedTo"} & set(attrs):
            raise serializers.ValidationError(
                {"requestedDate": "Either this, or requestedFrom and requestedTo."}
            )
        return attrs


class SearchRequest(Paging):
    """The `request` of a search."""

    filters = SearchFilters(required=False, default=dict, help_text="The filters; by default none.")


class SearchBody(serializers.Serializer[dict[str, Any]]):
    """The body of a search; the other fields of the envelope are ignored."""

    example = {
        "request": {"filters": {"status": ["SUCCESS", "FAILED"], "tagPrefix": "april"}, "limit": 50}
    }
    request = SearchRequest(help_text="The search.")
