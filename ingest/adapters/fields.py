"""A field of what was sent, read one way at every door."""

from typing import Any

from ingest.events import Refused

MAX_TEXT = 255  # characters of an id or a name


MAX_URL = 2048


def bounded_text(found: Any, limit: int = MAX_TEXT) -> str:
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    return found if isinstance(found, str) and len(found) <= limit else ""


MAX_TEXT = 255  # characters of an id or a name


def identifier(
    source: dict[str, Any],
    field: str,
    where: str = "",
    *,
    required: bool = False,
    longest: int = MAX_TEXT,
) -> str:
    """An id or a name as text; "" where it is missing. Raises `Refused`, naming the field."""
    found = source.get(field)
    if isinstance(found, str) and 0 < len(found) <= longest:  # nearly always
        return found
    if found is None:
        found = ""
    elif isinstance(found, int) and not isinstance(found, bool):
        found = str(found)  # some senders write numeric ids
    if not isinstance(found, str) or len(found) > longest or (required and not found):
        raise Refused(
            where + field, f"{where}{field} must be a text of up to {longest} characters."
        )
    return found
