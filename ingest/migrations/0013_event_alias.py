"""An index of the e-mails that Skalin's identities hold."""

from django.db import migrations

_EMAIL = {
    "postgresql": "(payload #>> '{identity,email}')",
    "sqlite": "(payload ->> '$.identity.email')",
}


def create_index(apps, schema_editor):
    vendor = schema_editor.connection.vendor
    create = "CREATE INDEX"
    if vendor == "postgresql":
        create += " CONCURRENTLY"
        schema_editor.execute("SET lock_timeout = 0")  # it waits for open transactions
        # half made, by a failure
        schema_editor.execute("DROP INDEX CONCURRENTLY IF EXISTS storedevent_alias")
    schema_editor.execute(
        f"{create} storedevent_alias ON ingest_storedevent ({_EMAIL[vendor]}, application_id, id)"
        " WHERE source = 'skalin' AND type = 'identity' AND superseded_xid IS NULL",
        params=None,
    )
    if vendor == "postgresql":
        schema_editor.execute("RESET lock_timeout")


def drop_index(apps, schema_editor):
    schema_editor.execute("DROP INDEX IF EXISTS storedevent_alias", params=None)


class Migration(migrations.Migration):
    atomic = False  # senders write while the index is made
    dependencies = [("ingest", "0012_session_details")]
    operations = [migrations.RunPython(create_index, drop_index)]
