from django.db import migrations, models

from ingest.db.add_index import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("exhaust", "0020_link_is_shared")]
    operations = [
        AddIndexConcurrently(
            model_name="job",
            index=models.Index(
                fields=[
                    "channel", "-submitted_at", "-id",
                    "status", "dataset", "own_scope", "completed_at",
                ],
                name="job_by_time",
            ),
        ),
        AddIndexConcurrently(
            model_name="job",
            index=models.Index(
                condition=models.Q(("schedule__isnull", False)),
                fields=["schedule", "-submitted_at", "-id"],
                name="job_by_schedule",
            ),
        ),
        AddIndexConcurrently(
            model_name="job",
            index=models.Index(
                condition=models.Q(("own_scope", ""), _negated=True),
                fields=["channel", "dataset"],
                name="job_own_dataset",
            ),
        ),
    ]  # fmt: skip
