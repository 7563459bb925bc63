from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("exhaust", "0019_concurrent_indexes")]
    operations = [
        migrations.AddField(
            model_name="link",
            name="is_shared",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Whether a person made it to share; no answer of the API shows it.",
            ),
        ),
    ]
