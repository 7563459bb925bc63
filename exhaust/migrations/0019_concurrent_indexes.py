"""Indexes of tables that workers and callers write to meanwhile."""

from django.db import migrations, models

from ingest.db.add_index import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("exhaust", "0018_archive")]
    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("kind", "files"), ("status", "failing")),
                fields=["next_at"],
                name="files_due",
            ),
        ),
        AddIndexConcurrently(
            model_name="job",
            index=models.Index(
                fields=["channel", "conversation", "-submitted_at", "-id"],
                name="job_by_conversation",
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("kind__in", ["callback", "files"]), ("status", "dead")),
                fields=["ended_at"],
                name="delivery_dead",
            ),
        ),
    ]
