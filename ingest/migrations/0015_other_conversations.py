from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0014_channel_organization")]
    operations = [
        # Django would make SQLite's table anew, which its views do not survive
        migrations.RunSQL(
            "ALTER TABLE ingest_storedevent ADD COLUMN other_conversations text NULL",
            "ALTER TABLE ingest_storedevent DROP COLUMN other_conversations",
            state_operations=[
                migrations.AddField(
                    model_name="storedevent",
                    name="other_conversations",
                    field=models.TextField(
                        help_text="Ids of further conversations that it is in, each between commas.",
                        null=True,
                    ),
                ),
            ],
        ),
    ]
