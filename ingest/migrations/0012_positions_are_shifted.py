from django.db import migrations

from ingest.feed.watermark import POSITIONED, shift_sql


def shift(apps, schema_editor):
    """Databases made before positions had a shift: instant, no row is touched."""
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regproc('exhaust_shift') IS NULL")
        if cursor.fetchone()[0]:
            cursor.execute(shift_sql(0))
    for table in POSITIONED:
        schema_editor.execute(
            f"ALTER TABLE {table} ALTER COLUMN xid SET DEFAULT exhaust_position()"
        )


class Migration(migrations.Migration):
    dependencies = [("ingest", "0011_horizon")]
    operations = [migrations.RunPython(shift, migrations.RunPython.noop)]
