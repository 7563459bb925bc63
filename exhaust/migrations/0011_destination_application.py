from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("exhaust", "0010_schedule_columns")]
    operations = [
        migrations.AddField(
            model_name="destination",
            name="application",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="The id of the application whose documents alone are pushed;"
                " empty means all.",
                max_length=128,
            ),
        ),
    ]
