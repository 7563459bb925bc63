from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingest", "0020_concurrent_indexes")]
    operations = [
        migrations.AddField(
            model_name="rejectedevent",
            name="repeated_at",
            field=models.DateTimeField(
                help_text="When it last came again on that day; none if it did not.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="rejectedevent",
            name="received_at",
            field=models.DateTimeField(help_text="Its first arrival on its last day, in UTC."),
        ),
        migrations.AlterField(
            model_name="rejectedevent",
            name="count",
            field=models.IntegerField(
                db_default=1,
                default=1,
                help_text="How often it came on that day, or how many it stands for.",
            ),
        ),
    ]
