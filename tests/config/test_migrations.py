"""Old processes serve on while `migrate` runs: a migration only adds."""

import os
import subprocess
import sys
from secrets import token_hex
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.db.migrations import Migration, operations
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED

LOADED = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
BEFORE = {"exhaust": "0006", "ingest": "0007"}  # nothing was out yet
BEFORE = {"exhaust": "0006", "ingest": "0008"}  # nobody ran those in production
OURS = {
    key: migration
    for key, migration in LOADED.items()
    if key[0] in BEFORE and key[1] >= BEFORE[key[0]]
}
TAKES_AWAY = (
    operations.DeleteModel,
    operations.RemoveField,
    operations.RenameField,
    operations.RenameModel,
)


@pytest.mark.parametrize(
    "migration", OURS.values(), ids=lambda each: f"{each.app_label}.{each.name}"
)
def test_migration_only_adds(migration: Migration) -> None:
    made = {
        step.name_lower for step in migration.operations if isinstance(step, operations.CreateModel)
    }
    for step in migration.operations:
        assert not isinstance(step, TAKES_AWAY), f"{step}: old processes still read it"
        if isinstance(step, operations.AddField) and step.model_name_lower not in made:
            field = step.field
            filled = field.null or field.db_default is not NOT_PROVIDED or field.many_to_many
            assert filled, f"{step.name}: old processes insert rows without it; give a db_default"


@pytest.mark.postgresql
def test_first_schema_upgrades_with_its_rows() -> None:
    # given one in which the default of positions was not yet a function, with an event in it
    server = urlsplit(os.environ["DATABASE_URL"])
    name = f"exhaust_first_{token_hex(6)}"
    url = server._replace(path=f"/{name}").geturl()

    def migrate(*words: str) -> None:
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity", "0", *words],
            cwd=settings.BASE_DIR, env={**os.environ, "DATABASE_URL": url}, check=True,
            capture_output=True,
        )  # fmt: skip

    with psycopg.connect(server._replace(path="/postgres").geturl(), autocommit=True) as postgres:
        postgres.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
        try:
            migrate("ingest", "0001")
            with psycopg.connect(url) as first:
                first.execute(
                    "ALTER TABLE ingest_storedevent ALTER xid SET DEFAULT pg_current_xact_id()"
                )
                first.execute("DROP FUNCTION exhaust_position, exhaust_shift")
                first.execute(
                    "INSERT INTO ingest_channel (identifier, name, created_at)"
                    " VALUES ('ORG_001', '', now())"
                )

            # when
            migrate()

            # then what it held is there, and positions are given
            with psycopg.connect(url) as upgraded:
                found = upgraded.execute("SELECT identifier FROM ingest_channel").fetchall()
                assert found == [("ORG_001",)]
                (default,) = upgraded.execute(
                    "SELECT column_default FROM information_schema.columns"
                    " WHERE table_name = 'ingest_session' AND column_name = 'xid'"
                ).fetchall()
                assert default == ("exhaust_position()",)
        finally:
            postgres.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]
