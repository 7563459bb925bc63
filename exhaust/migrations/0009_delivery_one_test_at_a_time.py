from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('exhaust', '0008_link_created_by'),
    ]

    operations = [
        migrations.AlterField(
            model_name='delivery',
            name='status',
            field=models.CharField(choices=[('waiting', 'Waiting'), ('failing', 'Failing'), ('delivered', 'Delivered'), ('dead', 'Dead')], default='failing', max_length=16),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.UniqueConstraint(condition=models.Q(('status', 'waiting')), fields=('channel',), name='delivery_one_test_at_a_time'),
        ),
    ]
