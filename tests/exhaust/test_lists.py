"""A page of a list takes as many statements for fifty rows as for ten.

`/export/sample` alone reads its sessions by ten, because they may be long.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.db import connection, models
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern, URLResolver, get_resolver

from exhaust.models import (
    Callback,
    ChatWebhook,
    DeadLetter,
    Delivery,
    Destination,
    File,
    Link,
    Transition,
)
from ingest import audit
from ingest.auth.roles import PERMISSIONS
from ingest.models import (
    ApiKey,
    AuditEvent,
    Channel,
    DerivationState,
    RejectedDay,
    RejectedWord,
    Role,
    StoredEvent,
)
from tests.authorization.world import OWN, OWNED, SCOPES, make_key, make_tenant
from tests.conftest import bearer

pytestmark = pytest.mark.django_db

# those of one row or form, and those that send on
NO_LISTS = re.compile(r"/(one|edit|new|act|views|erase|replay|dismiss|chat|sign-out)(/|$)")
WITH_ROWS = (
    f"exports/{OWN.tag}/{OWN.request_id}",
    f"destinations/one/{OWN.destination}",
    f"schedules/one/{OWN.schedule}",
    f"conversations/one?id={OWN.conversation}",
    f"exports/new/conversations?q={OWN.conversation[:5]}",
)
PARTS = (DeadLetter, Delivery, File, Link, StoredEvent, Transition)
NOT_COPIED = (Channel, ChatWebhook, DerivationState, RejectedDay, RejectedWord)
CALLS = {
    f"/dataset/v1/request/list/{OWN.tag}": None,
    "/dataset/v1/request/search": {"request": {}},
    "/dataset/v1/schedule": None,
    "/dataset/v1/destination": None,
    f"/dataset/v1/destination/{OWN.destination}/deadletters": None,
    "/dataset/v1/audit": None,
    "/export/events": None,
    "/export/sessions": None,
    "/export/users": None,
    "/export/mapping": None,
}


class Copies:
    """Copies each row. Half of the copied parts belong to copies, and half to the row itself."""

    def __init__(self) -> None:
        self._rows = [row for model, _path in OWNED for row in model.objects.order_by("pk")]
        more: list[Any] = [Callback, Group, Role, User, ApiKey, AuditEvent]
        self._rows = [row for model in more for row in model.objects.all()] + self._rows
        self._rows = [row for row in self._rows if not isinstance(row, NOT_COPIED)]
        self._copied: dict[tuple[type[models.Model], Any], Any] = {}

    def add(self, number: int) -> None:
        self._copied.clear()
        for row in self._rows:
            self._add_one(row, number)

    def _add_one(self, row: Any, number: int) -> None:
        values = {}
        for field in row._meta.concrete_fields:
            value = getattr(row, field.attname)
            if field.primary_key or field.generated:
                continue
            if field.is_relation and (number % 2 or not isinstance(row, PARTS)):
                value = self._copied.get((field.related_model, value), value)
            elif not field.is_relation and _is_distinct(field):
                value = _vary(value, number)
            values[field.attname] = value
        added = type(row).objects.create(**values)
        for field in row._meta.many_to_many:
            getattr(added, field.name).set(getattr(row, field.name).all())
        self._copied[type(row), row.pk] = added.pk


def _is_distinct(field: Any) -> bool:
    """Returns whether rows differ in the field."""
    if field.name == "tag":  # of all exports
        return False
    rules = [rule for rule in field.model._meta.constraints if hasattr(rule, "fields")]
    return field.unique or (not field.choices and any(field.name in rule.fields for rule in rules))


def _vary(value: Any, number: int) -> Any:
    if isinstance(value, UUID):
        return uuid4()
    if isinstance(value, int) and not isinstance(value, bool):
        return value + number
    if isinstance(value, bytes):
        return value[:-1] + bytes([number])
    if not isinstance(value, str):
        return value
    return f"{number:02}-{value[3:]}"


@pytest.fixture
def pages() -> dict[str, Callable[[], Any]]:
    """The calls of all lists, by address."""
    tenant = make_tenant(OWN)
    group = Group.objects.create(name="all")
    Role.objects.create(group=group, channel=tenant.channel, **dict.fromkeys(PERMISSIONS, True))
    user = User.objects.create_user("asha", email="a@x.example", is_staff=True, is_superuser=True)
    user.groups.add(group)
    browser = Client()
    browser.force_login(user)
    key = make_key(tenant.channel, scopes=(*SCOPES[1:4], "audit"))
    program = Client(headers=bearer(key))
    audit.record("channel.changed", channel=OWN.channel, subject="a")
    Destination.objects.update(disabled_reason="", cursor_xid=1 << 40)
    files = Destination.objects.create(
        channel=tenant.channel, name="bucket", kind="s3", resource="files"
    )
    for status in ("failing", "dead"):
        Delivery.objects.create(
            channel=tenant.channel, destination=files, kind="files", status=status,
            job=Callback.objects.all()[0].job,
        )  # fmt: skip

    def call(path: str, body: Any) -> Any:
        if body is None:
            return program.get(path)
        return program.post(path, body, content_type="application/json")

    found = {path: lambda path=path, body=body: call(path, body) for path, body in CALLS.items()}
    for path in (*_console_paths(), *(f"/console/{OWN.channel}/{path}" for path in WITH_ROWS),
                 *_admin_paths(), "/account/"):  # fmt: skip
        found[path] = lambda path=path: browser.get(path)
    return found


def _console_paths() -> Iterator[str]:
    def walk(patterns: Any, before: str) -> Iterator[str]:
        for pattern in patterns:
            route = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, route)
            elif isinstance(pattern, URLPattern):
                yield route

    for route in walk(get_resolver().url_patterns, "/"):
        path = route.replace("<str:channel>", OWN.channel)
        if route.startswith("/console/<") and "<" not in path and not NO_LISTS.search(path):
            yield path


def _admin_paths() -> Iterator[str]:
    for model in filter(admin.site.is_registered, apps.get_models()):
        yield f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def count_statements(pages: dict[str, Callable[[], Any]]) -> dict[str, int]:
    counts = {}
    for path, call in pages.items():
        call()  # the first one of a minute notes the session
        with CaptureQueriesContext(connection) as captured:
            answer = call()
            if answer.streaming:
                b"".join(answer)
        assert answer.status_code == 200, (path, answer.status_code)
        counts[path] = len(captured)
    return counts


def test_rows_take_no_more_statements(pages: dict[str, Callable[[], Any]]) -> None:
    copies = Copies()
    for number in range(1, 11):
        copies.add(number)
    assert Link.objects.count() >= 10
    before = count_statements(pages)
    for number in range(11, 51):
        copies.add(number)

    after = count_statements(pages)

    assert {path: (before[path], after[path]) for path in pages if after[path] > before[path]} == {}
