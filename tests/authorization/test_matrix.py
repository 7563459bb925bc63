"""Every address x verb x caller: no call shows, changes or hints at another channel's rows.

The addresses are the URLconf's. An answer about another channel's object must equal, byte for byte,
the answer about a missing object; and no answer holds a text of another channel only.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from exhaust.datasets import DATASETS
from ingest.events import RequestError
from tests.authorization.world import (
    NONE,
    OTHER,
    OWN,
    SCOPES,
    TWIN,
    Names,
    Tenant,
    make_key,
    make_tenant,
    rows_of,
)

# The scope of each address; add each new one. "dataset": the scope of the requested dataset.
SCOPE = {
    "v1/telemetry": "ingest",
    "data/v1/telemetry": "ingest",
    "data/v3/telemetry": "ingest",
    "content/data/v1/telemetry": "ingest",
    "action/data/v3/telemetry": "ingest",
    "v1/participants": "ingest",
    "v1/participants/<identifier>": "erase",
    "v1/conversations/<identifier>": "ingest",
    "collect": "application",
    "ping": "application",
    "": "application",
    "_bulk": "application",
    "<index>/_bulk": "application",
    "hit": "application",
    "hit/bulk": "application",
    "dataset/v1/request/submit": "dataset",
    "dataset/v1/request/submi": "dataset",
    "dataset/v1/request/preview": "dataset",
    "dataset/v1/request/read/<tag>": "dataset",
    "dataset/v1/request/list/<tag>": "dataset",
    "dataset/v1/request/search": "dataset",
    "dataset/v1/request/cancel/<tag>": "dataset",
    "dataset/v1/request/retry/<tag>": "dataset",
    "dataset/v1/request/revoke/<tag>": "dataset",
    "dataset/v1/schedule": "dataset",
    "dataset/v1/schedule/<name>": "dataset",
    "dataset/v1/schedule/<name>/pause": "dataset",
    "dataset/v1/schedule/<name>/resume": "dataset",
    "dataset/v1/destination": "pull",
    "dataset/v1/destination/<name>": "pull",
    "dataset/v1/destination/<name>/pause": "pull",
    "dataset/v1/destination/<name>/resume": "pull",
    "dataset/v1/destination/<name>/rewind": "pull",
    "dataset/v1/destination/<name>/test": "pull",
    "dataset/v1/destination/<name>/requeue": "pull",
    "dataset/v1/destination/<name>/deadletters": "pull",
    "export/sample": "pull",
    "export/mapping": "pull",
    "export/datasets/<name>": "dataset",
    "dataset/v1/download/<token>": "link",
    "dataset/v1/download/<token>/<name>": "link",
    "export/events": "pull",  # an ingest endpoint by PUT and POST
    "export/events/<identifier>": "pull",
    "export/session": "pull",
    "export/session/<identifier>": "pull",
    "export/sessions": "pull",
    "export/sessions/<identifier>": "pull",
    "export/user": "export:private",
    "export/user/<identifier>": "export:private",
    "export/users": "export:private",
    "export/users/<identifier>": "export:private",
    "dataset/v1/audit": "audit",
    "account": "none",
    "admin": "none",
    "console": "none",
    "docs": "none",
    "docs/": "none",
    "docs/try": "none",
    "docs/postman.json": "none",
    "docs/openapi.json": "none",
    "docs/openapi.yaml": "none",
    "metrics": "none",
    "healthz": "none",
    "readyz": "none",
}
ELSEWHERE = (
    "account/",
    "admin/",
    "console/",
)  # walked by test_account.py and test_admin.py beside this file, and by exhaust/test_console.py
VERBS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")


def addresses() -> dict[str, tuple[str, Any]]:
    """Every address that is served, with its template and view."""
    addresses_by_template: dict[str, tuple[str, Any]] = {}

    def walk(patterns: Any, before: str) -> None:
        for pattern in patterns:
            route = before + str(pattern.pattern)
            if route.startswith(ELSEWHERE):
                continue
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, route)
            elif isinstance(pattern, URLPattern):
                template = re.sub(r"<\w+:(\w+)>", r"<\1>", route)
                addresses_by_template[template] = template.removeprefix("api/"), pattern.callback

    walk(get_resolver().url_patterns, "")
    return addresses_by_template


ADDRESSES = addresses()


def test_every_address_states_its_scope():
    assert {template for template, _ in ADDRESSES.values()} == set(SCOPE)


def test_every_dataset_scope_exists():
    assert {dataset.scope for dataset in DATASETS.values()} <= set(SCOPES)


# Cases ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caller:
    """A caller, and whether the requested channel is its own."""

    name: str
    headers: dict[str, str]
    environ: dict[str, str]
    lets_in: bool  # to the channel OWN


def callers(own: Tenant, other: Tenant, twin: Tenant) -> list[Caller]:
    one, both = make_key(own.channel), make_key(own.channel, other.channel)
    sender = make_key(own.channel, scopes=("ingest",))
    lookalike = OWN.channel.replace("O", "\u041e")  # Cyrillic

    def called(name: str, text: str, channel: str | None = None, lets_in: bool = False) -> Caller:
        headers = {"Authorization": f"Bearer {text}"}
        environ = {} if channel is None else {"HTTP_X_CHANNEL_ID": channel}
        return Caller(name, headers, environ, lets_in)

    return [
        Caller("nobody", {}, {}, False),
        Caller("a stranger", {"X-API-Key": one[:-1] + "x"}, {}, False),
        called("the own key", one, lets_in=True),
        called("the own key, named", one, OWN.channel, lets_in=True),
        called("a sender", sender, OWN.channel, lets_in=True),
        called("a key of both, here", both, OWN.channel, lets_in=True),
        called("a key of both, nowhere", both),
        called("another channel", one, OTHER.channel),
        called("a sender, another channel", sender, OTHER.channel),
        called("another case", one, TWIN.channel),
        called("a tag's way", one, f"{OWN.channel}:{OTHER.channel}"),
        called("a look-alike", one, lookalike.encode().decode("latin-1")),
        called("twice", one, f"{OWN.channel},{OTHER.channel}"),
        called("twice the other way", one, f"{OTHER.channel}, {OWN.channel}"),
        called("blank", one, ""),
        called("padded", one, f"{OTHER.channel} "),
    ]


def fill_template(template: str, names: Names, token: str) -> str:
    values = {
        "tag": names.tag,
        "name": (
            f"own-{names.letters}"
            if "/datasets/" in template
            else names.destination
            if "/destination/" in template
            else names.schedule
        ),
        "index": names.tag,
        "token": token,
        "identifier": names.session,
    }
    if template.startswith("v1/conversations"):
        values["identifier"] = names.conversation
    elif "user" in template:
        values["identifier"] = names.device
    elif "events" in template:
        values["identifier"] = names.event
    return "/" + re.sub(r"<(\w+)>", lambda match: values[match[1]], template)


def request_body(template: str, names: Names) -> Any:
    """A body that gets as far as the data."""
    if re.search(r"submit?$|preview$", template):
        config = {"conversationId": names.conversation, "startDate": "2022-04-01"}
        config |= {"endDate": "2022-04-02", "since": names.request_id}
        fields: dict[str, Any] = {"dataset": "uci-response-exhaust", "datasetConfig": config}
        return {"request": {"tag": names.tag, **fields}}
    if template.endswith("search"):
        return {"request": {"filters": {"tag": names.tag}}}
    if template.endswith("schedule/<name>"):
        fields = {"cron": "0 6 * * *", "dataset": "uci-response-exhaust", "window": "yesterday"}
        return {"request": {**fields, "tag": "t", "conversationId": names.conversation}}
    if template.endswith("destination/<name>"):
        return {"request": {"url": "https://destination.example/hook"}}
    if template.endswith("rewind"):
        return {"request": {"time": 1_700_000_000}}
    return {"name": "named"} if "conversations" in template else {}


def queries(template: str, names: Names) -> Iterator[str]:
    if re.search(r"(read|cancel|retry|revoke)/<tag>$", template):
        yield f"?requestId={names.request_id}"
        yield f"?requestId={names.private_id}"
    else:
        yield f"?appId={names.application}&client_id={names.application}"


_CHANGING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9A-F]{32}|\d{4}-\d\d-\d\d[T ][\d:.+Z]+|\d{10,13}(\.\d+)?"
    r"|download/[\w-]{20,}"
    r'|"took": \d+|[\w=-]+:[\w-]{20,}|"seconds":[\d.]+|(Lag|Length): [\d.]+'
)


def normalized_answer(answer: Any, names: Names) -> tuple[int, str]:
    """Returns the status and the text, without the request's own names, ids and times."""
    text = b"".join(answer.streaming_content) if answer.streaming else answer.content
    full_text = text.decode() + "".join(f"\n{name}: {value}" for name, value in answer.items())
    for name in ("tag", "schedule", "destination", "conversation", "application", "device"):
        full_text = full_text.replace(getattr(names, name), f"<{name}>")
    return answer.status_code, _CHANGING.sub("<>", full_text)


@pytest.fixture
def places(db: None, monkeypatch: Any) -> list[Tenant]:
    def unsent(*_: Any) -> Any:
        raise RequestError("unsent", "Nothing leaves the test.", 409)

    monkeypatch.setattr("exhaust.delivery.sender.send", unsent)
    monkeypatch.setattr("ingest.limits.token_bucket.take", lambda *_: 0.0)
    return [make_tenant(OWN), make_tenant(OTHER), make_tenant(TWIN)]


def call_address(caller: Caller, verb: str, address: str, body: Any) -> Any:
    """Returns the answer; the call's writes are rolled back."""
    client = Client(headers=caller.headers, **caller.environ)
    with transaction.atomic():
        answer: HttpResponse = client.generic(verb, address, json.dumps(body), "application/json")
        if answer.streaming:
            answer.streaming_content = list(answer.streaming_content)
        transaction.set_rollback(True)
    return answer


def find_leaks(text: str) -> list[str]:
    return [names.secret for names in (OTHER, TWIN) if names.secret in text]


OPENED = [template for template, scope in SCOPE.items() if scope in {*SCOPES, "dataset"}]


def openable_by(template: str) -> tuple[str, ...]:
    """The verbs that an address is for."""
    if re.search(r"(submit?|preview|search|pause|resume|rewind|test|requeue)$", template):
        return ("POST",)
    if re.search(r"(cancel|retry|revoke)/<tag>$|telemetry$|participants$", template):
        return ("POST",)
    return ("GET",)


def test_other_channel_changes_no_answer(db: None, monkeypatch: Any):
    """Neither its rows nor its counts."""
    monkeypatch.setattr("exhaust.delivery.sender.send", lambda *_: OSError("unsent"))
    own = make_tenant(OWN)
    caller = Caller("own", {"X-API-Key": make_key(own.channel)}, {}, True)

    def all_told() -> dict[str, Any]:
        return {
            f"{verb} {template}{query}": normalized_answer(
                call_address(
                    caller,
                    verb,
                    fill_template(template, OWN, "") + query,
                    _searched(template, request_body(template, OWN)),
                ),
                OWN,
            )
            for template in OPENED
            for verb in openable_by(template)
            for query in queries(template, OWN)
        }

    alone = all_told()
    make_tenant(OTHER), make_tenant(TWIN)

    assert all_told() == alone
    cases_with_data = [case for case, (_, content) in alone.items() if OWN.secret in content]
    assert len(cases_with_data) >= 25, alone  # or the test compares nothing


def _searched(template: str, body: Any) -> Any:
    return {"request": {}} if template.endswith("search") else body


# Scopes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", OPENED)
def test_key_without_scope_is_denied(places: list[Tenant], template: str):
    own = places[0]
    needed = {"dataset": {"export:response", "export:private", "pull"}}
    needs = needed.get(SCOPE[template], {SCOPE[template]})
    if SCOPE[template] == "export:private":
        needs.add("pull")
    for scope in SCOPES:
        caller = Caller(scope, {"X-API-Key": make_key(own.channel, scopes=(scope,))}, {}, True)
        for verb in ("GET", "POST", "PUT", "DELETE"):
            if template == "export/events" and verb in {"PUT", "POST"}:
                continue  # an ingest endpoint
            for query in queries(template, OWN):
                answer = call_address(
                    caller,
                    verb,
                    fill_template(template, OWN, "") + query,
                    request_body(template, OWN),
                )
                status, content = normalized_answer(answer, OWN)
                assert status < 500
                if scope not in needs or SCOPE[template] == "export:private":
                    assert OWN.secret not in content
                    assert status >= 400 or '"count":0' in content, (scope, verb)


@pytest.mark.parametrize("scope", ["export:response", "export:private", "pull"])
def test_key_sees_only_its_datasets(places: list[Tenant], scope: str):
    own = places[0]
    caller = Caller(scope, {"X-API-Key": make_key(own.channel, scopes=(scope,))}, {}, True)
    mine = {name for name, dataset in DATASETS.items() if dataset.scope == scope}

    for dataset, request_id in (
        ("uci-response-exhaust", OWN.request_id),
        ("uci-private-exhaust", OWN.private_id),
    ):
        status = 200 if dataset in mine else 403
        for step, verb in (("read", "GET"), ("cancel", "POST"), ("retry", "POST")):
            where = f"/dataset/v1/request/{step}/{OWN.tag}?requestId={request_id}"
            answer = call_address(caller, verb, where, {})
            # a finished job can be neither cancelled nor retried
            assert answer.status_code == (status if step == "read" or status == 403 else 409)
        for listed in (
            call_address(caller, "GET", f"/dataset/v1/request/list/{OWN.tag}", {}),
            call_address(caller, "POST", "/dataset/v1/request/search", {"request": {}}),
        ):
            assert (dataset in listed.content.decode()) == (dataset in mine)
        for name in DATASETS:
            config = {"startDate": "2022-04-01", "endDate": "2022-04-02"}
            if DATASETS[name].required_fields:
                config["conversationId"] = OWN.conversation
            body = {"request": {"tag": "new", "dataset": name, "datasetConfig": config}}
            for step in ("submit", "preview"):
                answer = call_address(caller, "POST", f"/dataset/v1/request/{step}", body)
                assert answer.status_code == (200 if name in mine else 403), (step, name)
    schedule = call_address(caller, "GET", f"/dataset/v1/schedule/{OWN.schedule}", {})
    assert schedule.status_code == (200 if "uci-response-exhaust" in mine else 403)
    listed = call_address(caller, "GET", "/dataset/v1/schedule", {}).json()["result"]["count"]
    assert listed == ("uci-response-exhaust" in mine)


# Cursors, links, requests of others -------------------------------------------------------------


@pytest.mark.parametrize("resource", ["events", "sessions", "users"])
def test_other_channels_cursor_is_denied(places: list[Tenant], resource: str):
    own, other, _ = places
    client = Client(headers={"X-API-Key": make_key(own.channel)})

    answer = client.get(f"/export/{resource}", {"cursor": other.cursors[resource]})
    mine = client.get(f"/export/{resource}", {"cursor": own.cursors[resource]})
    rewind_body = {"request": {"cursor": other.cursors[resource]}}
    destination = client.post(
        f"/dataset/v1/destination/{OWN.destination}/rewind",
        rewind_body,
        content_type="application/json",
    )

    assert (answer.status_code, mine.status_code, destination.status_code) == (400, 200, 400)
    assert find_leaks(answer.content.decode()) == []


def test_link_opens_only_its_file(places: list[Tenant]):
    own, other, _ = places
    token = own.token
    client = Client()

    assert OWN.secret.encode() in b"".join(client.get(f"/dataset/v1/download/{token}"))
    half = len(token) // 2
    theirs = other.token
    for altered in (token[:half] + theirs[half:], token[:half], token[:-1], token + "x", "x"):
        answer = client.get(f"/dataset/v1/download/{altered}")
        assert answer.status_code in {403, 404}, altered


def test_no_event_enters_another_channel(places: list[Tenant]):
    own = places[0]
    before = rows_of(OTHER, TWIN)
    sender = make_key(own.channel, scopes=("ingest",))
    event = {
        "eid": "START", "ets": 1648785600123, "ver": "3.0", "mid": "m", "actor": {"id": "d"},
        "context": {"channel": OTHER.channel, "did": OTHER.device, "env": "e"}, "edata": {},
    }  # fmt: skip
    for channel in (OTHER.channel, TWIN.channel, OWN.channel, f"{OWN.channel}:{OTHER.channel}"):
        client = Client(headers={"X-API-Key": sender, "X-Channel-ID": channel})
        statuses = [
            client.post("/v1/telemetry", [event], content_type="application/json").status_code,
            client.post(
                "/v1/participants", [{"deviceId": OTHER.device}], content_type="application/json"
            ).status_code,
            client.put(
                f"/v1/conversations/{OTHER.conversation}", {"name": "x"},
                content_type="application/json",
            ).status_code,
        ]  # fmt: skip
        assert statuses == ([200] * 3 if channel == OWN.channel else [403] * 3)

    assert rows_of(OTHER, TWIN) == before


# Every address ----------------------------------------------------------------------------------


def cases(address: str, all_callers: list[Caller]) -> Iterator[tuple[str, Caller, int, Names]]:
    """Yields the calls of an address: verb, caller, number of the query, names in it."""
    template, view = ADDRESSES[address]
    for verb in VERBS:
        if SCOPE[template] == "application" and verb in {"PATCH", "DELETE", "HEAD"}:
            continue  # an ingest endpoint names its application, not a channel
        if address.startswith("api/") and verb in {"PATCH", "HEAD", "OPTIONS"}:
            continue
        for caller in callers_of(address, view, verb, all_callers):
            for query in range(len(list(queries(template, OWN)))):
                if SCOPE[template] != "application":  # an application's id is its credential
                    yield verb, caller, query, OTHER
                if caller.lets_in or SCOPE[template] == "application":
                    yield verb, caller, query, NONE  # else refused before anything was looked for


def test_matrix_is_large(places: list[Tenant]):
    all_callers = callers(*places)
    count = sum(len(list(cases(address, all_callers))) for address in ADDRESSES)
    print(f"{count} cases")  # noqa: T201

    assert count >= 2_000


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_crosses_channels(places: list[Tenant], address: str):
    before = rows_of(OTHER, TWIN)
    template = ADDRESSES[address][0]
    faults: list[str] = []
    answers: dict[Any, set[Any]] = {}
    for verb, caller, query, names in cases(address, callers(*places)):
        token = "altered:token" if names is OTHER else "another:token"
        where = fill_template(template, names, token)
        where = ("/api" if address.startswith("api/") else "") + where
        where += list(queries(template, names))[query]
        answer = normalized_answer(
            call_address(caller, verb, where, request_body(template, names)), names
        )
        status, content = answer
        case = f"{caller.name}: {verb} {where}"
        if status >= 500:
            faults.append(f"{case}: {status}")
        if find_leaks(content):
            faults.append(f"{case}: tells {find_leaks(content)}")
        if OWN.secret in content and not caller.lets_in:
            faults.append(f"{case}: lets in")
        alike = answers.setdefault((verb, caller.name, query), set())
        alike.add(answer)
        if len(alike) > 1:
            faults.append(f"{case}: differs from what nobody has: {alike}")

    assert answers
    assert faults == []
    assert rows_of(OTHER, TWIN) == before


def callers_of(address: str, view: Any, verb: str, all_: list[Caller]) -> list[Caller]:
    """Under its second address, and by a verb that no view knows, the nearest callers do."""
    view_class = getattr(view, "view_class", None)
    is_known = hasattr(view_class, verb.lower()) if view_class else verb in {"GET", "POST", "PUT"}
    if address.startswith("api/") or not is_known or verb in {"HEAD", "OPTIONS"}:
        return [each for each in all_ if each.name in {"the own key", "another channel"}]
    return all_
