from typing import Any

from django.db import migrations, models


class AddIndexBesideWriters(migrations.AddIndex):
    """On PostgreSQL the table is written on meanwhile."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        beside = {"concurrently": True} if schema_editor.connection.vendor == "postgresql" else {}
        schema_editor.add_index(model, self.index, **beside)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("ingest", "0012_positions_are_shifted")]

    operations = [
        AddIndexBesideWriters(
            "participant",
            models.Index(
                fields=["channel", "device_id"],
                condition=models.Q(consent=False),
                name="participant_refused",
            ),
        ),
    ]
