"""Field names of a sent body: one like a known field is rejected, the other unknown ones are named.

A misspelt `encryptionKey` would else give a plain file.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from rest_framework import serializers

MAX_FIELDS = 1_000  # of an object
MAX_WARNINGS = 20


def find_similar(name: str, known: Iterable[str]) -> str:
    """Returns the known name that differs only by case, `_`, `-` or one letter; else "".

    Two swapped neighbours are one letter.
    """
    short = _shorten(name)
    for candidate in known:
        other = _shorten(candidate)
        if short == other or (len(other) > 2 and _differ_by_one(short, other)):
            return candidate
    return ""


def _shorten(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _differ_by_one(name: str, other: str) -> bool:
    short, long = sorted((name, other), key=len)
    if len(long) - len(short) > 1:
        return False
    pairs = enumerate(zip(short, long, strict=False))
    start = next((n for n, (letter, other) in pairs if letter != other), len(short))
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    is_swapped = short[start : start + 2] == long[start : start + 2][::-1]
    return short[start + is_swapped + 1 :] == long[start + is_swapped + 1 :]


class NamedFieldsSerializer(serializers.Serializer[dict[str, Any]]):
    """Rejects a field whose name is like a known one's; ignores the other unknown ones."""

    ignored_fields: tuple[str, ...] = ()  # that clients send and no field reads

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict):
            if len(data) > MAX_FIELDS:
                raise serializers.ValidationError(f"At most {MAX_FIELDS:,} fields; send fewer.")
            for name in self.list_unknown(data):
                self.check_unknown(name)
        return super().to_internal_value(data)

    def list_unknown(self, data: dict[str, Any]) -> list[str]:
        """Returns the names that are no field, in the order they were sent."""
        return [
            name for name in data if name not in self.fields and name not in self.ignored_fields
        ]

    def check_unknown(self, name: str) -> None:
        """Raises `ValidationError` for a name like a known one's."""
        if similar := find_similar(name, (*self.fields, *self.ignored_fields)):
            raise serializers.ValidationError(
                {name: f"Unknown field; did you mean {similar}? Correct it, or leave it out."}
            )

    def list_warnings(self, data: Any, path: str) -> list[str]:
        """Returns a sentence for each of the first unknown fields of a valid body."""
        return [
            f"{path}{name[:64]}: Unknown field; the service does not read it."
            for name in islice(self.list_unknown(data), MAX_WARNINGS)
        ]


class EnvelopeSerializer(NamedFieldsSerializer):
    """The body of a call; the other fields of the envelope are ignored."""

    ignored_fields = ("id", "ver", "ts", "params")


class StrictSerializer(NamedFieldsSerializer):
    """Rejects every unknown field, so that a misspelt one does not go unnoticed."""

    noun = "field"

    def check_unknown(self, name: str) -> None:
        super().check_unknown(name)
        raise serializers.ValidationError(
            {name: f"Unknown {self.noun}; there are {', '.join(self.fields)}."}
        )
