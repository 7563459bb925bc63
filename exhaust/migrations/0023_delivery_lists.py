from django.db import migrations, models

from ingest.db.add_index import AddIndexConcurrently


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("exhaust", "0022_former_job_indexes")]
    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                condition=models.Q(("destination__isnull", False)),
                fields=["destination", "id"],
                name="delivery_by_destination",
            ),
        ),
        AddIndexConcurrently(
            model_name="deadletter",
            index=models.Index(
                condition=models.Q(("delivered_at", None)),
                fields=["destination", "id"],
                name="deadletter_undelivered",
            ),
        ),
    ]
