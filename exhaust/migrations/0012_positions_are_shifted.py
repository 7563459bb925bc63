from django.db import migrations


def shift(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            "ALTER TABLE exhaust_job ALTER COLUMN submitted_xid SET DEFAULT exhaust_position()"
        )


class Migration(migrations.Migration):
    dependencies = [
        ("exhaust", "0011_job_holder"),
        ("ingest", "0012_positions_are_shifted"),
    ]
    operations = [migrations.RunPython(shift, migrations.RunPython.noop)]
