from django.db import migrations, models


def search_whole(apps, schema_editor):
    """Lets an erasure decrypt the older rejected events: their words lack some ways to write an id."""
    apps.get_model("ingest", "RejectedEvent").objects.filter(is_indexed=True).exclude(
        reason="not_kept"
    ).update(is_indexed=False)


class Migration(migrations.Migration):
    dependencies = [("ingest", "0007_identifiers")]
    operations = [
        migrations.AddField(
            model_name="erasure",
            name="searched",
            field=models.JSONField(
                default=dict,
                db_default={},
                help_text="Rejected events that were searched, that were decrypted for it, and"
                " that have no key any more.",
            ),
        ),
        migrations.RunPython(search_whole, migrations.RunPython.noop),
    ]
