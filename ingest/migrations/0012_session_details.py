from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0011_sign_in")]
    operations = [
        migrations.AddField(
            model_name="session",
            name="details",
            field=models.JSONField(
                db_default={}, default=dict, help_text="The device, the system and the place."
            ),
        ),
        migrations.AlterField(
            model_name="session",
            name="sender_session_id",
            field=models.TextField(blank=True, help_text="The sender's id of it."),
        ),
    ]
