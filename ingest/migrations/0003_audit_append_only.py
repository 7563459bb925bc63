"""The database refuses to change the audit log and its digests.

A later migration that rebuilds one of the two tables calls `drop_triggers` before and `add_triggers` after.
"""

from django.db import migrations


TABLES = ("ingest_auditevent", "ingest_auditdigest")
MESSAGE = "The audit log is append-only."

FUNCTION = f"""
CREATE FUNCTION ingest_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{MESSAGE}' USING ERRCODE = 'insufficient_privilege'; END $$
"""


def add_triggers(apps, editor):
    if editor.connection.vendor == "postgresql":
        editor.execute(FUNCTION)
        for table in TABLES:
            editor.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION ingest_append_only()"
            )
        return
    for table in TABLES:
        for operation in ("UPDATE", "DELETE"):
            editor.execute(
                f"CREATE TRIGGER {table}_{operation.lower()} BEFORE {operation} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END"
            )
        # INSERT OR REPLACE takes a row away without firing the trigger above
        editor.execute(
            f"CREATE TRIGGER {table}_replace BEFORE INSERT ON {table}"
            f" WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)"
            f" BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END"
        )


def drop_triggers(apps, editor):
    if editor.connection.vendor == "postgresql":
        for table in TABLES:
            editor.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        editor.execute("DROP FUNCTION ingest_append_only()")
        return
    for table in TABLES:
        for operation in ("update", "delete", "replace"):
            editor.execute(f"DROP TRIGGER {table}_{operation}")


class Migration(migrations.Migration):
    dependencies = [("ingest", "0002_clickstream_views")]
    operations = [migrations.RunPython(add_triggers, drop_triggers)]
