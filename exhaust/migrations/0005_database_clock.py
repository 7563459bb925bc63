import ingest.db.clock
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("exhaust", "0004_job_traceparent"),
    ]

    # the tables do not change: the default is Python's
    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField(
                    model_name="callbacksecret",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="dailyrun",
                    name="renewed_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="dailyrun",
                    name="started_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="deadletter",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="delivery",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="delivery",
                    name="next_at",
                    field=models.DateTimeField(
                        default=ingest.db.clock.read_clock, help_text="When it is claimed next."
                    ),
                ),
                migrations.AlterField(
                    model_name="destination",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="destination",
                    name="next_at",
                    field=models.DateTimeField(
                        default=ingest.db.clock.read_clock, help_text="When it is claimed next."
                    ),
                ),
                migrations.AlterField(
                    model_name="file",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="job",
                    name="due_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="job",
                    name="submitted_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="link",
                    name="issued_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="schedule",
                    name="created_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
                migrations.AlterField(
                    model_name="transition",
                    name="changed_at",
                    field=models.DateTimeField(default=ingest.db.clock.read_clock),
                ),
            ]
        )
    ]
