"""Each way to request takes every field of a request, or is named here with the reason."""

import re

import pytest
from django.test import Client

from exhaust.admin.jobs import JobAdmin
from exhaust.admin.schedules import ScheduleForm
from exhaust.admin.submit_form import CONFIG_NAMES, SubmitForm
from exhaust.api.schedules import WIRE_NAMES, ScheduleFields
from exhaust.api.validation import DatasetConfig, SubmitRequest
from exhaust.cli.commands import RequestOptions
from exhaust.models import Destination
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in

FIELDS = {*SubmitRequest().fields, *DatasetConfig().fields} - {"datasetConfig", "output_format"}
DAYS = {"startDate", "endDate"}  # a schedule has a window
ONCE = {"since", "notBefore", "forceNew"}  # name one request, or one time
NEVER_STORED = {"encryptionKey"}
REPEATED = {"type"}  # the dataset again
BY_PERSON = {"requestedBy"}  # is the user
RENAMED = {"output_format": "outputFormat", "zone": "timezone"} | {
    name: name.split("_")[0] + "".join(map(str.title, name.split("_")[1:]))
    for name in ("encryption_key", "not_before", "force_new", "callback_url", "deliver_to")
}


def test_schedule_takes_each_field() -> None:
    assert FIELDS - set(ScheduleFields().fields) == DAYS | ONCE | NEVER_STORED | REPEATED
    assert set(WIRE_NAMES.values()) == set(ScheduleFields().fields)


def test_schedule_in_admin_takes_each_field() -> None:
    taken = {WIRE_NAMES.get(name, name) for name in ScheduleForm.Meta.fields}
    assert set(WIRE_NAMES.values()) - taken == BY_PERSON


def test_job_in_admin_takes_each_field() -> None:
    shown = JobAdmin.get_fields(None, None)  # type: ignore[arg-type, call-arg]
    taken = {CONFIG_NAMES.get(name) or RENAMED.get(name, name) for name in shown}
    assert set(shown) == set(SubmitForm.base_fields)
    assert FIELDS - taken == REPEATED | BY_PERSON


def test_command_takes_each_filter() -> None:
    options = {"first_day": "startDate", "last_day": "endDate", "conversation": "conversationId"}
    taken = {options.get(name, name) for name in RequestOptions.__dataclass_fields__}
    assert set(DatasetConfig().fields) - taken == REPEATED


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("exports/new?since=AB12&encryption=publickey", REPEATED | BY_PERSON),
        ("schedules/new", DAYS | ONCE | NEVER_STORED | REPEATED | BY_PERSON),
    ],
)
def test_console_takes_each_field(path: str, left_out: set[str]) -> None:
    # given a channel with a destination for files
    Destination.objects.create(
        channel=make_channel(), name="lake", kind="s3", resource="files", url="https://s3.example"
    )
    asha: Client = sign_in(submit_response=True, submit_private=True, administer=True)

    # when
    page = read_html(asha.get(f"{C}/{path}"))

    # then
    names = {name.partition(".")[0] for name in re.findall(r' name="([\w.-]+)"', page)}
    names |= {"conversationId"} & set(re.findall(r'data-fields="(conversationId)"', page))
    assert FIELDS - names == left_out
