import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
        ('ingest', '0010_files_pending'),
    ]

    operations = [
        # Django would make SQLite's table anew, which its views do not survive
        migrations.RunSQL(
            'ALTER TABLE ingest_channel ADD COLUMN requires_second_factor boolean NOT NULL DEFAULT false',
            'ALTER TABLE ingest_channel DROP COLUMN requires_second_factor',
            state_operations=[
                migrations.AddField(
                    model_name='channel',
                    name='requires_second_factor',
                    field=models.BooleanField(db_default=False, default=False, help_text='Roles in this channel give nothing until their user has a second factor.'),
                ),
            ],
        ),
        migrations.CreateModel(
            name='BrowserSession',
            fields=[
                ('session_data', models.TextField(verbose_name='session data')),
                ('expire_date', models.DateTimeField(db_index=True, verbose_name='expire date')),
                ('session_key', models.CharField(help_text="SHA-256 of the session's cookie.", max_length=64, primary_key=True, serialize=False)),
                ('device', models.CharField(help_text='What the browser calls itself.', max_length=200)),
                ('address', models.CharField(help_text='The network of the sign-in.', max_length=64)),
                ('begun_at', models.DateTimeField(null=True)),
                ('used_at', models.DateTimeField()),
                ('user', models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'verbose_name': 'session',
                'verbose_name_plural': 'sessions',
                'abstract': False,
            },
        ),
        migrations.CreateModel(
            name='CacheEntry',
            fields=[
                ('cache_key', models.CharField(max_length=255, primary_key=True, serialize=False)),
                ('value', models.TextField()),
                ('expires', models.DateTimeField(db_index=True)),
            ],
        ),
    ]
