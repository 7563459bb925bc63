from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('exhaust', '0009_delivery_one_test_at_a_time'),
    ]

    operations = [
        migrations.AddField(
            model_name='schedule',
            name='columns',
            field=models.JSONField(blank=True, db_default=models.Value([], models.JSONField()), default=list, help_text="Headers of the file's columns; none means all."),
        ),
        migrations.AddField(
            model_name='schedule',
            name='layout',
            field=models.CharField(blank=True, db_default='', default='', help_text='Such as uci-2022.', max_length=64),
        ),
        migrations.AddField(
            model_name='schedule',
            name='timestamps',
            field=models.CharField(blank=True, choices=[('utc', 'UTC'), ('local', 'Local')], db_default='utc', default='utc', help_text="The zone of times in the file: UTC, or the schedule's own.", max_length=5),
        ),
    ]
