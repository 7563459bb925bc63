from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0017_key_created_by")]
    operations = [
        migrations.AddField(
            model_name="participant",
            name="phone_digest",
            field=models.BigIntegerField(
                editable=False,
                help_text="The start of the phone's hash under a channel's key.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="participant",
            name="earlier_consents",
            field=models.JSONField(
                editable=False,
                help_text="Consents before, each until when; the newest 20.",
                null=True,
            ),
        ),
    ]
