"""Clickstream's limits of names and values, with the SDKs' error codes.

As in the SDKs, an attribute over a limit is dropped and its event stays. Attributes with "_" are
the SDKs' own, which they neither count nor measure.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from ingest.adapters import answer_attributes as answers
from ingest.events import RequestError

MAX_NAME = 50
MAX_ITEMS = 100
_ITEM_KEYS = frozenset(
    {
        "id", "name", "location_id", "brand", "currency", "price", "quantity", "creative_name",
        "creative_slot", "category", "category2", "category3", "category4", "category5",
    }
)  # fmt: skip


class _Limits(NamedTuple):
    number: int
    length: int  # of a text, in characters
    too_many: str  # the code, as all below
    long_name: str
    invalid_name: str
    long_value: str


_ATTRIBUTES = _Limits(500, 1024, "2004", "2001", "2002", "2003")
_USER = _Limits(100, 256, "3001", "3002", "3003", "3004")
_ITEM = _Limits(10, 256, "4003", "4004", "4005", "4002")


def is_name(text: str) -> bool:
    """Whether it has letters, digits and "_", no digit first: in ASCII, a Python identifier."""
    return text.isidentifier() and text.isascii()


def drop_beyond_limits(event: dict[str, Any], size: int, names: set[str]) -> dict[str, str]:
    """Drops what is badly named or over a limit, and returns the first of each error code.

    `size` is that of the event's text, in bytes; `names` are valid ones, and new ones are added.
    In a conversation an answer's attributes are neither counted nor measured, as in any source.
    Raises `RequestError` for attributes, a user or items of the wrong type.
    """
    dropped: dict[str, str] = {}
    if (attributes := event.get("attributes")) is not None:
        if not isinstance(attributes, dict):
            raise RequestError("attributes", "attributes must be an object.")
        unlimited = answers.NAMES if "conversation_id" in attributes else ()
        if _breaks_limit(attributes, _ATTRIBUTES, size, names):
            _drop_named(attributes, _ATTRIBUTES, names, dropped, "attributes", unlimited)
    if user := event.get("user"):
        if not isinstance(user, dict):
            raise RequestError("user", "user must be an object.")
        if _breaks_limit(user, _USER, size, names):
            _drop_named(user, _USER, names, dropped, "user")
    if items := event.get("items"):
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise RequestError("items", "items must be a list of objects.")
        if len(items) > MAX_ITEMS:
            dropped["4001"] = f"items[{MAX_ITEMS}]"
            del items[MAX_ITEMS:]
        for item in items:
            if _breaks_limit(item, _ITEM, size, names):
                _drop_named(item, _ITEM, names, dropped, "items")
    return dropped


def _breaks_limit(named: dict[str, Any], limits: _Limits, size: int, names: set[str]) -> bool:
    """Whether one limit may be broken: most events keep all, and this is the fast way to see it."""
    if len(named) > limits.number or not names.issuperset(named):
        return True
    length = limits.length
    if size > length:
        for value in named.values():
            if isinstance(value, dict):
                value = value.get("value")
            if isinstance(value, str) and len(value) > length:
                return True
    return False


def _is_long(value: Any, limits: _Limits) -> bool:
    if limits is _USER and isinstance(value, dict):  # {"value", "set_timestamp"}
        value = value.get("value")
    return isinstance(value, str) and len(value) > limits.length


def _drop_named(
    named: dict[str, Any],
    limits: _Limits,
    names: set[str],
    dropped: dict[str, str],
    where: str,
    unlimited: Collection[str] = (),
) -> None:
    is_item = limits is _ITEM
    count = 0
    for name, value in [*named.items()]:
        is_limited = is_item or not (name.startswith("_") or name in unlimited)
        is_counted = is_limited and not (is_item and name in _ITEM_KEYS)
        if len(name) > MAX_NAME:
            code = limits.long_name
        elif not is_name(name):
            code = limits.invalid_name
        elif is_limited and _is_long(value, limits):
            code = limits.long_value
        elif is_counted and count == limits.number:
            code = limits.too_many
        else:
            names.add(name)
            count += is_counted
            continue
        dropped.setdefault(code, f"{where}.{name[:MAX_NAME]}")
        del named[name]
