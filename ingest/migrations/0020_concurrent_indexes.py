"""Indexes of tables that senders and readers write to meanwhile."""

from django.db import migrations, models

from ingest.db.add_index import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("ingest", "0019_events_by_time")]
    operations = [
        AddIndexConcurrently(
            model_name="rejectedevent",
            index=models.Index(fields=["channel", "received_at"], name="rejectedevent_arrival"),
        ),
        AddIndexConcurrently(
            model_name="rejectedevent",
            index=models.Index(
                fields=["channel", "id"],
                condition=models.Q(is_indexed=False),
                name="rejectedevent_unindexed",
            ),
        ),
        AddIndexConcurrently(
            model_name="participant",
            index=models.Index(
                condition=models.Q(("files_pending", True)),
                fields=["channel"],
                name="participant_files_pending",
            ),
        ),
        AddIndexConcurrently(
            model_name="storedevent",
            index=models.Index(
                condition=models.Q(other_conversations__isnull=False),
                fields=["channel", "other_conversations"],
                name="storedevent_shared",
            ),
        ),
        AddIndexConcurrently(
            model_name="participant",
            index=models.Index(
                condition=models.Q(("phone_digest__isnull", False)),
                fields=["channel", "phone_digest"],
                name="participant_phone",
            ),
        ),
        AddIndexConcurrently(
            model_name="participant",
            index=models.Index(
                condition=models.Q(
                    ("encrypted_phone__isnull", False), ("phone_digest__isnull", True)
                ),
                fields=["channel", "id"],
                name="participant_phone_unhashed",
            ),
        ),
    ]
