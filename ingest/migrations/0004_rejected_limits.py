import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0003_audit_append_only")]
    operations = [
        migrations.AddField(
            model_name="rejectedevent",
            name="count",
            field=models.IntegerField(
                db_default=1, default=1, help_text="Rejected events that the row stands for."
            ),
        ),
        migrations.AddField(
            model_name="rejectedevent",
            name="is_indexed",
            field=models.BooleanField(
                db_default=False,
                default=False,
                editable=False,
                help_text="Whether `RejectedWord` has every word that could be a device id.",
            ),
        ),
        migrations.AlterField(
            model_name="rejectedevent",
            name="encrypted_body",
            field=models.BinaryField(
                help_text="The first 256 KiB as sent, encrypted; empty where events are only counted."
            ),
        ),
        migrations.CreateModel(
            name="RejectedWord",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "digest",
                        "rejected_event",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                (
                    "digest",
                    models.BigIntegerField(
                        help_text="The start of the word's hash under a channel's key."
                    ),
                ),
                (
                    "rejected_event",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, to="ingest.rejectedevent"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RejectedDay",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("day", models.DateField(help_text="In UTC.")),
                ("row_count", models.IntegerField(help_text="About how many rows there are.")),
                (
                    "byte_count",
                    models.BigIntegerField(help_text="About how many bytes of events they hold."),
                ),
                (
                    "sampled_out",
                    models.BigIntegerField(
                        db_default=0,
                        default=0,
                        help_text="Rejected events that were deleted, the oldest first.",
                    ),
                ),
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
                "constraints": [
                    models.UniqueConstraint(fields=("channel", "day"), name="rejectedday_identity")
                ]
            },
        ),
    ]
