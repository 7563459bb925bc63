"""Old processes serve on while `migrate` runs: a migration after the first set only adds."""

from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection, connections, models, transaction
from django.db.migrations import Migration, operations
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED
from django.test.utils import CaptureQueriesContext

from ingest.db.add_index import AddIndexConcurrently

FIRST_SET = {
    ("exhaust", "0001_initial"),
    ("ingest", "0001_initial"),
    ("ingest", "0002_clickstream_views"),
    ("ingest", "0003_audit_append_only"),
}
# rewrites a table; docs/operations.md says so
KNOWN_FAULTS = {("exhaust", "0013_find_and_queue"): ["conversation: PostgreSQL rewrites the table"]}
REMOVALS = (
    operations.DeleteModel,
    operations.RemoveField,
    operations.RenameField,
    operations.RenameModel,
)


def find_faults(migration: Migration) -> Iterator[str]:
    """Returns the operations that break old processes that still serve."""
    created = {
        step.name_lower for step in migration.operations if isinstance(step, operations.CreateModel)
    }
    for step in migration.operations:
        if isinstance(step, REMOVALS):
            yield f"{step.describe()}: old processes still read it"
        is_slow = isinstance(step, operations.AddIndex) and not isinstance(
            step, AddIndexConcurrently
        )
        if is_slow and step.model_name_lower not in created:
            yield f"{step.describe()}: old processes cannot write meanwhile"
        if isinstance(step, AddIndexConcurrently) and migration.atomic:
            yield f"{step.describe()}: it needs atomic = False"
        if isinstance(step, operations.AddField) and step.model_name_lower not in created:
            field = step.field
            if field.generated:
                yield f"{step.name}: PostgreSQL rewrites the table"
            is_filled = field.generated or field.db_default is not NOT_PROVIDED
            if not (field.null or is_filled or field.many_to_many):
                yield f"{step.name}: old processes insert rows without it; give a db_default"


def test_migrations_only_add() -> None:
    ours = {
        key: migration
        for key, migration in MigrationLoader(
            None, ignore_no_migrations=True
        ).disk_migrations.items()
        if key[0] in {"exhaust", "ingest"}
    }

    assert set(ours) >= FIRST_SET
    assert {
        key: faults
        for key, migration in ours.items()
        if key not in FIRST_SET and (faults := list(find_faults(migration)))
    } == KNOWN_FAULTS


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (operations.RemoveField("job", "tag"), "Remove field tag"),
        (operations.DeleteModel("Job"), "Delete model Job"),
        (operations.RenameField("job", "tag", "label"), "Rename field tag"),
        (operations.AddField("job", "label", models.TextField()), "label: old processes insert"),
        (
            operations.AddField(
                "job",
                "label",
                models.GeneratedField(
                    expression=models.F("tag"), output_field=models.TextField(), db_persist=True
                ),
            ),
            "label: PostgreSQL rewrites the table",
        ),
        (operations.AddIndex("job", models.Index("tag", name="by_tag")), "Create index by_tag"),
        (AddIndexConcurrently("job", models.Index("tag", name="by_tag")), "Create index by_tag"),
    ],
    ids=["remove", "delete", "rename", "no default", "generated", "locking index", "transaction"],
)
def test_removal_is_found(step: operations.base.Operation, fault: str) -> None:
    migration = Migration("9999_made_up", "exhaust")
    migration.operations = [step]

    (found_fault,) = find_faults(migration)
    assert found_fault.startswith(fault)


@pytest.mark.parametrize(
    "field",
    [
        models.TextField(null=True),
        models.TextField(db_default=""),
    ],
    ids=["null", "default"],
)
def test_addition_is_fine(field: models.Field) -> None:  # type: ignore[type-arg]
    migration = Migration("9999_made_up", "exhaust")
    migration.operations = [operations.AddField("job", "label", field)]

    assert list(find_faults(migration)) == []


# Indexes ------------------------------------------------------------------------------------------

INDEXES = [
    ("ingest", "0013_event_alias", "storedevent_alias"),
    ("ingest", "0019_events_by_time", "storedevent_received_brin"),
    ("ingest", "0019_events_by_time", "storedevent_occurred_brin"),
    ("ingest", "0020_concurrent_indexes", "participant_phone"),
    ("exhaust", "0019_concurrent_indexes", "job_by_conversation"),
]


def apply(app: str, name: str) -> None:
    """Runs a migration once more."""
    loader = MigrationLoader(connection)
    state = loader.project_state((app, name), at_end=False)
    migration = loader.get_migration(app, name)
    with connection.schema_editor(atomic=migration.atomic) as editor:
        migration.apply(state, editor)


def read_index(name: str) -> tuple[int, bool, str] | None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::bigint, indisvalid, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE indexrelid = to_regclass(%s)",
            [name],
        )
        row = cursor.fetchone()
    return row and tuple(row)


def leave_half_made(name: str, definition: str) -> None:
    """Makes the index anew while another connection writes to its table, until that takes long."""
    other = connections.create_connection("default")
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"DROP INDEX {name}")
        other.set_autocommit(False)
        with other.cursor() as cursor:
            table = definition.split(" ON ")[1].split(" ")[0]
            cursor.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 200")
            with pytest.raises(OperationalError):
                cursor.execute(definition.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY"))
            cursor.execute("RESET lock_timeout")
    finally:
        other.close()


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("app", "name", "index"), INDEXES)
def test_half_made_index_is_made_anew(app: str, name: str, index: str) -> None:
    before = read_index(index)
    assert before is not None
    _, _, definition = before
    leave_half_made(index, definition)
    half_made = read_index(index)
    assert half_made is not None
    assert half_made[1:] == (False, definition)

    with CaptureQueriesContext(connection) as queries:
        apply(app, name)

    after = read_index(index)
    assert after is not None
    assert after[1:] == (True, definition)
    made = [query["sql"] for query in queries if query["sql"].startswith("CREATE INDEX")]
    assert made
    assert all(sql.startswith("CREATE INDEX CONCURRENTLY") for sql in made)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("app", "name"),
    [("ingest", "0020_concurrent_indexes"), ("exhaust", "0019_concurrent_indexes")],
)
def test_whole_indexes_are_kept(app: str, name: str) -> None:
    with CaptureQueriesContext(connection) as queries:
        apply(app, name)
    assert not [query["sql"] for query in queries if " INDEX " in query["sql"].upper()]
