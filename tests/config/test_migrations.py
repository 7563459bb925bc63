"""Old processes serve on while `migrate` runs: a migration after the first set only adds."""

from collections.abc import Iterator

import pytest
from django.db import models
from django.db.migrations import Migration, operations
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED

FIRST_SET = {
    ("exhaust", "0001_initial"),
    ("ingest", "0001_initial"),
    ("ingest", "0002_clickstream_views"),
    ("ingest", "0003_audit_append_only"),
}
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
        if isinstance(step, operations.AddField) and step.model_name_lower not in created:
            field = step.field
            if not (field.null or field.db_default is not NOT_PROVIDED or field.many_to_many):
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
    } == {}


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        (operations.RemoveField("job", "tag"), "Remove field tag"),
        (operations.DeleteModel("Job"), "Delete model Job"),
        (operations.RenameField("job", "tag", "label"), "Rename field tag"),
        (operations.AddField("job", "label", models.TextField()), "label: old processes insert"),
    ],
    ids=["remove", "delete", "rename", "no default"],
)
def test_removal_is_found(step: operations.base.Operation, fault: str) -> None:
    migration = Migration("9999_made_up", "exhaust")
    migration.operations = [step]

    (found_fault,) = find_faults(migration)
    assert found_fault.startswith(fault)


@pytest.mark.parametrize(
    "field", [models.TextField(null=True), models.TextField(db_default="")], ids=["null", "default"]
)
def test_addition_is_fine(field: models.Field) -> None:  # type: ignore[type-arg]
    migration = Migration("9999_made_up", "exhaust")
    migration.operations = [operations.AddField("job", "label", field)]

    assert list(find_faults(migration)) == []
