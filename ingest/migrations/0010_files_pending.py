from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingest', '0009_read_count'),
    ]

    operations = [
        migrations.AddField(
            model_name='participant',
            name='files_pending',
            field=models.BooleanField(db_default=False, default=False, editable=False, help_text='Whether files of before `withdrawn_at` are still to be found.'),
        ),
        migrations.AlterField(
            model_name='erasure',
            name='searched',
            field=models.JSONField(db_default={}, default=dict, help_text='Exports whose files were searched; rejected events that were searched, that were decrypted for it, and that have no key any more.'),
        ),
    ]
