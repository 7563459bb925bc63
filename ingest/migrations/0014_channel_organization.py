from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0013_event_alias")]
    operations = [
        # Django would make SQLite's table anew, which its views do not survive
        migrations.RunSQL(
            "ALTER TABLE ingest_channel ADD COLUMN organization varchar(255) NOT NULL DEFAULT ''",
            "ALTER TABLE ingest_channel DROP COLUMN organization",
            state_operations=[
                migrations.AddField(
                    model_name="channel",
                    name="organization",
                    field=models.CharField(
                        blank=True,
                        db_default="",
                        default="",
                        help_text="The name of its organization in pull's metadata; empty for the channel's own.",
                        max_length=255,
                    ),
                ),
            ],
        ),
    ]
