import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("exhaust", "0023_delivery_lists")]
    operations = [
        migrations.AlterField(
            model_name="delivery",
            name="destination",
            field=models.ForeignKey(
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="deliveries",
                to="exhaust.destination",
            ),
        ),
        migrations.AlterField(
            model_name="deadletter",
            name="destination",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="dead_letters",
                to="exhaust.destination",
            ),
        ),
    ]
