import django.db.models.deletion
from django.db import migrations, models

import ingest.models.fields


class Migration(migrations.Migration):
    dependencies = [("ingest", "0021_rejected_repeats")]
    operations = [
        migrations.CreateModel(
            name="DailyCountState",
            fields=[
                (
                    "channel",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="ingest.channel",
                    ),
                ),
                ("xid", ingest.models.fields.XidField(default=0)),
                ("event_id", models.BigIntegerField(default=0)),
                (
                    "version",
                    models.BigIntegerField(
                        default=0, help_text="Grows with every change of a count."
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="DailyCount",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "channel",
                        "kind",
                        "day",
                        "name",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("arrival", "Arrival"),
                            ("event", "Event"),
                            ("answer", "Answer"),
                        ],
                        max_length=8,
                    ),
                ),
                ("day", models.DateField()),
                ("name", models.TextField(help_text="The source, or the conversation's key.")),
                ("count", models.BigIntegerField()),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="ingest.channel",
                    ),
                ),
            ],
        ),
    ]
