"""Fields and functions of the feed's positions."""

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper


class XidField(models.BigIntegerField):  # type: ignore[type-arg]
    """A transaction number: `xid8` on PostgreSQL, a bigint on SQLite; an int in Python."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "xid8" if connection.vendor == "postgresql" else super().db_type(connection)

    def from_db_value(self, value: Any, *_: Any) -> int | None:
        return None if value is None else int(value)

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        if connection.vendor == "postgresql" and isinstance(value, int):
            return str(value)  # PostgreSQL compares xid8 with no integer type
        return value

    def get_placeholder(self, value: Any, compiler: Any, connection: BaseDatabaseWrapper) -> str:
        return "%s::xid8" if connection.vendor == "postgresql" else "%s"


class CurrentPosition(models.Func):
    """The writing transaction's number, as a column's default."""

    output_field = XidField()

    def as_sql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:  # type: ignore[override]
        return "0", []

    def as_postgresql(self, *_: Any, **__: Any) -> tuple[str, list[Any]]:
        return "exhaust_position()", []
