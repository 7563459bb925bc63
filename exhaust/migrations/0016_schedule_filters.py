from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("exhaust", "0015_notices")]

    operations = [
        migrations.AddField(
            model_name="schedule",
            name="types",
            field=models.JSONField(
                blank=True,
                db_default=models.Value([], models.JSONField()),
                default=list,
                help_text="Event types; none means all.",
            ),
        ),
        migrations.AddField(
            model_name="schedule",
            name="application",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="An application's id.",
                max_length=128,
            ),
        ),
        migrations.AddField(
            model_name="schedule",
            name="rows",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="A row of a survey is a session (by default), or a participant.",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="schedule",
            name="answers",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="In a row of a survey: last, first, all.",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="schedule",
            name="by",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Counts of a summary are for the range, or for each day.",
                max_length=16,
            ),
        ),
    ]
