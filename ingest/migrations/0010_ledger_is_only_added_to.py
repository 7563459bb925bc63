"""Seals and refusals; and the ledger and its seals refuse, in the database, to be changed.

A later migration that rebuilds one of the two tables calls `unguard` before and `guard` after.
"""
import django.utils.timezone
from django.db import migrations, models


TABLES = ("ingest_ledgerentry", "ingest_ledgerseal")
WORDS = "The ledger is only added to."

FUNCTION = f"""
CREATE FUNCTION ingest_only_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{WORDS}' USING ERRCODE = 'insufficient_privilege'; END $$
"""


def guard(apps, editor):
    if editor.connection.vendor == "postgresql":
        editor.execute(FUNCTION)
        for table in TABLES:
            editor.execute(
                f"CREATE TRIGGER {table}_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION ingest_only_added_to()"
            )
        return
    for table in TABLES:
        for act in ("UPDATE", "DELETE"):
            editor.execute(
                f"CREATE TRIGGER {table}_{act.lower()} BEFORE {act} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{WORDS}'); END"
            )
        # INSERT OR REPLACE takes a row away without a word to the trigger above
        editor.execute(
            f"CREATE TRIGGER {table}_replace BEFORE INSERT ON {table}"
            f" WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id)"
            f" BEGIN SELECT RAISE(ABORT, '{WORDS}'); END"
        )


def unguard(apps, editor):
    if editor.connection.vendor == "postgresql":
        for table in TABLES:
            editor.execute(f"DROP TRIGGER {table}_stays ON {table}")
        editor.execute("DROP FUNCTION ingest_only_added_to()")
        return
    for table in TABLES:
        for act in ("update", "delete", "replace"):
            editor.execute(f"DROP TRIGGER {table}_{act}")


class Migration(migrations.Migration):

    dependencies = [
        ("ingest", "0009_privacy"),
    ]

    operations = [
        migrations.CreateModel(
            name='LedgerSeal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('day', models.DateField(unique=True)),
                ('entries', models.IntegerField()),
                ('previous', models.CharField(blank=True, max_length=64)),
                ('digest', models.CharField(help_text='SHA-256, in hex.', max_length=64)),
                ('sealed_at', models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.CreateModel(
            name='Refusal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('hour', models.DateTimeField()),
                ('action', models.CharField(max_length=64)),
                ('address', models.CharField(blank=True, max_length=64)),
                ('count', models.BigIntegerField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name='apikey',
            name='apikey_private_never_ingests',
        ),
        migrations.RemoveIndex(
            model_name='ledgerentry',
            name='ledger_of_channel',
        ),
        migrations.AddIndex(
            model_name='ledgerentry',
            index=models.Index(fields=['channel', 'at', 'id'], name='ledger_in_time'),
        ),
        migrations.AddIndex(
            model_name='ledgerentry',
            index=models.Index(fields=['at', 'id'], name='ledger_of_day'),
        ),
        migrations.AddConstraint(
            model_name='apikey',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('scopes__contains', 'ingest'), _negated=True), models.Q(models.Q(('scopes__contains', 'export:private'), _negated=True), models.Q(('scopes__contains', 'pull'), _negated=True), models.Q(('scopes__contains', 'erase'), _negated=True), models.Q(('scopes__contains', 'audit'), _negated=True)), _connector='OR'), name='apikey_private_never_ingests'),
        ),
        migrations.AddConstraint(
            model_name='refusal',
            constraint=models.UniqueConstraint(fields=('hour', 'action', 'address'), name='refusal_once_each'),
        ),
        migrations.RunPython(guard, unguard),
    ]
