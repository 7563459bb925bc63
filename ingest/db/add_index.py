"""The operation by which a migration adds an index to a table that has rows."""

from typing import Any

from django.db.migrations.operations import AddIndex


class AddIndexConcurrently(AddIndex):
    """Adds an index while senders write; its migration has `atomic = False`, and such steps only.

    It keeps the index that there is. PostgreSQL makes one anew that a failure left half made.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        is_postgresql = schema_editor.connection.vendor == "postgresql"
        name = self.index.name
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(
                "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
                if is_postgresql
                else "SELECT true FROM sqlite_master WHERE type = 'index' AND name = %s",
                [name],
            )
            is_whole = any(valid for (valid,) in cursor.fetchall())
        if is_whole:
            return
        if not is_postgresql:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        schema_editor.execute("SET lock_timeout = 0")  # it waits for open transactions
        schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        model = to_state.apps.get_model(app_label, self.model_name)
        schema_editor.add_index(model, self.index, concurrently=True)
        schema_editor.execute("RESET lock_timeout")
