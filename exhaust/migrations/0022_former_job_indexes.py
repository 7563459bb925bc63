import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("exhaust", "0021_job_lists")]
    operations = [
        migrations.RemoveIndex(model_name="job", name="job_by_channel"),
        migrations.AlterField(
            model_name="job",
            name="schedule",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="jobs",
                to="exhaust.schedule",
            ),
        ),
    ]
