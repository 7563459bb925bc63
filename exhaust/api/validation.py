"""The fields of submitted requests; each error names the field and the remedy.

A dataset checks its own filters (`Dataset.find_errors`), and `exhaust.jobs.submit` what needs the
database: applications, `since`.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any

from django.conf import settings
from rest_framework import serializers

from exhaust.api.field_names import EnvelopeSerializer, NamedFieldsSerializer, find_similar
from exhaust.datasets import DATASETS, summary, survey
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import COLUMN_FIELDS, MAX_COLUMNS, TIMESTAMPS, find_column_errors
from exhaust.datasets.selection import load_zone
from exhaust.datasets.zones import find_zone_name
from exhaust.delivery import http_client
from exhaust.files.formats import FORMATS
from exhaust.jobs import schedules
from exhaust.jobs.submit import MAX_DELAY
from exhaust.models import Job
from ingest.db.clock import read_clock
from ingest.events import format_count
from ingest.http.schema import Text
from ingest.models import IDENTIFIER, IDENTIFIER_RULE

DATASET = {"maxLength": 64, "examples": list(DATASETS)}
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
def _shared(serializer: type[serializers.Serializer[Any]]) -> Any:
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


class ContentFields(serializers.Serializer[dict[str, Any]]):
    """The filters and the columns of a file: of a request and of a schedule."""

    types = serializers.ListField(
        child=serializers.CharField(max_length=255, trim_whitespace=False),
        required=False,
        allow_empty=False,
        max_length=MAX_TYPES,
        help_text="Event types, for events-exhaust and own datasets.",
    )
    application = serializers.CharField(
        required=False,
        max_length=128,
        trim_whitespace=False,
        help_text="An application of the channel, for events, sessions and own datasets.",
    )
    rows = ChoiceField(
        survey.ROWS, required=False, help_text="A row of uci-survey-exhaust; by default session."
    )
    answers = ChoiceField(
        survey.ANSWERS,
        required=False,
        help_text="The answers to a question in a row of uci-survey-exhaust; by default last.",
    )
    by = ChoiceField(
        summary.BY,
        required=False,
        help_text="The period of the counts of uci-summary-exhaust; by default range, all days.",
    )
    columns = serializers.ListField(
        child=serializers.CharField(max_length=255, trim_whitespace=False),
        required=False,
        allow_empty=False,
        max_length=MAX_COLUMNS,
        help_text="The headers of the file's columns, in order. By default all of the dataset.",
    )
    layout = serializers.CharField(
        required=False,
        max_length=64,
        trim_whitespace=False,
        help_text="A named list of columns, in place of columns: uci-2022.",
    )
    timestamps = ChoiceField(
        TIMESTAMPS,
        required=False,
        help_text="The zone of the times in the file: utc, the default, or local for timezone.",
    )

    def get_fields(self) -> dict[str, Any]:
        """Returns the fields, these behind those of the subclass."""
        fields = super().get_fields()
        shared = (*schedules.FILTERS, *COLUMN_FIELDS)
        return {name: fields[name] for name in sorted(fields, key=shared.__contains__)}


class DatasetConfig(ContentFields, NamedFieldsSerializer):
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
        help_text="The conversation. Required for datasets whose name begins with uci-.",
    )
    since = serializers.CharField(
        required=False,
        max_length=32,
        trim_whitespace=False,
        help_text="The requestId of a SUCCESS: only data that arrived after it.",
    )
    startDate = DayField(
        required=False,
        trim_whitespace=False,
        help_text="The first day, included: YYYY-MM-DD. The dataset says which one by default.",
    )
    endDate = DayField(
        required=False,
        trim_whitespace=False,
        help_text="The last day, included: YYYY-MM-DD, not before startDate.",
    )
    timezone = serializers.CharField(
        required=False,
        default="UTC",
        trim_whitespace=False,
        help_text="The time zone of the days: an IANA name.",
    )

    def check_unknown(self, name: str) -> None:
        """Rejects a secret too: these fields are stored and returned."""
        if find_similar(name, ["encryptionKey"]):
            raise serializers.ValidationError(
                {name: "Belongs into request, beside datasetConfig, as encryptionKey; move it."}
            )
        super().check_unknown(name)

    def validate_timezone(self, value: str) -> str:
        try:
            return find_zone_name(value)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from None


def complete_days(config: dict[str, Any], dataset: Dataset) -> dict[str, str]:
    """Sets the days that a checked datasetConfig leaves out, as the dataset has them by default.

    Returns the faults by field: a day that the dataset needs, or a range that it cannot have.
    """
    missing = [name for name in ("startDate", "endDate") if name not in config]
    if missing and not dataset.default_days:
        return dict.fromkeys(missing, "This field is required.")
    if dataset.default_days == "yesterday":
        today = read_clock().astimezone(load_zone(config["timezone"])).date()
        config.update(dict.fromkeys(missing, today - timedelta(days=1)))
    if not {"startDate", "endDate"} <= config.keys():
        return {}
    days = (config["endDate"] - config["startDate"]).days + 1
    if days < 1:
        default = f" It is {config['endDate']} by default." if "endDate" in missing else ""
        return {"endDate": f"Must not lie before startDate.{default}"}
    if days > settings.EXHAUST_MAX_DAYS:
        days_at_once = format_count(settings.EXHAUST_MAX_DAYS, "day")
        return {"endDate": f"At most {days_at_once} at once; ask in parts."}
    return {}


class MomentField(Text):
    """A time, with its offset from UTC or on the clock of the request's zone."""

    schema = {"examples": ["2026-04-01T02:00:00+05:30"]}

    def to_internal_value(self, data: Any) -> Any:
        value = super().to_internal_value(data)
        try:
            moment = datetime.fromisoformat(value)
            moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise serializers.ValidationError(
                "Write a time as 2026-04-01T02:00:00+05:30, or as 2026-04-01T02:00 in the zone of"
                " datasetConfig."
            ) from None
        return moment


def find_config_errors(dataset: Dataset, config: dict[str, Any]) -> dict[str, str]:
    """Sets the days that a checked datasetConfig leaves out; returns its errors by field."""
    if config.get("type", dataset.name) != dataset.name:
        return {"type": "Must be the same as dataset, or left out."}
    faults = complete_days(config, dataset) | dataset.find_errors(config)
    return faults | find_column_errors(dataset, config)


class SubmitRequest(NamedFieldsSerializer):
    """The `request` of a submission. `requestedChannel` is ignored: the header has the channel."""

    ignored_fields = ("requestedChannel",)

    tag = serializers.RegexField(
        IDENTIFIER,
        error_messages={"invalid": IDENTIFIER_RULE},
        help_text="Your name for the request: letters, digits, '.', '_' and '-', up to 128; not"
        " '.' and not '..'.",
    )
    dataset = Text(DATASET, help_text="A built-in dataset, or an own one of the channel.")
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
        help_text="low runs after all others; nightly waits for the next night.",
    )
    notBefore = MomentField(
        required=False,
        help_text="Runs then at the earliest: a time with its offset, or in the request's zone.",
    )
    forceNew = serializers.BooleanField(
        required=False, help_text="Makes a new export, even if the same request has one today."
    )
    callbackUrl = Text(
        URL,
        required=False,
        trim_whitespace=False,
        help_text="Receives a signed POST when the export ends: http:// or https://.",
    )
    deliverTo = serializers.CharField(
        max_length=128,
        required=False,
        trim_whitespace=False,
        help_text="The name of a destination for files, which gets these.",
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

    def validate_callbackUrl(self, value: str) -> str:
        try:
            http_client.split_url(value)
        except http_client.AddressNotAllowed as error:
            raise serializers.ValidationError(str(error)) from None
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        # an own dataset is checked once the channel is known
        if (dataset := DATASETS.get(attrs["dataset"])) and (
            faults := find_config_errors(dataset, attrs["datasetConfig"])
        ):
            raise serializers.ValidationError({"datasetConfig": faults})
        if "notBefore" in attrs:
            attrs["notBefore"] = _locate(attrs["notBefore"], attrs["datasetConfig"]["timezone"])
        formats = {attrs[name] for name in ("outputFormat", "output_format") if name in attrs}
        if len(formats) > 1:
            raise serializers.ValidationError(
                {"outputFormat": "Differs from output_format; leave one of them out."}
            )
        attrs["output_format"] = formats.pop() if formats else "csv"
        return attrs


def _locate(moment: datetime, zone_name: str) -> datetime:
    """Returns a time in its own offset, or else in a zone. Raises `ValidationError`."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=load_zone(zone_name))
    if moment > read_clock() + MAX_DELAY:
        raise serializers.ValidationError(
            {"notBefore": f"At most {MAX_DELAY.days} days from now; send the request later."}
        )
    return moment


class SubmitBody(EnvelopeSerializer):
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


def list_config_warnings(config: dict[str, Any]) -> list[str]:
    """Returns a sentence for each field of a job's datasetConfig that the service does not read."""
    warnings: list[str] = _shared(DatasetConfig).list_warnings(config, "request.datasetConfig.")
    return warnings


def list_warnings(body: dict[str, Any]) -> list[str]:
    """Returns the same for a valid body, but for its datasetConfig."""
    return [
        *_shared(SubmitBody).list_warnings(body, ""),
        *_shared(SubmitRequest).list_warnings(body["request"], "request."),
    ]
