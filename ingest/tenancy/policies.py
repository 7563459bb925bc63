"""Row-level security of PostgreSQL, behind the filters by channel that every query has.

A request runs as a role of its own. Each table with a channel, or with a parent that has one, shows
this role only the rows of the channels in `exhaust.channels`. So a query with a missing filter
still returns no row of another channel.

The ingest endpoints, workers and commands run as the login role. No policy applies to it: they pay
nothing, and see all channels. `RESET ROLE` bypasses the policies, so they protect against missing
filters and not against SQL injection.
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
ROLE_REMEDY = (
    f"CREATE ROLE {TENANT_ROLE} NOLOGIN; GRANT {TENANT_ROLE} TO <the login role>;"
    " then run manage.py migrate."
)
# a subquery runs once a statement, so an index on the channel serves it
_CHANNELS_SQL = (
    "ANY ((SELECT string_to_array(current_setting('exhaust.channels', true), ',')::int[])::int[])"
)


def build_conditions() -> dict[str, str]:
    """Returns by table the condition under which a row belongs to the visible channels.

    Each table with a channel, or with a parent that has one, is among them; no list names them.
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
        if parent.db_table in conditions and not field.null:  # whose own policy applies
            return (
                f'EXISTS (SELECT FROM "{parent.db_table}" o'
                f' WHERE o.{field.target_field.column} = "{table}".{field.column})'
            )
    return None


def create_policies(using: str = "default", **_: Any) -> None:
    """Creates the missing of the role, its grants and the policies, after every `migrate`."""
    database = connections[using]
    if database.vendor != "postgresql":
        return
    has_policies.cache_clear()
    with database.cursor() as cursor:
        if not _ensure_role(database):
            log.warning("tenancy.rls_missing", role=TENANT_ROLE)  # `manage.py check` has the remedy
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
    """Creates and grants the tenant role where needed. Returns whether the login role has it."""
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
                except ProgrammingError:  # not allowed, or made by another process
                    continue
    return False


@checks.register(checks.Tags.database)
def check_policies(
    *, databases: Sequence[str] | None = None, **_: Any
) -> list[checks.CheckMessage]:
    """Warns in `manage.py check --database default` where row-level security is missing."""
    if connection.vendor != "postgresql" or "default" not in (databases or ()):
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('ingest_channel') IS NULL")
        if cursor.fetchone()[0] or has_policies(str(connection.settings_dict["NAME"])):
            return []  # `migrate` creates it next, or it exists
    return [
        checks.Warning("PostgreSQL has no row-level security.", hint=ROLE_REMEDY, id="ingest.W001")
    ]
