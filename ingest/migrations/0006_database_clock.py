import ingest.db.clock
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("ingest", "0005_lost_position"),
    ]

    # the tables do not change: the default is Python's
    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name="apikey",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock, editable=False),
                ),
                migrations.AlterField(
                    model_name="application",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock, editable=False),
                ),
                migrations.AlterField(
                    model_name="auditdigest",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="auditevent",
                    name="recorded_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock, editable=False),
                ),
                migrations.AlterField(
                    model_name="channel",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock, editable=False),
                ),
                migrations.AlterField(
                    model_name="conversation",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock, editable=False),
                ),
            ]
        )
    ]
