"""Pages made from the code are as the code is."""

import pytest
from django.apps import apps

from ingest import audit
from tools import reference


def test_reference_pages_are_current():
    assert [path.name for path in reference.list_stale_pages()] == []


def test_each_table_has_a_row_limit():
    from tools.row_limits import ROW_LIMITS

    models = apps.get_models(include_auto_created=True)
    tables = {model._meta.label for model in models if not model._meta.proxy}

    assert tables - set(ROW_LIMITS) == set(), "tools/row_limits.py"
    assert set(ROW_LIMITS) - tables == set()


@pytest.mark.parametrize("setting", reference.list_settings(), ids=lambda setting: setting.name)
def test_each_setting_has_a_meaning(setting: reference.Setting):
    assert setting.note.endswith(".")


def test_defaults_are_read_from_the_code():
    defaults = {setting.name: setting.default for setting in reference.list_settings()}

    assert defaults["EXHAUST_PART_BYTES"] == "5368709120"
    assert defaults["EXHAUST_DATABASE_POOL_SIZE"] == "8"


@pytest.mark.django_db
def test_unknown_audit_action_is_refused():
    with pytest.raises(ValueError, match=r"is not in ingest\.audit\.ACTIONS"):
        audit.record("key.borrowed")


def test_log_events_are_noun_and_participle():
    odd = [event for event in reference.list_log_events() if event.count(".") != 1]

    assert odd == []
