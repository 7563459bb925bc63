"""The second wall between channels, on PostgreSQL: row-level security.

The first is that every query starts from the caller's channel. Where one forgets to, a request
still gets no row of another channel: it runs as a role to which each table with a channel, or with
an owner that has one, shows only the rows of the channels named in `exhaust.channels`.

Senders' doors, workers and commands run as the login role, to which no policy applies: they pay
nothing, and read all channels. A role leaves this wall by a word, so it guards against our own
forgetting, not against foreign SQL.
"""

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core import checks
from django.db import ProgrammingError, connection, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ingest import logs
from ingest.models import Channel
from ingest.tenancy.session import POLICY, TENANT_ROLE, has_policies

log = logs.get_logger(__name__)
ROLE_REMEDY = f"CREATE ROLE {TENANT_ROLE} NOLOGIN; GRANT {TENANT_ROLE} TO <the login role>; then run manage.py migrate."
# asked once a statement, so that an index on the channel serves it
_CHANNELS_SQL = (
    "ANY ((SELECT string_to_array(current_setting('exhaust.channels', true), ',')::int[])::int[])"
)

# In a request --------------------------------------------------------------------------------


# With the tables -----------------------------------------------------------------------------


def build_conditions() -> dict[str, str]:
    """By table, the condition under which a row belongs to the channels let in.

    A table has a policy by having a channel, or an owner that has one; nothing is listed.
    """
    conditions = {Channel._meta.db_table: f"id = {_CHANNELS_SQL}"}
    remaining = [model for model in apps.get_models() if model is not Channel]
    while True:
        added = {
            model: condition
            for model in remaining
            if (condition := _build_condition(model, conditions))
        }
        if not added:
            return conditions
        conditions |= {model._meta.db_table: rule for model, rule in added.items()}
        remaining = [model for model in remaining if model not in added]


def _build_condition(model: type[models.Model], conditions: dict[str, str]) -> str | None:
    table = model._meta.db_table
    foreign_keys = [
        field for field in model._meta.local_fields if isinstance(field, models.ForeignKey)
    ]
    for field in foreign_keys:
        if field.related_model is Channel and not field.null:
            return f"{field.column} = {_CHANNELS_SQL}"
    for field in foreign_keys:
        parent = field.related_model._meta
        if parent.db_table in conditions and not field.null:  # which its own policy guards
            return (
                f'EXISTS (SELECT FROM "{parent.db_table}" o'
                f' WHERE o.{field.target_field.column} = "{table}".{field.column})'
            )
    return None


def create_policies(using: str = "default", **_: Any) -> None:
    """After every `migrate`: the role, its rights and the policies, where one is missing."""
    database = connections[using]
    if database.vendor != "postgresql":
        return
    has_policies.cache_clear()
    with database.cursor() as cursor:
        if not _ensure_role(database):
            log.warning("tenancy.rls_missing", role=TENANT_ROLE)  # `check` tells the remedy
            return
        cursor.execute(
            "SELECT relname, has_table_privilege(%s, oid, 'INSERT') FROM pg_class"
            " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')",
            [TENANT_ROLE],
        )
        tables = dict(cursor.fetchall())
        if not all(tables.values()):
            cursor.execute(
                "DO $$ BEGIN"
                f" EXECUTE format('GRANT USAGE ON SCHEMA %I TO {TENANT_ROLE}', current_schema());"
                " EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I"
                f" TO {TENANT_ROLE}', current_schema());"
                " EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I"
                f" TO {TENANT_ROLE}', current_schema()); END $$"
            )
        cursor.execute(
            "SELECT tablename FROM pg_policies WHERE policyname = %s"
            " AND schemaname = current_schema()",
            [POLICY],
        )
        tables_with_policy = {table for (table,) in cursor.fetchall()}
        for table, condition in build_conditions().items():
            if table in tables and table not in tables_with_policy:
                cursor.execute(
                    f'CREATE POLICY {POLICY} ON "{table}" TO {TENANT_ROLE} USING ({condition})'
                )
                cursor.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')


def _ensure_role(database: BaseDatabaseWrapper) -> bool:
    """Whether the login role may act as ours, made here where that is allowed."""
    membership_sql = (
        "SELECT pg_has_role(current_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = %s"
    )
    with database.cursor() as cursor:
        for statement in (
            f"CREATE ROLE {TENANT_ROLE} NOLOGIN",
            f"GRANT {TENANT_ROLE} TO CURRENT_USER",
            "",
        ):
            cursor.execute(membership_sql, [TENANT_ROLE])
            row = cursor.fetchone()
            if row and row[0]:
                return True
            if statement and (row is None) == statement.startswith("CREATE"):
                try:
                    with transaction.atomic(database.alias):
                        cursor.execute(statement)
                except ProgrammingError:  # not ours to make, or another made it first
                    continue
    return False


@checks.register(checks.Tags.database)
def check_policies(
    *, databases: Sequence[str] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """`manage.py check --database default`: whether there is, or can be, a second wall."""
    if connection.vendor != "postgresql" or "default" not in (databases or ()):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('ingest_channel') IS NULL")
        if cursor.fetchone()[0] or has_policies(str(connection.settings_dict["NAME"])):
            return []  # the migrate that follows makes it, or it is there
    return [
        checks.Warning("PostgreSQL guards no channel's rows.", hint=ROLE_REMEDY, id="ingest.W001")
    ]
