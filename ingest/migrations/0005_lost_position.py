from django.db import connection, migrations, models

import ingest.models.fields
from ingest.feed.restore import create_functions


def follow_timelines(apps, schema_editor):
    """Makes the functions anew, so that each timeline of PostgreSQL raises positions."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT exhaust_shift()")
            create_functions(cursor.fetchone()[0])


class Migration(migrations.Migration):
    dependencies = [("ingest", "0004_rejected_limits")]
    operations = [
        migrations.CreateModel(
            name="LostPosition",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("xid", ingest.models.fields.XidField(editable=False)),
            ],
        ),
        migrations.RunPython(follow_timelines, migrations.RunPython.noop),
    ]
