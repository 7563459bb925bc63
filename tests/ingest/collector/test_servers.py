import asyncio
import json
import signal
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection
from django.test import Client

from ingest.adapters import json_body
from ingest.auth import keys
from ingest.collector import exchange, intake
from ingest.collector.groups import run_inline
from ingest.collector.intake import build_collector, build_senders
from ingest.collector.senders import MAX_WAITING
from ingest.collector.servers import Application, is_secure
from ingest.collector.wsgi_bridge import WsgiBridge
from ingest.db.pool import Unavailable
from ingest.limits import admission, rate_limits
from ingest.limits.rate_limits import RecentValues
from ingest.models import ApiKey, RejectedEvent, StoredEvent
from ingest.store import batches
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.collector.asgi_client import Answer, call
from tests.ingest.collector.test_wsgi_bridge import make_guess
from tests.ingest.telemetry_samples import answer, encode_batch

pytestmark = pytest.mark.django_db(transaction=True)


senders = build_senders()
collector = build_collector(senders)  # which closes them


@pytest.fixture
def app() -> Any:
    from config.wsgi import application as django

    return Application([collector.find_handler], WsgiBridge(django, senders))


def run_on_loop(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Returns the result of a coroutine on a loop of its own, with connections of its own."""

    async def run() -> Any:
        try:
            return await make()
        finally:
            collector.close()

    return asyncio.run(run())


def send(app: Any, *calls: tuple[Any, ...]) -> list[Answer]:
    """Makes calls at once: (method, address, body, headers)."""

    async def run() -> list[Answer]:
        return await asyncio.gather(*(call(app, *each) for each in calls))

    return run_on_loop(run)


def key_headers(**overrides: Any) -> list[tuple[str, str]]:
    headers = bearer(make_key("ingest", **overrides))
    return [*headers.items(), ("Content-Type", "application/json")]


def has_calls(collector: intake.Collector) -> bool:
    """Returns whether a call has a share of the collector."""
    return bool(collector._shares._used)


def counts(response: Answer) -> tuple[int, int, int]:
    result = json.loads(response.body)["result"]
    return result["stored"], result["duplicate"], result["rejected"]


def test_calls_at_once_have_their_own_counts(app: Any):
    headers = key_headers()
    calls = [
        ("POST", "/v1/telemetry", encode_batch(answer(number), answer(number + 1)), headers)
        for number in range(0, 40, 2)
    ]

    answers = send(app, *calls)

    assert [response.status for response in answers] == [200] * 20
    assert [counts(response) for response in answers] == [(2, 0, 0)] * 20
    assert StoredEvent.objects.count() == 40
    assert [counts(response) for response in send(app, *calls)] == [(0, 2, 0)] * 20


def test_refused_batch_fails_no_other(app: Any):
    headers = key_headers()
    unstorable = encode_batch(answer(5)).replace(b'"score"', b'"tiny": 1e-20000, "score"')

    answers = send(
        app,
        ("POST", "/v1/telemetry", encode_batch(answer(1), 7), headers),
        ("POST", "/v1/telemetry", unstorable, headers),
        ("POST", "/v1/telemetry", b"[", headers),
        ("POST", "/v1/telemetry", encode_batch(answer(2)), headers),
    )

    assert [counts(answers[0]), counts(answers[1]), counts(answers[3])] == [
        (1, 0, 1),
        (0, 0, 1),
        (1, 0, 0),
    ]
    assert answers[2].status == 400
    assert (StoredEvent.objects.count(), RejectedEvent.objects.count()) == (2, 2)


def test_outage_is_503_in_the_sources_words(app: Any, monkeypatch: pytest.MonkeyPatch):
    headers = key_headers()
    one = ("POST", "/v1/telemetry", encode_batch(answer(1)), headers)

    def fail(*_: Any) -> None:
        raise OperationalError

    async def fail_on_loop(*_: Any) -> None:
        raise psycopg.OperationalError

    with monkeypatch.context() as patch:
        patch.setattr(batches, "append_batches", fail)
        patch.setattr("ingest.db.loop_connection.LoopConnection.execute", fail_on_loop)
        patch.setattr(batches, "_append", fail)
        (failed,) = send(app, one)

    assert failed.status == 503
    assert json.loads(failed.body)["params"]["err"] == "SERVER_ERROR"
    assert 1 <= int(failed.headers["retry-after"]) <= 5
    assert counts(send(app, one)[0]) == (1, 0, 0)


@pytest.mark.postgresql
def test_loop_completes_events_from_stored_ones(app: Any, monkeypatch: pytest.MonkeyPatch):
    keys.create_application("shop", make_channel())
    keys.create_application("other", make_channel("ORG_002"))
    asha = {"email": "asha@people.example"}

    def build(application: str, **lists: list[tuple[str, dict[str, str]]]) -> tuple[Any, ...]:
        rows = {
            name: [{"eventId": event_id, "identity": who, "ts": "2024-05-30T09:15:00",
                    "visitId": f"v-{event_id}", "name": "report"} for event_id, who in own]
            for name, own in lists.items()
        }  # fmt: skip
        headers = [("Content-Type", "application/json")]
        return "POST", f"/hit/bulk?client_id={application}", json.dumps(rows).encode(), headers

    send(app, build("shop", identities=[("e-1", {"id": "42", **asha})]))

    def refuse(*_: Any) -> None:
        raise AssertionError("This takes a thread.")

    monkeypatch.setattr(batches, "append_batches", refuse)
    loop_alone = build_collector(build_senders())
    app = Application([loop_alone.find_handler], WsgiBridge(app, senders))

    def send_all() -> list[int]:
        async def run() -> list[Answer]:
            try:
                return await asyncio.gather(*(call(app, *each) for each in features))
            finally:
                loop_alone.close()

        return [json.loads(each.body)["stored"] for each in asyncio.run(run())]

    features = [
        build("shop", features=[("e-1", asha), ("e-2", asha)]),
        build("shop", features=[("e-3", {"email": "ben@people.example"})]),
        build("other", features=[("e-4", asha)]),
    ]
    assert [send_all(), send_all()] == [[2, 1, 1], [0, 0, 0]]
    current = StoredEvent.objects.filter(superseded_xid=None)
    rows = current.order_by("device_id", "session_id", "-type")
    assert [(row.type, row.payload["eventId"], row.device_id) for row in rows] == [
        ("identity", "e-1", "42"),
        ("feature", "e-1", "42"),
        ("feature", "e-2", "42"),
        ("feature", "e-4", asha["email"]),
        ("feature", "e-3", "ben@people.example"),
    ]


@pytest.mark.postgresql
def test_lost_connection_is_made_again(app: Any):
    headers = key_headers()

    with connection.cursor() as cursor:
        cursor.execute("SELECT array_agg(pid) FROM pg_stat_activity")
        (others,) = cursor.fetchone()

    def terminate() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND pid <> ALL (%s)",
                [others],
            )
        connection.close()

    async def run() -> list[Answer]:
        answers = []
        for number in range(6):
            body = encode_batch(answer(number))
            answers.append(await call(app, "POST", "/v1/telemetry", body, headers))
            if number % 2 == 0:
                await asyncio.to_thread(terminate)
        return answers

    answers = run_on_loop(run)

    assert [response.status for response in answers] == [200] * 6
    assert StoredEvent.objects.count() == 6


@pytest.mark.postgresql
@pytest.mark.parametrize("error", [psycopg.errors.LockNotAvailable, Unavailable])
def test_nobody_waits_twice_in_vain(
    app: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    """A group of channels waits once; one by one they would wait for minutes."""
    calls = [
        ("POST", "/v1/telemetry", encode_batch(answer(number, context={"channel": name})), headers)
        for number, name in enumerate(("ORG_001", "ORG_002", "ORG_003"))
        if (headers := key_headers(channels=(name,)))
    ]
    waits = []

    async def wait_in_vain(_: Any, statements: list[Any]) -> None:
        waits.append(len(statements))
        raise error("waited")

    with monkeypatch.context() as patch:
        patch.setattr("ingest.db.loop_connection.LoopConnection.execute", wait_in_vain)
        answers = send(app, *calls)

    assert [response.status for response in answers] == [503] * 3
    assert sum(waits) == 3  # each batch is in one statement
    assert StoredEvent.objects.count() == 0


def test_revoked_key_is_refused_within_a_second(app: Any):
    headers = key_headers()
    one = ("POST", "/v1/telemetry", encode_batch(answer(1)), headers)

    def revoke() -> None:
        keys.revoke_key(ApiKey.objects.get())
        connection.close()

    async def run() -> list[int]:
        statuses = [(await call(app, *one)).status]
        await asyncio.to_thread(revoke)
        loop = asyncio.get_running_loop()
        revoked_at = loop.time()
        while loop.time() < revoked_at + 1.0:
            await call(app, *one)
            await asyncio.sleep(0.05)
        statuses.append((await call(app, *one)).status)
        return statuses

    assert run_on_loop(run) == [200, 401]


def test_two_keys_are_none(app: Any):
    headers = key_headers()
    other = ("Authorization", f"Bearer {make_key('ingest')}")

    (response,) = send(app, ("POST", "/v1/telemetry", encode_batch(answer(1)), [*headers, other]))

    assert response.status == 401


# Bodies ------------------------------------------------------------------------------------------


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


def test_body_without_a_length(app: Any):
    body = encode_batch(answer(1))

    (response,) = send(
        app, ("POST", "/v1/telemetry", in_chunks(body[:50], body[50:]), key_headers())
    )

    assert counts(response) == (1, 0, 0)


def test_body_without_a_length_is_bounded(app: Any):
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            await asyncio.sleep(0)
            yield b" " * 1024 * 1024

    (response,) = send(app, ("POST", "/v1/telemetry", endless(), key_headers()))

    assert response.status == 413
    assert json.loads(response.body)["params"]["err"] == "too_large"
    assert read == 9


def test_body_that_stalls(app: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange, "IDLE_BODY_SECONDS", 0.1)

    async def stalled() -> AsyncIterator[bytes]:
        yield b"["
        await asyncio.sleep(30)

    (response,) = send(app, ("POST", "/v1/telemetry", stalled(), key_headers()))

    assert response.status == 408
    assert json.loads(response.body)["params"]["err"] == "too_slow"


def test_body_that_ends_early(app: Any):
    headers = [*key_headers(), ("Content-Length", "500")]

    (response,) = send(app, ("POST", "/v1/telemetry", in_chunks(b"[]"), headers))

    assert response.status == 400
    assert json.loads(response.body)["params"]["err"] == "cut_off"


# One shape ---------------------------------------------------------------------------------------

_VOLATILE = {"date", "x-request-id", "content-length", "vary", "set-cookie"}


def prepare_calls(shop: str) -> list[tuple[str, str, bytes, list[tuple[str, str]]]]:
    """Calls of every source, with their errors. The collector keeps an application a second."""
    secret = keys.create_application(shop, make_channel(), allowed_origins="https://shop.example")[
        1
    ]
    key = key_headers()
    basic = [("Authorization", f"Basic {b64encode(f'{shop}:{secret}'.encode()).decode()}")]
    page = [("Origin", "https://shop.example"), ("Content-Type", "application/json")]
    return [
        ("POST", "/v1/telemetry", encode_batch(answer(1), 5), key),
        ("POST", "/v1/telemetry", b"{", key),
        ("POST", "/v1/telemetry", b"[]", []),
        ("GET", "/v1/telemetry", b"", key),
        ("POST", "/v1/participants", b'[{"deviceId": "d"}, {}]', key),
        ("POST", f"/collect?appId={shop}", b"[]", page),
        ("POST", "/collect?appId=none", b"[]", page),
        ("OPTIONS", f"/collect?appId={shop}", b"", page),
        ("GET", f"/hit?client_id={shop}&id=1&name=open", b"", []),
        ("POST", f"/hit/bulk?client_id={shop}", b'{"features": [{"id": "f"}]}', page),
        ("PUT", "/export/events", b'{"a": 1}', [*basic, ("Content-Type", "application/json")]),
        ("POST", "/_bulk", b"{}\n", [*basic, ("Content-Type", "application/x-ndjson")]),
        ("POST", "/_bulk", b"{}\n", []),
        ("GET", "/healthz", b"", []),
        ("GET", "/nothing", b"", []),
    ]


def test_loop_and_django_answer_alike(app: Any):
    calls = prepare_calls("shop")
    by_loop = send(app, *calls)
    StoredEvent.objects.all().delete()

    for (method, address, body, headers), here in zip(calls, by_loop, strict=True):
        sent = dict(headers)
        there = Client(headers=sent).generic(
            method, address, body, sent.get("Content-Type", ""), REMOTE_ADDR="192.0.2.7"
        )
        assert (here.status, stable(here.body)) == (there.status_code, stable(there.content)), (
            address
        )
        headers_here = {n: v for n, v in here.headers.items() if n not in _VOLATILE}
        headers_there = {
            name.lower(): value
            for name, value in there.headers.items()
            if name.lower() not in _VOLATILE
        }
        assert headers_here == headers_there, address


def stable(body: bytes) -> Any:
    """A body without what differs from call to call."""
    if not body:
        return None
    try:
        content = json.loads(body)
    except ValueError:
        return body
    if isinstance(content, dict):
        content.pop("ets", None)
        content.pop("took", None)
        content.get("params", {}).pop("resmsgid", None)
    return content


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 7):
        yield body[start : start + 7]


def test_chunked_body_is_as_one_with_length(app: Any):
    calls = [each for each in prepare_calls("store") if each[2]]
    expected = [answer.status for answer in send(app, *calls)]
    assert expected.count(200) >= 4

    by_loop = send(
        app, *((method, url, in_pieces(body), more) for method, url, body, more in calls)
    )
    assert [answer.status for answer in by_loop] == expected


def test_unknown_host_is_refused(app: Any, caplog: pytest.LogCaptureFixture):
    (response,) = send(
        app, ("POST", "/v1/telemetry", b"[]", [*key_headers(), ("X-Forwarded-Host", "a")])
    )
    assert response.status == 200

    async def run() -> Answer:
        return await call(app, "POST", "/v1/telemetry", b"[]", [("Host", "evil.example")])

    refused = run_on_loop(run)
    assert refused.status == 400
    assert json.loads(refused.body)["title"] == "host"
    assert "ALLOWED_HOSTS" in json.loads(refused.body)["detail"]
    assert "ALLOWED_HOSTS" in caplog.text


def test_program_is_not_led_to_https(app: Any, settings: Any):
    settings.SECURE_SSL_REDIRECT = True
    settings.EXHAUST_BEHIND_PROXY = 1
    browser, proxy = ("Accept", "text/html,*/*"), ("X-Forwarded-Proto", "https")
    refused, led, taken = send(
        app,
        *(
            ("POST", "/v1/telemetry?a=b", b"[]", [*key_headers(), *more])
            for more in ([], [browser], [proxy])
        ),
    )
    assert (refused.status, json.loads(refused.body)["title"]) == (403, "https_only")
    assert led.status == 301
    assert dict(led.headers)["location"].endswith("/v1/telemetry?a=b")
    assert taken.status == 200


# A process that has just started -----------------------------------------------------------------


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Keys of each statement that looks for keys of a process that knows none."""
    monkeypatch.setattr(admission, "known_channels", RecentValues())
    monkeypatch.setattr(admission, "MAX_WAIT_SECONDS", 10.0)  # of a slow machine
    counts: list[int] = []
    fetch = keys.fetch_keys

    def count(public_ids: Collection[str], *more: Any) -> Any:
        if threading.current_thread().name == "lookups":
            counts.append(len(public_ids))
        return fetch(public_ids, *more)

    monkeypatch.setattr(keys, "fetch_keys", count)
    return counts


LIST = ("GET", "/dataset/v1/request/list/none", b"")


def test_first_calls_of_many_keys_are_served(app: Any, lookups: list[int]):
    texts = [make_key("export:response", channels=(f"ORG_{n}",)) for n in range(20)]

    answers = send(app, *((*LIST, list(bearer(each).items())) for each in texts))

    assert Counter(each.status for each in answers) == {200: 20}
    assert sum(lookups) == 20
    assert len(lookups) <= 5


def test_guesses_leave_the_first_call_of_a_key(app: Any, lookups: list[int], settings: Any):
    settings.EXHAUST_BEHIND_PROXY = 1
    good = bearer(make_key("export:response"))
    guesses = [
        (*LIST, [("x-api-key", make_guess(n)), ("x-forwarded-for", "198.51.100.1")])
        for n in range(500)
    ]

    *denied, answer = send(
        app, *guesses, (*LIST, [*good.items(), ("x-forwarded-for", "192.0.2.8")])
    )

    assert answer.status == 200
    assert {each.status for each in denied} <= {401, 429, 503}
    assert sum(lookups) <= MAX_WAITING + 1  # the others of one network are not looked up


def test_guess_is_counted_once(app: Any, monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []
    monkeypatch.setattr(
        rate_limits,
        "count_auth_failures",
        lambda requests: counted.append(len(requests)) or [None] * len(requests),
    )

    (denied,) = send(app, (*LIST, [("x-api-key", make_guess(1))]))

    assert denied.status == 401
    assert json.loads(denied.body)["responseCode"] == "UNAUTHORIZED"
    assert sum(counted) == 1


# Shares ------------------------------------------------------------------------------------------


def test_full_channel_is_refused_and_others_are_served(monkeypatch: pytest.MonkeyPatch):
    from config.wsgi import application as django

    monkeypatch.setattr(intake, "CHANNEL_REQUESTS", 1)
    busy = build_collector(build_senders())
    app = Application([busy.find_handler], WsgiBridge(django, senders))
    here, there = key_headers(), key_headers(channels=("ORG_002",))
    of_other = answer(1)
    of_other["context"]["channel"] = "ORG_002"

    async def run() -> list[Answer]:
        is_over = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield encode_batch(answer(1))
            await is_over.wait()

        try:
            first = asyncio.ensure_future(call(app, "POST", "/v1/telemetry", slow(), here))
            while not has_calls(busy):
                await asyncio.sleep(0.01)
            second = await call(app, "POST", "/v1/telemetry", encode_batch(answer(2)), here)
            other = await call(app, "POST", "/v1/telemetry", encode_batch(of_other), there)
            is_over.set()
            return [second, other, await first]
        finally:
            busy.close()

    second, other, first = asyncio.run(run())

    assert second.status == 503
    assert json.loads(second.body)["params"]["err"] == "SERVER_ERROR"
    assert 1 <= int(second.headers["retry-after"]) <= 5
    assert (counts(other), counts(first)) == ((1, 0, 0), (1, 0, 0))


def test_outsider_leaves_half_to_the_channel(monkeypatch: pytest.MonkeyPatch):
    from config.wsgi import application as django

    keys.create_application("shop", make_channel())
    monkeypatch.setattr(intake, "CHANNEL_REQUESTS", 2)
    busy = build_collector(build_senders())
    app = Application([busy.find_handler], WsgiBridge(django, senders))
    headers, collect = key_headers(), ("POST", "/collect?appId=shop")

    async def run() -> list[Answer]:
        is_over = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"["
            await is_over.wait()
            yield b"]"

        try:
            first = asyncio.ensure_future(call(app, *collect, slow(), []))
            while not has_calls(busy):
                await asyncio.sleep(0.01)
            second = await call(app, *collect, b"[]", [])
            own = await call(app, "POST", "/v1/telemetry", encode_batch(answer(1)), headers)
            is_over.set()
            return [second, own, await first]
        finally:
            busy.close()

    second, own, first = asyncio.run(run())

    assert (second.status, own.status, first.status) == (503, 200, 200)
    assert not has_calls(busy)


def test_small_call_waits_for_no_row_of_bodies(app: Any, monkeypatch: pytest.MonkeyPatch):
    # given twenty bodies that the loop parses, and a call that stores none behind them
    keys.create_application("quiet-app", make_channel("ORG_002"))
    headers, ping = key_headers(), ("GET", "/ping?appId=quiet-app", b"", [])
    body = encode_batch(*(answer(number) for number in range(40)))
    assert intake.MAX_SMALL_BYTES < len(body) <= intake.MAX_LOOP_BYTES
    parsed, parsed_before = [], []
    decode = json_body.decode

    def count_bodies(*args: Any) -> bytes:
        parsed.append(args)
        return decode(*args)

    monkeypatch.setattr(json_body, "decode", count_bodies)

    async def run() -> None:
        await call(app, *ping)  # the application is known from here on
        await call(app, "POST", "/v1/telemetry", encode_batch(answer(1)), headers)
        parsed.clear()
        busy = [
            asyncio.ensure_future(call(app, "POST", "/v1/telemetry", body, headers))
            for _ in range(20)
        ]
        assert (await call(app, *ping)).status == 200
        parsed_before.append(len(parsed))
        assert {response.status for response in await asyncio.gather(*busy)} == {200}

    run_on_loop(run)

    assert (len(parsed), parsed_before[0] <= 10) == (20, True)


def test_each_request_has_its_line(app: Any, capfd: pytest.CaptureFixture[str]):
    headers = [*key_headers(), ("X-Request-ID", "0123456789abcdef0123456789abcdef")]

    async def run() -> None:
        await call(app, "POST", "/v1/telemetry", encode_batch(answer(1)), headers)
        await asyncio.sleep(0.2)

    run_on_loop(run)

    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    (line,) = (line for line in lines if line.get("event") == "request.answered")
    assert line["request"] == "0123456789abcdef0123456789abcdef"
    assert (line["method"], line["route"], line["status"]) == ("POST", "v1/telemetry", 200)
    assert (line["channel"], line["level"]) == ("ORG_001", "INFO")
    assert len(line["caller"]) == 8


def test_stop_is_told_and_passed_on(app: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exchange.Request, "is_stopping", False)
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        return {"type": next(messages)}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    try:
        run_inline(app({"type": "lifespan"}, receive, send))  # signals need the main thread
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert not exchange.Request.is_stopping
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert exchange.Request.is_stopping
    assert told == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("proxies", "schemes", "expected"),
    [(0, "https", False), (1, "https", True), (1, "https, http", True), (2, "http,https", False)],
)
def test_forwarded_scheme_is_read_as_django_does(
    proxies: int, schemes: str, expected: bool, settings: Any
):
    settings.EXHAUST_BEHIND_PROXY = proxies
    headers = exchange.Headers([("x-forwarded-proto", schemes)])
    assert is_secure(exchange.Request("GET", "/", b"", headers, "")) is expected
