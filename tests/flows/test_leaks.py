"""Private values do not leak: the test sends canaries everywhere and searches everything written.

Real processes run at EXHAUST_LOG_LEVEL=DEBUG. The test calls every ingest endpoint in every way
that can fail. Then it searches the logs, the broker, the audit log and all responses.
"""

import io
import json
import re
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from random import Random
from secrets import token_hex
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
import redis as redis_client

from tests.exhaust.factories import BOT, RESPONSE, make_answer
from tests.exhaust.receiver import Receiver, respond_with
from tests.flows.test_embedded import to_ndjson
from tests.service import CHANNEL, Answer, Service, running, until

JSON = "application/json"
NDJSON = "application/x-ndjson"
PRIVATE = "uci-private-exhaust"
DAYS = {"startDate": "2022-03-01", "endDate": "2022-04-01", "conversationId": BOT}
# what may lie in the database in the clear: what senders and staff wrote for it to keep
KEPT = {"name", "text", "address"}
PERSONAL_PAGES = {"participant", "appuser", "session", "storedevent", "rejectedevent"}


@dataclass
class Canaries:
    """Unique texts by kind."""

    kinds: dict[str, str] = field(default_factory=dict)
    random: Random = field(default_factory=Random)

    def add(self, kind: str, text: str) -> str:
        self.kinds[text] = kind
        return text

    def __call__(self, kind: str) -> str:
        if kind == "phone":
            return "+" + self.add(kind, "91" + "".join(self.random.choices("123456789", k=10)))
        return self.add(kind, f"{kind}{token_hex(8)}")

    def basic(self, user: str, password: str) -> str:
        coded = b64encode(f"{user}:{password}".encode()).decode()
        return "Basic " + self.add("password", coded)

    def find_in(self, content: bytes) -> set[tuple[str, str]]:
        """Returns the kind and the surroundings of each text found."""
        hits = set()
        for text, kind in self.kinds.items():
            if (at := content.find(text.encode())) >= 0:
                hits.add((kind, content[max(0, at - 150) : at + 60].decode(errors="replace")))
        return hits


@dataclass
class Driver:
    """Calls the service; stores the answers, except those that may show private texts."""

    service: Service
    canary: Canaries
    answers: list[tuple[str, bytes]] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    cookies: SimpleCookie = field(default_factory=SimpleCookie)
    always: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        phone = self.canary("phone").lstrip("+")
        self.always = {"User_Agent": self.canary("text"), "Referer": self.canary("address"),
                       "X_Request_ID": phone, "X_Forwarded_For": phone}  # fmt: skip

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str = "",
        *,
        status: int | tuple[int, ...] = 200,
        shows: set[str] = frozenset(),  # type: ignore[assignment]
        **headers: str,
    ) -> Answer:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        values = {"Content_Type": JSON, **self.always, **headers}
        if self.cookies:
            values["Cookie"] = "; ".join(f"{n}={m.value}" for n, m in self.cookies.items())
        response = self.service.call(method, path, raw, key, **values)
        wanted = status if isinstance(status, tuple) else (status,)
        assert response.status in wanted, (method, path, response.status, response.body[:500])
        if response.headers["Set-Cookie"]:
            for line in response.headers.get_all("Set-Cookie") or []:
                self.cookies.load(line)
        where = f"{method} {urlsplit(path).path} {response.status}"
        self.paths.add(re.sub(r"(download/).*|\b\d+(?=/)|\w*[0-9a-f]{16,}", r"\1…", where))
        content = str(response.headers).encode() + response.body
        content = re.sub(rb"(?i)(set-cookie: sessionid=)\w+", rb"\1", content)  # its owner's own
        for text, kind in self.canary.kinds.items():
            if kind in shows:
                content = content.replace(text.encode(), b"")
        self.answers.append((where, content))
        return response

    def submit(self, tag: str, dataset: str, key: str, **more: Any) -> str:
        config = {"type": dataset, **DAYS}
        request = {"tag": tag, "dataset": dataset, "requestedBy": self.canary("name"), **more}
        body = {"request": {**request, "datasetConfig": config}}
        content = self("POST", "/dataset/v1/request/submit", body, key, shows={"name", "address"})
        return str(content.json["result"]["requestId"])

    def job(self, tag: str, request_id: str, key: str) -> Any:
        path = f"/dataset/v1/request/read/{tag}?requestId={request_id}"
        result = self("GET", path, key=key, shows={"name", "address", "link"}).json["result"]
        for link in result["downloadUrls"]:
            self.canary.add("link", link.split("/")[-2])
        self.answers.pop()
        return result


@pytest.fixture(scope="module")
def canary() -> Canaries:
    return Canaries()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    var = tmp_path_factory.mktemp("leaks")
    with running(
        var, 2, EXHAUST_LOG_LEVEL="DEBUG", EXHAUST_PUSH_ALLOWED_NETWORKS="ORG_001=127.0.0.0/8"
    ) as service:
        yield service


def test_private_values_do_not_leak(service: Service, canary: Canaries):
    call = Driver(service, canary)
    make_keys(service, canary)
    worker = next(child for child in service.children if child.name == "worker")

    good_and_bad_bodies(call)
    wrong_callers(call)
    broken_sources(call)
    worker.stop()
    requests = {
        PRIVATE: call.submit("people", PRIVATE, "reader"),
        RESPONSE: call.submit("answers", RESPONSE, "reader", encryptionLevel=canary("secret")),
        "events-exhaust": call.submit("events", "events-exhaust", "puller"),
    }
    in_the_broker = broker(service)
    assert in_the_broker, "no message lies in the broker"
    worker = service.start_worker()
    files_and_links(call, requests)
    failing_jobs(call)
    failing_receivers(call)
    pages(call)
    in_the_broker += broker(service)
    call("GET", "/dataset/v1/audit?limit=1000", key="auditor")
    call("GET", "/dataset/v1/audit?limit=1000&format=csv", key="auditor")
    for child in reversed(service.children):
        child.stop()

    assert len(canary.kinds) >= 200
    logs = {log.name: log.read_bytes() for log in service.var.glob("*.log")}
    assert_lines(logs)
    places = {
        **logs,
        "the broker": in_the_broker,
        "the audit log": rows(service, "ingest_audit"),
    }
    places |= dict(beside_the_database(service.var))
    leaks = [
        (world, *leak) for world, content in [*places.items(), *call.answers]
        for leak in sorted(canary.find_in(content))
    ]  # fmt: skip
    stored = canary.find_in(rows(service, ""))
    leaks += [("the database", *leak) for leak in sorted(stored) if leak[0] not in KEPT]
    report(service, call, leaks)
    assert leaks == []


def report(service: Service, call: Driver, leaks: list[Any]) -> None:
    by_kind: dict[str, int] = {}
    for kind in call.canary.kinds.values():
        by_kind[kind] = by_kind.get(kind, 0) + 1
    message = {"canaries": by_kind, "answers": len(call.answers), "leaks": leaks}
    (service.var / "report.json").write_text(json.dumps({**message, "paths": sorted(call.paths)}))


def make_keys(service: Service, canary: Canaries) -> None:
    scopes = {
        "sender": "ingest",
        "reader": "export:response --scope export:private",
        "puller": "pull --scope export:private",
        "auditor": "audit",
    }
    application = f"create_application {{}} --channel {CHANNEL}"
    operator = f"password{token_hex(8)}"
    service.environment["DJANGO_SUPERUSER_PASSWORD"] = operator
    *keys, app, strict, secret, _ = service.manage(
        *(f"create_key {name} --channel {CHANNEL} --scope {scopes[name]}" for name in scopes),
        application.format("app"),
        f"{application.format('strict')} --cookie {canary('cookie')}",
        f"callback_secret {CHANNEL}",
        "createsuperuser --noinput --username op --email o@x.example",
    )
    service.keys |= dict(zip(scopes, keys, strict=True))
    for key in service.keys.values():
        canary.add("key", key[13:])
    for password in (app, strict, operator):
        canary.add("password", password)
    canary.add("secret", secret.partition("_")[2])


# The ingest endpoints -----------------------------------------------------------------------------


def good_and_bad_bodies(call: Driver) -> None:
    canary = call.canary
    private_job = [
        {"deviceId": f"device-{n}", "userName": canary("name"), "phone": canary("phone"),
         "consent": True, "consentAt": "2022-04-01T00:00:00Z"}
        for n in range(30)
    ]  # fmt: skip
    changes = [
        {"deviceId": 5, "userName": canary("name"), "phone": canary("phone")},
        {"deviceId": "d", "phone": canary("phone") + "x"},
        {"deviceId": "d", "phone": canary("phone"), "consent": canary("text")},
        {"deviceId": "d", "phone": canary("phone"), "consentAt": canary("text")},
        {"deviceId": "d", "userName": [canary("name")]},
        canary("phone"),
    ]
    call("POST", "/v1/participants", private_job + changes, "sender")
    call("POST", "/v1/participants", canary("phone").encode(), "sender", status=(200, 400))
    call(
        "POST",
        "/v1/participants",
        private_job[:1],
        "sender",
        status=415,
        Content_Type=canary("text"),
    )

    answers = [make_answer(n, canary("text")) for n in range(40)]
    bad = make_answer(99, canary("text"))
    for path, value in (("ets", canary("text")), ("eid", {canary("text"): 1}), ("edata", [])):
        answers.append({**bad, path: value})
    batch = {"id": "x", "events": answers}
    call("POST", "/v1/telemetry", batch, "sender")
    call("POST", "/v1/telemetry", to_ndjson(*answers[:2]) + canary("text").encode(), "sender",
         Content_Type=NDJSON)  # fmt: skip
    call("POST", "/v1/telemetry", b'{"events": ' + canary("text").encode(), "sender", status=400)
    call("POST", "/v1/telemetry", canary("text").encode(), "sender", status=400,
         Content_Encoding="gzip")  # fmt: skip
    call("PUT", f"/v1/conversations/{BOT}", {"name": "A bot"}, "sender")
    call("PUT", f"/v1/conversations/{BOT}", {"name": [canary("text")]}, "sender", status=400)

    event = {
        "event_type": "answer", "event_id": "e-1", "timestamp": 1648785600123, "device_id": "d-2",
        "attributes": {"response": canary("text"), "conversation_id": BOT, "question_id": "q"},
        "user": {"_user_name": {"value": canary("name")}},
    }  # fmt: skip
    for events in ([event, {**event, "timestamp": canary("text")}, canary("text")], canary("text")):
        call("POST", "/collect?appId=app&platform=Web", events, status=(200, 400, 403))
    call("POST", "/collect?appId=strict", [event], status=403, Cookie=f"c={canary('cookie')}")
    call("POST", f"/collect?appId={canary('text')}", [event], status=403)

    identity = {"eventId": "identity-1", "identity": {"email": canary("name")}, "visitId": "v"}
    feature = {"eventId": "feature-1", "name": canary("text"), "identity": {"id": canary("name")}}
    bulk = {"identities": [identity, canary("text")], "features": [feature, {"n": canary("text")}]}
    call("POST", "/hit/bulk?client_id=app", bulk)
    query = {"client_id": "app", "action": "ev", "identity": json.dumps({"id": canary("name")}),
             "event": json.dumps({"name": canary("text")})}  # fmt: skip
    call("GET", f"/hit?{urlencode(query)}")
    call("GET", f"/hit?{urlencode({**query, 'identity': canary('text')})}", status=(200, 400))
    call("GET", f"/hit?client_id={canary('password')}", status=(400, 403))

    password = next(text for text, kind in canary.kinds.items() if kind == "password")
    session = {
        "tenantId": "t", "userSessionId": "s", "startTime": 1648785600123, "endTime": 1648785600124,
        "userId": canary("name"), "stringTags": {"a": canary("text")},
        "userActions": [{"name": canary("text"), "type": "Custom", "startTime": 1648785600123}],
    }  # fmt: skip
    right = {"Authorization": canary.basic("app", password), "Content_Type": NDJSON}
    wrong_ = [{**session, "startTime": canary("text")}, {canary("text"): 1}]
    call("PUT", "/export/events", to_ndjson(session, *wrong_) + canary("text").encode(), **right,
         status=(200, 400))  # fmt: skip
    action = b'{"index": {"_index": "i", "_id": "1"}}\n'
    call("POST", "/_bulk", action + to_ndjson(session) + action + canary("text").encode() + b"\n",
         **right, status=(200, 400))  # fmt: skip
    call("POST", "/_bulk", canary("text").encode() + b"\n", **right, status=(200, 400))


def wrong_callers(call: Driver) -> None:
    canary = call.canary
    for path in ("/v1/telemetry", "/v1/participants", "/dataset/v1/request/submit"):
        call("POST", path, {}, status=401, Authorization=f"Bearer exh_{canary('key')}")
        call("POST", path, {}, status=401, X_API_Key=canary("key"))
    for path in ("/export/events", "/_bulk"):
        coded = canary.basic("app", canary("password"))
        call("PUT", path, b"{}", status=401, Authorization=coded)
    call("GET", "/export/users", key="sender", status=403)
    call("GET", "/dataset/v1/request/list/t", key="reader", status=403, X_Channel_ID=canary("name"))
    call("GET", f"/{canary('text')}/{quote(canary('phone'))}?q={canary('name')}", status=404)
    call("GET", f"/dataset/v1/download/{canary('link')}", status=403)
    call("GET", f"/dataset/v1/request/read/{canary('text')}?requestId=1", key="reader", status=404)
    call("GET", f"/export/users/{canary('name')}", key="puller", status=404)
    call("GET", f"/export/events?cursor={canary('text')}", key="puller", status=400)
    call("GET", f"/export/events?start={canary('text')}", key="puller", status=400)
    call("GET", f"/dataset/v1/audit?from={canary('text')}", key="auditor", status=400)
    call("GET", "/metrics", status=404, Host=canary("text"))
    call("GET", "/console/", status=400, Host=canary("text"))
    config = {**DAYS, "type": RESPONSE, "startDate": canary("text")}
    for request in (
        {"tag": "t", "dataset": RESPONSE, "datasetConfig": config},
        {"tag": "t", "dataset": RESPONSE, "datasetConfig": DAYS, "output_format": canary("text")},
        {"tag": canary("phone"), "dataset": RESPONSE, "datasetConfig": DAYS},
        {"tag": "t", "dataset": PRIVATE, "datasetConfig": DAYS, "encryptionKey": canary("secret")},
        {"tag": "t", "dataset": PRIVATE, "datasetConfig": DAYS,
         "callbackUrl": f"http://u:{canary('password')}@x.example/"},
    ):  # fmt: skip
        call("POST", "/dataset/v1/request/submit", {"request": request}, "reader",
             status=(200, 400))  # fmt: skip
    schedule_fields = {"cron": "0 6 * * *", "dataset": RESPONSE, "window": "today", "tag": "t"}
    for field_name in (*schedule_fields, "timezone", "outputFormat", "callbackUrl"):
        request = {"conversationId": BOT, **schedule_fields, field_name: canary("text") + "!"}
        call("PUT", "/dataset/v1/schedule/s", {"request": request}, "reader",
             status=400)  # fmt: skip
    for field_name in ("dataset", "output_format", "priority", "callbackUrl"):
        request = {
            "tag": "t",
            "dataset": RESPONSE,
            "datasetConfig": DAYS,
            field_name: canary("text"),
        }
        call("POST", "/dataset/v1/request/submit", {"request": request}, "reader", status=400)
    for field_name in ("dataset", "status", "channel", "requestedDate", "tagPrefix"):
        request = {"filters": {field_name: canary("text")}}
        call("POST", "/dataset/v1/request/search", {"request": request}, "reader",
             status=(200, 400, 403))  # fmt: skip
    call("GET", f"/export/sample?format={canary('text')}", key="puller", status=400)
    call("GET", f"/dataset/v1/audit?format={canary('text')}", key="auditor", status=400)
    for field_name in ("limit", "cursor"):
        path = f"/dataset/v1/request/list/t?{field_name}={canary('text')}"
        call("GET", path, key="reader", status=400)
    destination = {"url": "https://x.example", "signingSecret": canary("secret")}
    for request in (
        destination,
        {**destination, "url": f"ftp://{canary('password')}"},
        {"url": canary("text")},
    ):
        call("PUT", "/dataset/v1/destination/x", {"request": request}, "puller", status=400)
    form = {"login": canary("name"), "password": canary("password")}
    call("POST", "/console/sign-in", urlencode(form).encode(), status=403,
         Content_Type="application/x-www-form-urlencoded")  # fmt: skip


def broken_sources(call: Driver) -> None:
    """The database fails in words that quote the row, as it does."""
    canary = call.canary
    tables = {
        "ingest_storedevent": ("POST", "/v1/telemetry", [make_answer(77, canary("text"))],
                               "sender"),
        "ingest_participant": ("POST", "/v1/participants",
                               [{"deviceId": "new", "phone": canary("phone")}], "sender"),
        "exhaust_destination": ("PUT", "/dataset/v1/destination/broken",
                         {"request": {"url": f"https://x.example/{canary('address')}"}}, "puller"),
    }  # fmt: skip
    for table, (method, path, body, key) in tables.items():
        with breaking(call.service, table, canary("name")):
            # a source asks its sender to send again; the API has failed
            call(method, path, body, key, status=503 if path.startswith("/v1/") else 500)


class breaking:
    """No row can be put into the table, and the database quotes it."""

    def __init__(self, service: Service, table: str, quoted: str) -> None:
        self.service, self.table = service, table
        message = f"Key (name)=({quoted}) already exists."
        if service.database.startswith("postgres"):
            self.make = (
                "CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN RAISE EXCEPTION '{message}' USING DETAIL = '{message}'; END $$;"
                f" CREATE TRIGGER broken BEFORE INSERT ON {table} FOR EACH ROW"
                " EXECUTE FUNCTION broken()"
            )
            self.drop = f"DROP TRIGGER broken ON {table}"
        else:
            self.make = (
                f"CREATE TRIGGER broken BEFORE INSERT ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{message}'); END"
            )
            self.drop = "DROP TRIGGER broken"

    def __enter__(self) -> None:
        self.service.change(self.make)

    def __exit__(self, *_: object) -> None:
        self.service.change(self.drop)


# Outcomes of requests ---------------------------------------------------------------------------


def files_and_links(call: Driver, requests: dict[str, str]) -> None:
    canary = call.canary
    tags = {PRIVATE: "people", RESPONSE: "answers", "events-exhaust": "events"}
    for dataset, request_id in requests.items():
        key = "puller" if dataset == "events-exhaust" else "reader"
        job: Any = until(
            lambda tag=tags[dataset], id_=request_id, key=key: (
                (content := call.job(tag, id_, key))["status"] == "SUCCESS" and content
            ),
            f"the file of {dataset}",
        )
        (link,) = job["downloadUrls"]
        path = urlsplit(link).path
        shows = {"name", "phone"} if dataset == PRIVATE else {"text", "name"}
        download = call("GET", path, shows={*shows, "link"})
        assert canary.find_in(unzipped(download.body)), f"the file of {dataset} holds none of them"
        call("GET", path[:-2] + "xx", status=403)
    config = {"tag": "p", "dataset": PRIVATE, "datasetConfig": DAYS}
    call("POST", "/dataset/v1/request/preview", {"request": config}, "reader")
    config = {"tag": "p", "dataset": RESPONSE, "datasetConfig": DAYS}
    call("POST", "/dataset/v1/request/preview", {"request": config}, "reader")
    call("GET", "/dataset/v1/request/list/people", key="reader", shows={"name", "link"})
    until(lambda: call("GET", "/export/users", key="puller", shows={"name", "text"}).json["items"],
          "users")  # fmt: skip
    call("GET", "/export/events?pageSize=1000", key="puller", shows={"text", "name"})
    call("GET", "/export/sessions", key="puller", shows={"name"})


def unzipped(content: bytes) -> bytes:
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as packed, suppress(RuntimeError):
        return b"".join(packed.read(name) for name in packed.namelist())
    return content


def failing_jobs(call: Driver) -> None:
    """The storage is broken, then the SQL; both are in the log, neither's words are."""
    service, canary = call.service, call.canary
    files = service.var / "files"
    files.rename(service.var / "files.away")
    files.write_bytes(b"")
    stored = call.submit("no-storage", RESPONSE, "reader")
    until(lambda: b"job.storage_failed" in log_of(service, "worker"), "a job without a storage")
    files.unlink()
    (service.var / "files.away").rename(files)
    with breaking(service, "exhaust_file", canary("name")):
        broken = call.submit("no-sql", PRIVATE, "reader")
        until(lambda: b"job.attempt_failed" in log_of(service, "worker"), "a job without SQL")
    for tag, request_id in (("no-storage", stored), ("no-sql", broken)):
        call("GET", f"/dataset/v1/request/read/{tag}?requestId={request_id}", key="reader",
             shows={"name", "link"})  # fmt: skip
        call("POST", f"/dataset/v1/request/cancel/{tag}?requestId={request_id}", {}, "reader",
             status=(200, 409), shows={"name", "link"})  # fmt: skip


def failing_receivers(call: Driver) -> None:
    """They answer 500 and send back all that they were sent."""
    canary = call.canary

    def echo(received: Any) -> Any:
        content = json.dumps(received.headers).encode() + received.body
        return respond_with(500, content, X_Echo=received.headers.get("authorization", ""))

    with Receiver(choose_behaviour=echo) as receiver:
        names = ("events", "sessions")
        for name in names:
            password = canary("password")
            canary.basic("u", password)
            request = {
                "resource": name, "user": "u", "password": password,
                "url": f"{receiver.url}&token={canary('address')}",
                "signingSecret": "whsec_" + canary.add("secret", token_hex(16)),
            }  # fmt: skip
            path = f"/dataset/v1/destination/{name}"
            call("PUT", path, {"request": request}, "puller", shows={"address"})
            call("POST", f"{path}/test", {}, "puller", status=202)

            def has_ended(path: str = path) -> bool:
                return b'"waiting"' not in call("GET", f"{path}/test", key="puller").body

            until(has_ended, "the end of a test")  # the next one would be a 409
            call("POST", f"{path}/rewind", {"request": {"time": 0}}, "puller", shows={"address"})
        url = f"{receiver.url}&token={canary('address')}"
        call.submit("told", RESPONSE, "reader", callbackUrl=url)
        until(
            lambda: any(b"dataset.request.ended" in r.body for r in receiver.received), "a callback"
        )
        until(lambda: b"callback.failed" in log_of(call.service, "worker"), "a failed callback")
        failed = "SELECT 1 FROM exhaust_destination WHERE failures > 0"
        until(
            lambda: len(call.service.query(failed)) == len(names), "two destinations that fail", 120
        )
        for name in names:
            call("GET", f"/dataset/v1/destination/{name}", key="puller", shows={"address"})
            call("GET", f"/dataset/v1/destination/{name}/deadletters", key="puller")
        dead = f"http://127.0.0.1:9/{canary('address')}"
        call(
            "PUT", "/dataset/v1/destination/dead", {"request": {"url": dead}}, "puller", status=400
        )
    call.submit("told-nobody", RESPONSE, "reader", callbackUrl=url)


# The pages ----------------------------------------------------------------------------------------


def pages(call: Driver) -> None:
    canary, service = call.canary, call.service
    login = "/console/sign-in?next=/admin/"
    form_type = "application/x-www-form-urlencoded"

    def post(path: str, status: int = 200, **form: str) -> Answer:
        token = {"csrfmiddlewaretoken": call.cookies["csrftoken"].value}
        body = urlencode({**token, **form}).encode()
        return call("POST", path, body, status=status, Content_Type=form_type,
                    Referer=f"http://127.0.0.1:{service.port}/")  # fmt: skip

    call("GET", login)
    name = canary("name")
    post(login, login=name, password=canary("password"))  # fmt: skip
    call.answers[-1] = (call.answers[-1][0], call.answers[-1][1].replace(name.encode(), b""))
    password = service.environment["DJANGO_SUPERUSER_PASSWORD"]
    post(login, 302, login="op", password=password)
    call.answers.pop()  # it sets the cookie
    canary.add("cookie", call.cookies["sessionid"].value)
    index = call("GET", "/admin/").body.decode()
    models = sorted(set(re.findall(r'href="/admin/(\w+/\w+)/"', index)))
    assert len(models) > 15
    for model in models:
        kind = model.partition("/")[2]
        shows = {"name", "text"} if kind in PERSONAL_PAGES else {"name", "address"}
        if kind == "participant":
            shows = {"name"}
        listed = call("GET", f"/admin/{model}/", shows=shows).body.decode()
        shows |= (
            {"phone"}
            if kind == "rejectedevent"
            else {"link"}
            if kind in {"file", "link"}
            else set()
        )
        for path in sorted(set(re.findall(rf'href="(/admin/{model}/[^/"]+/change/)', listed)))[:3]:
            call("GET", path, shows=shows)
        call("GET", f"/admin/{model}/?q={canary('name')}", shows={"name", "text", "address"})
    call("GET", f"/admin/ingest/participant/{canary('text')}/change/", status=302, shows={"text"})
    assert call.service.query(
        "SELECT 1 FROM ingest_auditevent WHERE action = 'personal_data.viewed'"
    )


# Where to look ------------------------------------------------------------------------------------


def log_of(service: Service, name: str) -> bytes:
    return (service.var / f"{name}.log").read_bytes()


def assert_lines(logs: dict[str, bytes]) -> None:
    """Asserts that each line of the service is JSON, at DEBUG, and that failures are among them."""
    content = [json.loads(line) for line in b"\n".join(logs.values()).split(b"\n")
            if line.startswith(b"{")]  # fmt: skip
    events = {line.get("event") for line in content}
    assert {"request.answered", "request.failed", "job.storage_failed", "job.attempt_failed",
            "destination.delivery_failed", "callback.failed"} <= events  # fmt: skip
    assert "DEBUG" in {line["level"] for line in content}
    assert not any(b"Traceback (most recent call last)" in text for text in logs.values())


def broker(service: Service) -> bytes:
    url = service.environment.get("CELERY_BROKER_URL")
    if not url:
        folder = service.var / "broker"
        return b"\n".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    results: list[Any] = []
    with closing(redis_client.Redis.from_url(url)) as client:
        for key in client.scan_iter("*"):
            read = {b"list": lambda k: client.lrange(k, 0, -1), b"set": client.smembers,
                    b"hash": client.hgetall, b"zset": lambda k: client.zrange(k, 0, -1),
                    b"string": client.get}  # fmt: skip
            results += [key, read[client.type(key)](key)]
    # a message's body is base64 within JSON
    content = repr(results).encode()
    bodies = re.findall(rb'"body": "([A-Za-z0-9+/=]+)"', content)
    return content + b"\n".join(b64decoded(body) for body in bodies)


def b64decoded(text: bytes) -> bytes:
    from base64 import b64decode

    return b64decode(text)


def rows(service: Service, prefix: str) -> bytes:
    """Returns the rows of all tables with this prefix."""
    if service.database.startswith("postgres"):
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        results = [
            service.query(f'SELECT t::text FROM "{table}" t')
            for (table,) in service.query(tables)
            if table.startswith(prefix)
        ]
    else:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
        results = [
            service.query(f'SELECT * FROM "{table}"')
            for (table,) in service.query(tables)
            if table.startswith(prefix)
        ]
    assert results
    return repr(results).encode()


def beside_the_database(var: Path) -> Iterator[tuple[str, bytes]]:
    for path in var.rglob("*"):
        inside = path.relative_to(var)
        if path.is_file() and inside.parts[0] != "files" and ".sqlite3" not in path.name:
            yield str(inside), path.read_bytes()
