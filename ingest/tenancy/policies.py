"""Row-level security of PostgreSQL, behind the filters by channel that every query has.

A request runs as a role of its own. Each table with a channel, or with a parent that has one, shows
this role only the rows of the channels in `exhaust.channels`. So a query with a missing filter
still returns no row of another channel.

The ingest endpoints, workers and commands run as the login role, and see all channels. `RESET ROLE`
bypasses the policies, so they protect against missing filters and not against SQL injection.

The login role may own the tables: then no policy applies to it. Or it is `exhaust_service`, which
owns none, so that it can lift neither the policies nor the protection of the audit log.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core import checks
from django.db import DatabaseError, connection, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ingest import logs
from ingest.models import AuditDigest, AuditEvent, Channel
from ingest.tenancy.session import POLICY, TENANT_ROLE, has_policies

log = logs.get_logger(__name__)
ROLE_REMEDY = (
    f"CREATE ROLE {TENANT_ROLE} NOLOGIN; GRANT {TENANT_ROLE} TO <the login role>;"
    " then run manage.py migrate."
)
SERVICE_ROLE = "exhaust_service"
_SERVICE_POLICY = "service_access"
_APPEND_ONLY = {model._meta.db_table for model in (AuditEvent, AuditDigest)}
_MEMBER_SQL = """
SELECT FROM pg_roles member, pg_roles tenant WHERE member.rolname = coalesce(%s, current_user)
AND tenant.rolname = %s AND pg_has_role(member.oid, tenant.oid, 'MEMBER')
"""
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
    """Creates the missing of the roles, their grants and the policies, after every `migrate`."""
    database = connections[using]
    if database.vendor != "postgresql":
        return
    has_policies.cache_clear()
    with database.cursor() as cursor:
        has_tenant_role, has_service_role = _ensure_roles(database)
        if not has_tenant_role:
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
        for table in _APPEND_ONLY & set(tables):
            cursor.execute(f"REVOKE UPDATE, DELETE ON {table} FROM {TENANT_ROLE}")
        cursor.execute(
            "SELECT tablename, policyname FROM pg_policies WHERE schemaname = current_schema()"
        )
        policies = set(cursor.fetchall())
        for table, condition in build_conditions().items():
            if table not in tables:
                continue
            if (table, POLICY) not in policies:
                cursor.execute(
                    f'CREATE POLICY {POLICY} ON "{table}" TO {TENANT_ROLE} USING ({condition})'
                )
                cursor.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
            if has_service_role and (table, _SERVICE_POLICY) not in policies:
                cursor.execute(
                    f'CREATE POLICY {_SERVICE_POLICY} ON "{table}" TO {SERVICE_ROLE} USING (true)'
                )


def _ensure_roles(database: BaseDatabaseWrapper) -> list[bool]:
    """Creates the roles and grants the tenant role to the login role and to the service's.

    Returns which of the two have it. The service's role cannot log in until it has a password.
    """
    for role in (TENANT_ROLE, SERVICE_ROLE):
        if not _is_found(database, "SELECT FROM pg_roles WHERE rolname = %s", [role]):
            _try(database, f"CREATE ROLE {role} NOLOGIN")
    members = []
    for member in (None, SERVICE_ROLE):
        values: list[str | None] = [member, TENANT_ROLE]
        if not _is_found(database, _MEMBER_SQL, values):
            _try(database, f"GRANT {TENANT_ROLE} TO {member or 'CURRENT_USER'}")
        members.append(_is_found(database, _MEMBER_SQL, values))
    return members


def _is_found(database: BaseDatabaseWrapper, sql: str, params: list[str | None]) -> bool:
    with database.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS ({sql})", params)
        return bool(cursor.fetchone()[0])


def _try(database: BaseDatabaseWrapper, statement: str) -> None:
    """Runs a statement that may not be allowed here, or that another process was faster with."""
    with suppress(DatabaseError), transaction.atomic(database.alias), database.cursor() as cursor:
        cursor.execute(statement)


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
