"""PostgreSQL finds the events of a few days without reading all: charts count by these times.

BRIN has a few bytes for each 128 pages, so an insert pays nothing for it.
"""

from django.db import migrations

INDEXES = {"storedevent_received_brin": "received_at", "storedevent_occurred_brin": "occurred_at"}


def create_indexes(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    schema_editor.execute("SET lock_timeout = 0")  # it waits for exports that are being written
    for name, column in INDEXES.items():
        schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # half made, by a failure
        schema_editor.execute(
            f"CREATE INDEX CONCURRENTLY {name} ON ingest_storedevent"
            f" USING brin ({column}) WITH (autosummarize = on)"
        )
    schema_editor.execute("RESET lock_timeout")


def drop_indexes(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for name in INDEXES:
            schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


class Migration(migrations.Migration):
    atomic = False  # senders write while the indexes are made
    dependencies = [("ingest", "0018_participant_history")]
    operations = [migrations.RunPython(create_indexes, drop_indexes)]
