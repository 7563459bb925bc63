import importlib

from django.db import migrations, models

before = importlib.import_module("ingest.migrations.0013_participant_refused")


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("ingest", "0013_participant_refused")]

    operations = [
        before.AddIndexBesideWriters(
            "participant",
            models.Index(
                fields=["channel", "updated_at"],
                condition=models.Q(consent=False),
                name="participant_refused_when",
            ),
        ),
    ]
