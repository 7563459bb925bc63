"""Pages made from the code are as the code is."""

import pytest

from ingest import audit
from tools import reference


def test_reference_pages_are_current():
    assert [path.name for path in reference.list_stale_pages()] == []


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
