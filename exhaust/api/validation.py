"""What a submitted request must say; every refusal names the field and the remedy."""

import re
from datetime import date
from typing import Any

from django.conf import settings
from rest_framework import serializers

from exhaust.datasets import DATASETS
from exhaust.datasets.selection import zone
from ingest.models import IDENTIFIER

FORMATS = ("csv",)


class DatasetConfig(serializers.Serializer[dict[str, Any]]):
    """Which conversation, which days. Further fields are kept and echoed."""

    # what is checked is what is kept, so nothing is trimmed
    type = serializers.CharField(required=False, trim_whitespace=False)
    conversationId = serializers.CharField(max_length=255, trim_whitespace=False)
    startDate = serializers.CharField(trim_whitespace=False)
    endDate = serializers.CharField(trim_whitespace=False)
    timezone = serializers.CharField(required=False, default="UTC", trim_whitespace=False)

    def validate_startDate(self, value: str) -> date:
        return _day(value)

    def validate_endDate(self, value: str) -> date:
        return _day(value)

    def validate_timezone(self, value: str) -> str:
        try:
            zone(value)
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


_DAY = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _day(value: str) -> date:
    try:
        day = date.fromisoformat(value if _DAY.fullmatch(value) else "")
    except ValueError:
        day = date.min
    if not 1970 <= day.year <= 9000:
        raise serializers.ValidationError("Write a day as YYYY-MM-DD.")
    return day


class Request(serializers.Serializer[dict[str, Any]]):
    """The `request` of a submission. `requestedChannel` is read by nobody: the header wins."""

    tag = serializers.RegexField(
        IDENTIFIER, error_messages={"invalid": "Letters, digits, '.', '_' and '-', up to 128."}
    )
    dataset = serializers.CharField()
    datasetConfig = DatasetConfig()
    requestedBy = serializers.CharField(max_length=255, required=False)
    outputFormat = serializers.CharField(required=False)
    output_format = serializers.CharField(required=False)
    encryptionKey = serializers.CharField(required=False, allow_null=True)

    def validate_dataset(self, value: str) -> str:
        if value not in DATASETS:
            raise serializers.ValidationError(
                f"There is no dataset '{value}'; ask for one of {', '.join(DATASETS)}."
            )
        return value

    def validate_encryptionKey(self, value: str | None) -> str | None:
        if value:  # a plain file in place of a sealed one would be a breach
            raise serializers.ValidationError("Sealed files cannot be made yet; leave it out.")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        kind = attrs["datasetConfig"].get("type")
        if kind is not None and kind != attrs["dataset"]:
            raise serializers.ValidationError(
                {"datasetConfig": {"type": "Must be the same as dataset, or left out."}}
            )
        for field in ("outputFormat", "output_format"):
            if attrs.get(field, "csv").lower() not in FORMATS:
                raise serializers.ValidationError({field: f"One of {', '.join(FORMATS)}."})
        return attrs


class Submit(serializers.Serializer[dict[str, Any]]):
    """The body of a submission; its own envelope is not checked."""

    request = Request()


class Limit(serializers.Serializer[dict[str, Any]]):
    """The query of a list."""

    limit = serializers.IntegerField(min_value=1, max_value=1000, default=100)
