"""The heaviest calls of every address that its limits allow, for `benchmarks.fairness`.

`LOADS` has a line for each address of the URL configuration, and a test holds it to that. Addresses
with the same `row` are called in turns, because they share a view.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import urlencode

from benchmarks import wrk
from benchmarks.export_data import dataset_config
from benchmarks.harness import CHANNEL

KIB = 1024
LOOP_EVENTS = 130  # of a body that the event loop parses itself
MAX_TEXT_BYTES = 16 * KIB * KIB  # of a row's requests, which wrk holds in memory


class Caller(StrEnum):
    """Who calls: the busy tenant in several ways, or a stranger to everybody."""

    KEY = "key"
    SENDER = "key that sends"
    APPLICATION = "own application"
    PASSWORD = "application's password"  # noqa: S105
    SESSION = "session"
    OUTSIDER = "outsider with the other's application"
    NOBODY = "no identity"
    MADE_UP = "made-up session"


class Batch(NamedTuple):
    """A body of new events. `kind` is one of `wrk.make_event`, or `bulk`."""

    kind: str
    events: int


@dataclass(frozen=True)
class Load:
    """The call of an address. `body` is a batch, a form, a text, or what is sent as JSON."""

    caller: Caller = Caller.KEY
    method: str = "GET"
    query: str = ""
    body: Any = None
    row: str = ""  # of the table; by default the address
    values: Mapping[str, str] = field(default_factory=dict)  # of the variable parts
    headers: str = ""
    is_slow: bool = False  # answers are read a byte at a time


class Form(dict[str, str]):
    """A form as a browser sends it."""


def sends(batch: Any, caller: Caller = Caller.SENDER, query: str = "", row: str = "") -> Load:
    return Load(caller, "POST", query, batch, row)


def acts(row: str = "", body: Any = None, method: str = "POST", **values: str) -> Load:
    return Load(Caller.KEY, method, "", {} if body is None else body, row, values)


def shows(query: str = "", row: str = "", **values: str) -> Load:
    return Load(Caller.SESSION, "GET", query, None, row, values)


def submits(row: str = "", fields: Mapping[str, str] | None = None, **values: str) -> Load:
    return Load(Caller.SESSION, "POST", "", Form(fields or {}), row, values)


CONFIG = {"type": "uci-response-exhaust", **dataset_config(4)}
REQUEST = {"dataset": CONFIG["type"], "requestedBy": "busy", "datasetConfig": CONFIG}
SCHEDULE = {
    "cron": "0 6 * * *", "dataset": CONFIG["type"], "window": "yesterday", "tag": "t",
    "conversationId": CONFIG["conversationId"],
}  # fmt: skip
DESTINATION = {"url": "https://receiver.example/hook", "types": ["t" * 200] * 100}
EXPORT_FORM = Form({**CONFIG, "dataset": CONFIG["type"], "tag": "t", "act": "preview"})
DAYS = urlencode({name: CONFIG[name] for name in ("startDate", "endDate")})
IDS = f"{CHANNEL}/exports/<str:tag>/<str:request_id>"
ACTIONS, FORMS = "console: actions", "console: forms"
SLOW_NUMBERS = f"[{'1e300,' * 15_000}1]"  # each takes a thousand times longer than 1
SOURCES = {  # shared by aliases, each with a body that the loop parses, a large and a bad one
    "telemetry": (
        sends(Batch("telemetry", LOOP_EVENTS), row="telemetry, 120 KiB"),
        sends(Batch("telemetry", 8000), row="telemetry, 8 MiB"),
        sends("[" + "1," * 9_998 + "1]", row="telemetry, 9,999 rejected"),
        sends("[" * 60_000, row="telemetry, no JSON"),
        sends('{"a":1}\n' * 9_990, row="telemetry, many lines"),
        sends(
            f'{{"eid":"A","ets":1648785600123,"context":{{}},"edata":{{"n":{SLOW_NUMBERS}}}}}',
            row="telemetry, slow numbers",
        ),
    ),
    "bulk": (
        sends(Batch("bulk", LOOP_EVENTS), Caller.PASSWORD, row="_bulk, 120 KiB"),
        sends(Batch("bulk", 1000), Caller.PASSWORD, row="_bulk, 1 MiB"),
    ),
}
TELEMETRY = SOURCES["telemetry"]
USER, SESSIONS = "export/user(s)/<identifier>", "export/session(s)/<identifier>"
READ = "requestId=<request_id>"
Q = Caller.OUTSIDER

LOADS: dict[str, tuple[Load, ...]] = {
    # sources
    "v1/telemetry": TELEMETRY,
    "data/v1/telemetry": TELEMETRY,
    "data/v3/telemetry": TELEMETRY,
    "content/data/v1/telemetry": TELEMETRY,
    "action/data/v3/telemetry": TELEMETRY,
    "v1/participants": (
        sends(Batch("participants", 800), row="v1/participants, 120 KiB"),
        sends(Batch("participants", 10_000), row="v1/participants, 1 MiB"),
    ),
    "collect": (
        sends(Batch("clickstream", LOOP_EVENTS - 10), Caller.APPLICATION, "appId=<application>"),
        sends(Batch("clickstream", 1000), Caller.APPLICATION, "appId=<application>",
              "collect, 1 MiB"),
        sends(Batch("clickstream", LOOP_EVENTS - 10), Q, "appId=<theirs>", "collect, outsider"),
    ),
    "ping": (Load(Q, query="appId=<theirs>", row="ping, outsider"),),
    "hit": (
        Load(Caller.APPLICATION, query="client_id=<application>&name=n&eventId=@########"),
        Load(Q, query="client_id=<theirs>&name=n&eventId=@########", row="hit, outsider"),
    ),
    "hit/bulk": (
        sends(Batch("skalin", 100), Caller.APPLICATION, "client_id=<application>"),
        sends(Batch("skalin", 100), Q, "client_id=<theirs>", "hit/bulk, outsider"),
    ),
    "export/events": (
        Load(query="pageSize=1000", row="export/events, pull"),
        Load(query="pageSize=1000", row="export/events, read slowly", is_slow=True),
        Load(Caller.PASSWORD, "PUT", body=Batch("desk", LOOP_EVENTS), row="sessions, 120 KiB"),
        Load(Caller.PASSWORD, "PUT", body=Batch("desk", 1000), row="sessions, 1 MiB"),
    ),
    "_bulk": SOURCES["bulk"],
    "<index>/_bulk": SOURCES["bulk"],
    "": (Load(Caller.PASSWORD, headers="Accept: application/json", row="product"),),
    # the dataset API
    "v1/participants/<identifier>": (acts(method="DELETE", identifier="device-@########"),),
    "v1/conversations/<identifier>": (
        Load(Caller.SENDER, "PUT", body={"name": "n" * 255}, values={"identifier": "c-####"}),
    ),
    "dataset/v1/request/submit": (acts("submit", {"request": {"tag": "t-####", **REQUEST}}),),
    "dataset/v1/request/submi": (acts("submit", {"request": {"tag": "t-####", **REQUEST}}),),
    "dataset/v1/request/preview": (acts("", {"request": {"tag": "t", **REQUEST}}),),
    "dataset/v1/request/read/<tag>": (Load(query=READ),),
    "dataset/v1/request/list/<tag>": (Load(query="limit=1000", values={"tag": "many"}),),
    "dataset/v1/request/search": (
        acts("", {"request": {"limit": 1000}}),
        acts("search, slow numbers", f'{{"request":{SLOW_NUMBERS * 11}}}'.replace("][", ",")),
    ),
    "dataset/v1/request/cancel/<tag>": (Load(method="POST", query=READ, row="cancel, retry"),),
    "dataset/v1/request/retry/<tag>": (Load(method="POST", query=READ, row="cancel, retry"),),
    "dataset/v1/request/revoke/<tag>": (Load(method="POST", query=READ),),
    "dataset/v1/schedule": (Load(query="limit=1000"),),
    "dataset/v1/schedule/<name>": (acts("", {"request": SCHEDULE}, "PUT", name="s-####"),),
    "dataset/v1/schedule/<name>/pause": (acts("schedule, actions", name="s-0"),),
    "dataset/v1/schedule/<name>/resume": (acts("schedule, actions", name="s-0"),),
    "dataset/v1/destination": (Load(),),
    "dataset/v1/destination/<name>": (acts("", {"request": DESTINATION}, "PUT", name="d-####"),),
    "dataset/v1/destination/<name>/pause": (acts("destination, actions"),),
    "dataset/v1/destination/<name>/resume": (acts("destination, actions"),),
    "dataset/v1/destination/<name>/rewind": (
        acts("destination, actions", {"request": {"time": 1_700_000_000}}),
    ),
    "dataset/v1/destination/<name>/test": (acts("destination, test"),),
    "dataset/v1/destination/<name>/requeue": (acts("destination, actions"),),
    "dataset/v1/destination/<name>/deadletters": (Load(query="limit=1000"),),
    "dataset/v1/audit": (
        Load(query="limit=1000"),
        Load(query="limit=1000&format=csv", row="audit, CSV"),
    ),
    "dataset/v1/download/<token>": (Load(Caller.NOBODY, row="download"),),
    "dataset/v1/download/<token>/<name>": (
        Load(Caller.NOBODY, row="download", values={"name": "f.csv"}),
    ),
    # pull
    "export/datasets/<name>": (Load(query="pageSize=1000", values={"name": CONFIG["type"]}),),
    "export/sample": (Load(),),
    "export/mapping": (Load(),),
    "export/events/<identifier>": (Load(values={"identifier": "<event>"}),),
    "export/session": (Load(query="pageSize=1000", row="export/session(s)"),),
    "export/sessions": (Load(query="pageSize=1000", row="export/session(s)"),),
    "export/session/<identifier>": (Load(row=SESSIONS, values={"identifier": "<session>"}),),
    "export/sessions/<identifier>": (Load(row=SESSIONS, values={"identifier": "<session>"}),),
    "export/user": (Load(query="pageSize=1000", row="export/user(s)"),),
    "export/users": (Load(query="pageSize=1000", row="export/user(s)"),),
    "export/user/<identifier>": (Load(row=USER, values={"identifier": "<device>"}),),
    "export/users/<identifier>": (Load(row=USER, values={"identifier": "<device>"}),),
    # without an identity
    "docs": (Load(Caller.NOBODY, row="docs"),),
    "docs/": (Load(Caller.NOBODY, row="docs"),),
    "docs/try": (Load(Caller.NOBODY, row="docs"),),
    "docs/postman.json": (Load(Caller.NOBODY, row="docs"),),
    "docs/openapi.json": (Load(Caller.NOBODY, row="docs"),),
    "docs/openapi.yaml": (Load(Caller.NOBODY, row="docs"),),
    "metrics": (Load(Caller.NOBODY, row="probes"),),
    "healthz": (Load(Caller.NOBODY, row="probes"),),
    "readyz": (Load(Caller.NOBODY, row="probes"),),
    # the console
    "console": (shows(row="console/"),),
    "console/": (shows(),),
    "console/sign-in": (
        Load(Caller.NOBODY, row="console/sign-in"),
        Load(Caller.MADE_UP, row="console/sign-in, made-up session"),
        Load(Caller.MADE_UP, "POST", body=Form(username="u-####", password="p" * 100),
             row="console/sign-in, guesses"),
    ),
    "console/sign-out": (Load(Caller.MADE_UP, "POST", body=Form()),),
    "console/<str:channel>/": (shows(row="console/"),),
    "console/<str:channel>/exports": (shows(),),
    "console/<str:channel>/exports/act": (submits(ACTIONS),),
    "console/<str:channel>/exports/views": (submits(ACTIONS),),
    "console/<str:channel>/exports/new": (submits(fields=EXPORT_FORM),),
    "console/<str:channel>/exports/new/preview": (submits(fields=EXPORT_FORM),),
    "console/<str:channel>/exports/new/conversations": (shows("q=a"),),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>": (shows(),),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>/cancel": (submits(ACTIONS),),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>/retry": (submits(ACTIONS),),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>/files/<int:part>": (shows(),),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>/files/<int:part>/link": (
        submits(ACTIONS),
    ),
    "console/<str:channel>/exports/<str:tag>/<str:request_id>/files/<int:part>/revoke": (
        submits(ACTIONS),
    ),
    "console/<str:channel>/datasets": (shows(),),
    "console/<str:channel>/schedules": (shows(),),
    "console/<str:channel>/schedules/new": (shows(row=FORMS),),
    "console/<str:channel>/schedules/one/<str:name>": (shows(name="s-0"),),
    "console/<str:channel>/schedules/one/<str:name>/edit": (shows(row=FORMS, name="s-0"),),
    "console/<str:channel>/schedules/one/<str:name>/<str:action>": (
        submits(ACTIONS, name="s-0", action="pause"),
    ),
    "console/<str:channel>/charts": (shows(DAYS),),
    "console/<str:channel>/conversations": (shows("q=a"),),
    "console/<str:channel>/conversations/one": (
        shows(f"id={CONFIG['conversationId']}&{DAYS}"),
    ),
    "console/<str:channel>/events": (shows(),),
    "console/<str:channel>/events/<int:pk>": (shows(row="console: one row"),),
    "console/<str:channel>/participants": (shows(),),
    "console/<str:channel>/participants/<int:pk>": (shows(row="console: one row"),),
    "console/<str:channel>/participants/erase": (submits(ACTIONS),),
    "console/<str:channel>/participants/erasures/<int:pk>": (shows(row="console: one row"),),
    "console/<str:channel>/rejected": (shows(),),
    "console/<str:channel>/rejected/<int:pk>": (shows(),),
    "console/<str:channel>/rejected/<int:pk>/resend": (submits(ACTIONS),),
    "console/<str:channel>/rejected/dismiss": (submits(ACTIONS),),
    "console/<str:channel>/rejected/download": (shows(),),
    "console/<str:channel>/rejected/replay": (submits(fields={"reason": "invalid"}),),
    "console/<str:channel>/destinations": (shows(),),
    "console/<str:channel>/destinations/new": (shows(row=FORMS),),
    "console/<str:channel>/destinations/one/<str:name>": (shows(),),
    "console/<str:channel>/destinations/one/<str:name>/deliveries/<int:pk>": (
        shows(row="console: one row"),
    ),
    "console/<str:channel>/destinations/one/<str:name>/edit": (shows(row=FORMS),),
    "console/<str:channel>/destinations/one/<str:name>/<str:action>": (
        submits(ACTIONS, action="pause"),
    ),
    "console/<str:channel>/keys": (shows(),),
    "console/<str:channel>/keys/<str:public_id>/revoke": (submits(ACTIONS),),
    "console/<str:channel>/keys/<str:public_id>/rotate": (submits(ACTIONS),),
    "console/<str:channel>/team": (shows(),),
    "console/<str:channel>/team/<int:user_id>": (submits(ACTIONS, user_id="1"),),
    "console/<str:channel>/team/chat": (submits(ACTIONS),),
    "console/<str:channel>/audit/download": (shows("action=a"),),
    "console/<str:channel>/audit": (shows("action=a"),),
    "console/<str:channel>/archive": (shows(),),
    "console/<path:path>": (shows(path="nothing/here"),),
    # no address of the URL configuration
    "static/admin/css/base.css": (Load(Caller.NOBODY, query="v=@########", row="static"),),
    "nothing/here": (Load(Caller.NOBODY, row="no address"),),
}  # fmt: skip
ADMIN, ACCOUNT = "admin/", "account/"
_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")


def list_addresses() -> dict[str, str]:
    """Returns the addresses of the URL configuration, and the template of each in `LOADS`."""
    from django.urls import URLResolver, get_resolver

    templates: dict[str, str] = {}

    def walk(patterns: Any, before: str) -> None:
        for pattern in patterns:
            route = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, route)
            else:
                template = route.removeprefix("api/")
                if not template.startswith(("console/", ADMIN, ACCOUNT)):
                    template = _VARIABLE.sub(r"<\1>", template)
                templates[route] = template

    walk(get_resolver().url_patterns, "")
    return templates


def find_loads(template: str) -> tuple[Load, ...]:
    """Returns the loads of an address. Raises `KeyError` where it has none."""
    folder = f"{template}/"
    if folder.startswith(ADMIN):
        return (shows(row="admin, all pages", object_id="1"),)
    if folder.startswith(ACCOUNT):  # of django-allauth; some have patterns in their addresses
        caller = Caller.NOBODY if "^" in template else Caller.SESSION
        return (Load(caller, row="account, all pages", values={"pk": "1"}),)
    return LOADS[template]


def collect_rows() -> dict[str, list[tuple[str, Load]]]:
    """Returns the addresses and loads of each row of the table."""
    rows: dict[str, list[tuple[str, Load]]] = {}
    addresses = list_addresses()
    addresses |= {template: template for template in LOADS if template not in addresses.values()}
    for route, template in addresses.items():
        for load in find_loads(template):
            rows.setdefault(load.row or template, []).append((route, load))
    strangers = [(route, Load(Caller.NOBODY)) for route in addresses if "_bulk" not in route]
    return rows | {"every address, no identity": strangers}


class World(NamedTuple):
    """What the requests name: headers by caller, one set for each of its keys, and variables."""

    headers: Mapping[Caller, list[str]]
    values: Mapping[str, str]


def build_requests(calls: list[tuple[str, Load]], world: World) -> list[str]:
    """Returns the requests of a row: each address, with each key of its caller."""
    keys = max(len(world.headers[load.caller]) for _, load in calls)
    requests: list[str] = []
    size = 0
    for turn in range(keys):
        for route, load in calls:
            headers = world.headers[load.caller]
            requests.append(build_request(route, load, headers[turn % len(headers)], world.values))
            size += len(requests[-1])
        if size > MAX_TEXT_BYTES:
            break
    return requests


def build_request(route: str, load: Load, headers: str, values: Mapping[str, str]) -> str:
    """Returns the bytes of a call; ids of events are counted up by `load.lua`."""

    def fill(text: str) -> str:
        own = {**values, **load.values}
        if "/schedule" in route and "name" not in load.values:
            own["name"] = "s-0"
        for _ in range(2):  # a value may name another one
            text = _VARIABLE.sub(lambda match: own.get(match[1], "x"), text)
        return text

    body, content_type = encode_body(load.body)
    path = fill(re.split(r"[\^(]", route)[0])
    lines = [
        f"{load.method} /{path}{'?' if load.query else ''}{fill(load.query)} HTTP/1.1",
        "Host: 127.0.0.1", headers, load.headers,
    ]  # fmt: skip
    if load.method != "GET":
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body.encode())}"]
    return "\r\n".join([*filter(None, lines), "", body])


def encode_body(body: Any) -> tuple[str, str]:
    """Returns a body and its content type."""
    if body is None:
        return "", "application/json"
    if isinstance(body, str):
        return body, "application/json"
    if isinstance(body, Form):
        return urlencode(body, safe="#@"), "application/x-www-form-urlencoded"
    if isinstance(body, Batch):
        kind = "desk" if body.kind == "bulk" else body.kind
        head, _, text = wrk.build_batch(kind, body.events, {"key": "", "basic": ""}).partition(
            "\r\n\r\n"
        )
        if body.kind == "bulk":
            text = "".join(f'{{"index":{{}}}}\n{line}\n' for line in text.splitlines())
        content_type = re.search("Content-Type: (.*)", head)
        return text, content_type[1].strip() if content_type else ""
    return json.dumps(body), "application/json"
