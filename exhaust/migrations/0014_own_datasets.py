
import django.db.models.deletion
import ingest.db.clock
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [
        ("exhaust", "0013_find_and_queue"),
        ("ingest", "0011_sign_in"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="definition",
            field=models.JSONField(
                editable=False, help_text="Of an own dataset, as it was when requested.", null=True
            ),
        ),
        migrations.AddField(
            model_name="job",
            name="own_scope",
            field=models.CharField(
                db_default="",
                default="",
                editable=False,
                help_text="Scope of an own dataset, as it was when requested; empty for a built-in one.",
                max_length=32,
            ),
        ),
        migrations.CreateModel(
            name="OwnDataset",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=64)),
                ("definition", models.JSONField(help_text="Its title, filters and columns.")),
                ("changed_at", models.DateTimeField(default=ingest.db.clock.read_clock)),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
            options={
                "verbose_name": "own dataset",
                "constraints": [
                    models.UniqueConstraint(fields=("channel", "name"), name="owndataset_identity")
                ],
            },
        ),
    ]
