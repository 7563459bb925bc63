"""Reads a field the same way for every source."""

from typing import Any

from ingest.events import RequestError

MAX_TEXT = 255  # characters of an id or a name
MAX_URL = 2048


def bounded_text(value: Any, limit: int = MAX_TEXT) -> str:
    """Returns a text or a number as text, "" for anything else or a longer one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and len(value) <= limit else ""


def identifier(
    source: dict[str, Any],
    field: str,
    where: str = "",
    *,
    required: bool = False,
    longest: int = MAX_TEXT,
) -> str:
    """Returns an id or a name as text, "" if it is missing.

    Raises `RequestError` with the name of the field.
    """
    value = source.get(field)
    if isinstance(value, str) and 0 < len(value) <= longest:  # nearly always
        return value
    if value is None:
        value = ""
    elif isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # some senders write numeric ids
    if not isinstance(value, str) or len(value) > longest or (required and not value):
        raise RequestError(
            where + field, f"{where}{field} must be a text of up to {longest} characters."
        )
    return value
