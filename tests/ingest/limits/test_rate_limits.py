import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from ingest.auth import keys
from ingest.events import RequestError
from ingest.limits import rate_limits, token_bucket
from ingest.limits.rate_limits import (
    AUTH_FAILURES,
    EVENTS,
    READS,
    WRITES,
    Limit,
    LocalQuota,
    RateLimited,
)
from tests.conftest import bearer, make_channel, make_key
from tests.ingest.limits.test_token_bucket import Clock

EVENT = {"eid": "LOG", "ets": 1648785600123, "mid": "m", "context": {}, "edata": {}}


@pytest.fixture(autouse=True)
def counted(settings: Any, monkeypatch: pytest.MonkeyPatch) -> token_bucket.ProcessLimiter:
    """Limits as they are shipped, on a clock that stands, with empty buckets."""
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 1.0
    buckets = token_bucket.ProcessLimiter(lambda: 10**12)
    monkeypatch.setattr(token_bucket, "get_limiter", lambda _: buckets)
    monkeypatch.setattr(rate_limits, "time", SimpleNamespace(monotonic=Clock().seconds))
    for name in ("blocked_addresses", "verified_credentials"):
        monkeypatch.setattr(rate_limits, name, rate_limits.RecentValues())
    monkeypatch.setattr(rate_limits, "local_quota", LocalQuota(Clock().seconds))
    return buckets


def shrink_bursts(monkeypatch: pytest.MonkeyPatch, **bursts: int) -> None:
    """Bursts so small that a test meets them; nothing comes back for 50 seconds."""
    for name, burst in bursts.items():
        monkeypatch.setattr(rate_limits, name, Limit(getattr(rate_limits, name).name, 0.02, burst))


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("POST", "/v1/telemetry", EVENTS),
        ("POST", "/data/v3/telemetry", EVENTS),
        ("POST", "/v1/participants", EVENTS),
        ("PUT", "/v1/conversations/bot", WRITES),
        ("GET", "/v1/conversations/bot", READS),
        ("DELETE", "/v1/participants/device-1", WRITES),
        ("GET", "/v1/participants/device-1", READS),
        ("POST", "/collect", EVENTS),
        ("GET", "/hit", EVENTS),
        ("POST", "/hit/bulk", EVENTS),
        ("PUT", "/export/events", EVENTS),
        ("POST", "/sessions/_bulk", EVENTS),
        ("POST", "/_bulk", EVENTS),
        ("GET", "/export/events", READS),
        ("GET", "/export/users/1", READS),
        ("GET", "/export/sample", WRITES),
        ("GET", "/dataset/v1/request/read/tag", READS),
        ("GET", "/api/dataset/v1/request/list/tag", READS),
        ("POST", "/api/dataset/v1/request/submit", WRITES),
        ("POST", "/dataset/v1/request/preview", WRITES),
        ("POST", "/dataset/v1/request/search", WRITES),
        ("DELETE", "/dataset/v1/destination/x", WRITES),
        ("POST", "/admin/login/", WRITES),
    ],
)
def test_each_call_has_its_limit(method: str, path: str, limit: Limit, rf: RequestFactory):
    assert rate_limits.select_limit(rf.generic(method, path)) == limit


# Known callers ----------------------------------------------------------------------------------


def test_write_reports_remaining_then_retry(asker: Client):
    path = "/dataset/v1/request/search"
    body = {"request": {"filters": {}}}

    first = asker.post(path, body, content_type="application/json")
    for _ in range(WRITES.burst - 1):
        assert asker.post(path, body, content_type="application/json").status_code == 200
    refused = asker.post(path, body, content_type="application/json")

    assert first["RateLimit-Policy"] == '"writes";q=100;w=10'
    assert first["RateLimit"] == '"writes";r=99;t=1'
    assert refused.status_code == 429
    assert refused["RateLimit"] == '"writes";r=0;t=10'
    assert refused["Retry-After"] == "1"
    said = refused.json()
    assert said["responseCode"] == "TOO_MANY_REQUESTS"
    assert said["params"]["errmsg"] == "Too many writes by this caller; wait."
    # reading is another class, and another key another caller
    assert asker.get("/dataset/v1/request/list/april").status_code == 200
    other = bearer(make_key("export:response"))
    assert asker.post(path, body, content_type="application/json", headers=other).status_code == 200


def basic(db: None) -> dict[str, str]:
    from base64 import b64encode

    _, password = keys.create_application("app", make_channel())
    return {"Authorization": "Basic " + b64encode(f"app:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("path", "sent", "read"),
    [
        ("/v1/telemetry", EVENT, lambda said: said["responseCode"] == "TOO_MANY_REQUESTS"),
        ("/v1/participants", [], lambda said: said["title"] == "too_many_requests"),
        ("/collect?appId=app", [], lambda said: said["title"] == "too_many_requests"),
        ("/hit/bulk?client_id=app", {"features": []}, lambda said: said["code"] == 429),
        ("/export/events", {}, lambda said: said["status"] == 429),
        (
            "/_bulk",
            {},
            lambda said: said["error"]["type"] == "es_rejected_execution_exception",
        ),
    ],
)
def test_each_source_rejects_before_reading(
    path: str,
    sent: Any,
    read: Callable[[Any], bool],
    db: None,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
):
    shrink_bursts(monkeypatch, EVENTS=1)
    headers = bearer(make_key("ingest")) if path.startswith("/v1") else basic(db)

    def post() -> Any:
        return client.post(path, sent, content_type="application/json", headers=headers)

    first = post()

    def unread(*_: Any) -> bytes:
        raise AssertionError("the body was read")

    monkeypatch.setattr("ingest.http.request_body.read_raw", unread)
    refused = post()

    assert first.status_code != 429
    assert "RateLimit" not in first  # a sender does not read it
    assert refused.status_code == 429
    assert read(refused.json())
    is_of_network = path.startswith("/collect")  # which has half of it
    assert refused["Retry-After"] == ("100" if is_of_network else "50")
    policy = '"network";q=1;w=100' if is_of_network else '"events";q=1;w=50'
    assert refused["RateLimit-Policy"] == policy


def test_pull_rejects_with_problem_json(db: None, client: Client, monkeypatch: pytest.MonkeyPatch):
    shrink_bursts(monkeypatch, READS=1)
    headers = bearer(make_key("pull"))
    assert client.get("/export/sessions", headers=headers).status_code == 200

    refused = client.get("/export/sessions", headers=headers)

    assert refused.status_code == 429
    assert refused["Content-Type"] == "application/problem+json"
    assert refused.json()["details"] == "Too many reads by this caller; wait."
    assert refused["Retry-After"] == "50"


@pytest.mark.parametrize(
    ("method", "seconds", "passed"),
    [
        ("POST", 2.0, 5), ("POST", 0.002, 100), ("POST", 0.1, 100), ("POST", 0.25, 50),
        ("GET", 2.0, 3), ("GET", 0.002, 500),
    ],
)  # fmt: skip
def test_slow_calls_cost_their_time(
    method: str, seconds: float, passed: int, rf: RequestFactory, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(rate_limits, "read_busy_seconds", clock.seconds)

    def serve(request: HttpRequest) -> HttpResponse:
        rate_limits.count_timed_call(request, "key:1")
        clock.now += seconds
        return HttpResponse()

    respond = rate_limits.add_rate_limit_headers(serve)
    for _ in range(passed):
        respond(rf.generic(method, "/dataset/v1/destination/x"))

    with pytest.raises(RateLimited):
        respond(rf.generic(method, "/dataset/v1/destination/x"))


def test_time_without_limits_is_free(rf: RequestFactory, settings: Any):
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = 0.0
    for _ in range(1000):
        request = rf.post("/dataset/v1/destination/x")
        rate_limits.count_timed_call(request, "key:1")
        rate_limits.charge_time(request, 60)


@pytest.mark.parametrize(("factor", "passes"), [(0.0, 9), (0.5, 2), (2.0, 8)])
def test_multiplier_scales_all_limits(
    factor: float, passes: int, settings: Any, rf: RequestFactory, monkeypatch: pytest.MonkeyPatch
):
    shrink_bursts(monkeypatch, READS=4)
    settings.EXHAUST_RATE_LIMIT_MULTIPLIER = factor
    count = 0
    for _ in range(9):
        try:
            rate_limits.count_call(rf.get("/export/events"), "key:1")
            count += 1
        except RateLimited:
            pass
    assert count == passes


# Guessing ---------------------------------------------------------------------------------------


def test_guessing_address_is_blocked(
    db: None, client: Client, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
):
    shrink_bursts(monkeypatch, AUTH_FAILURES=3)
    good, newer = make_key("pull"), make_key("pull")
    assert client.get("/export/users", headers=bearer(good)).status_code == 403  # a scope: no guess

    def get(key: str, **extra: Any) -> Any:
        return client.get("/export/sessions", headers=bearer(key), **extra)

    assert [get(f"exh_{n:08}_x").status_code for n in range(5)] == [401] * 3 + [429] * 2
    refused = get("exh_guess")
    with django_assert_num_queries(0):
        assert get("exh_another").status_code == 429
        assert get(newer).status_code == 429  # it might be a guess

    assert 0 < int(refused["Retry-After"]) <= 50
    assert refused["RateLimit-Policy"] == '"failures";q=3;w=150'


def test_verified_credential_passes_block(
    db: None, client: Client, monkeypatch: pytest.MonkeyPatch
):
    shrink_bursts(monkeypatch, AUTH_FAILURES=1)
    good = make_key("pull")
    assert client.get("/export/sessions", headers=bearer(good)).status_code == 200
    bad = [client.get("/export/sessions", headers=bearer(f"no{n}")).status_code for n in range(3)]

    assert bad == [401, 429, 429]
    assert client.get("/export/sessions", headers=bearer(good)).status_code == 200
    elsewhere = client.get("/export/sessions", headers=bearer("no"), REMOTE_ADDR="192.0.2.1")
    assert elsewhere.status_code == 401


@pytest.mark.parametrize(
    "path", ["/collect?appId=no{}", "/hit?client_id=no{}", "/dataset/v1/download/no{}"]
)
def test_application_and_link_guessing(
    path: str, db: None, client: Client, monkeypatch: pytest.MonkeyPatch
):
    shrink_bursts(monkeypatch, AUTH_FAILURES=2)
    call = client.post if path.startswith("/collect") else client.get

    answers = [call(path.format(n)) for n in range(4)]

    assert [answer.status_code for answer in answers] == [403, 403, 429, 429]
    assert all(answer.has_header("Retry-After") for answer in answers[2:])


def test_server_error_is_not_an_auth_failure(rf: RequestFactory):
    request = rf.get("/")
    for error in (RuntimeError(), RequestError("x", "x", 400)):
        for _ in range(AUTH_FAILURES.burst + 1):
            with pytest.raises(type(error)), rate_limits.throttle_auth_failures(request, "word"):
                raise error


def test_uncounted_answers_have_no_headers(rf: RequestFactory):
    answer = rate_limits.add_rate_limit_headers(lambda _: HttpResponse())(rf.get("/healthz"))

    assert "RateLimit" not in answer


# Leases -----------------------------------------------------------------------------------------


def note_counts(monkeypatch: pytest.MonkeyPatch, counted: token_bucket.ProcessLimiter) -> list[int]:
    """Returns a list that gets the calls of each trip to the buckets."""
    asked: list[int] = []
    spend = counted.spend

    def noted(
        key: str, rate: float, burst: int, count: int = 1, **options: bool
    ) -> tuple[float, float]:
        asked.append(count)
        return spend(key, rate, burst, count, **options)

    monkeypatch.setattr(counted, "spend", noted)
    return asked


def test_local_quota_passes_exact_burst(
    monkeypatch: pytest.MonkeyPatch, counted: token_bucket.ProcessLimiter
):
    asked = note_counts(monkeypatch, counted)
    leases, limit = LocalQuota(Clock().seconds), Limit("x", 1000, 1777)

    passed = sum(leases.spend("a", limit)[0] == 0 for _ in range(3_000))

    assert passed == limit.burst
    assert asked[:7] == [1, 2, 4, 8, 16, 32, 50]
    assert len([count for count in asked if count > 1]) < 50 + (3_000 - passed)


def test_steady_caller_seldom_asks(
    monkeypatch: pytest.MonkeyPatch, counted: token_bucket.ProcessLimiter
):
    asked = note_counts(monkeypatch, counted)
    clock = Clock()
    leases, limit = LocalQuota(clock.seconds), Limit("x", 10_000, 20_000)
    for _ in range(9_000):  # in three seconds
        clock.now += 1 / 3_000
        assert leases.spend("a", limit)[0] == 0

    assert len(asked) < 60
    assert sum(asked) < 1.7 * 9_000
    clock.now += 60
    leases.spend("a", limit)
    assert asked[-1] == 1  # it has become a rare caller


def test_process_quotas_share_one_bucket():
    one, other = LocalQuota(Clock().seconds), LocalQuota(Clock().seconds)
    limit = Limit("x", 1000, 500)

    passed = sum(each.spend("a", limit)[0] == 0 for _ in range(600) for each in (one, other))

    assert 450 <= passed <= 500


def test_local_quota_expires(counted: token_bucket.ProcessLimiter):
    clock = Clock()
    leases, limit = LocalQuota(clock.seconds), Limit("x", 1000, 100)
    for _ in range(4):  # takes 1, 2 and 4; three of these are left
        leases.spend("a", limit)

    clock.now += 0.2

    passed = sum(leases.spend("a", limit)[0] == 0 for _ in range(200))
    assert passed == 100 - 7


def test_waiting_calls_take_one_trip(
    monkeypatch: pytest.MonkeyPatch, counted: token_bucket.ProcessLimiter
):
    asked: list[int] = []
    spend = counted.spend
    monkeypatch.setattr(
        counted, "spend", lambda *args, **options: asked.append(args[3]) or spend(*args, **options)
    )
    limit = Limit("x", 1000, 300)
    calls = [rate_limits.CountedCall(None, limit, caller) for caller in ("a", "b") * 200]

    assert rate_limits.count_waiting(calls) == [0.0] * 400

    waits = rate_limits.count_waiting(calls)

    assert waits[:200] == [0.0] * 200  # what the buckets still have, the first ones first
    assert waits[200:] == [pytest.approx(0.001)] * 200
    assert asked == [200, 200, 200, 200, 100, 100]


def test_waiting_calls_take_what_is_at_hand(counted: token_bucket.ProcessLimiter):
    quota, limit = LocalQuota(Clock().seconds), Limit("x", 1000, 100)
    for _ in range(4):  # takes 1, 2 and 4; three of these are left
        quota.spend("a", limit)

    assert quota.spend_many("a", limit, 3) == (3, 0.0, pytest.approx(0.007))
    assert quota.spend_many("a", limit, 200) == (93, pytest.approx(0.001), pytest.approx(0.1))
    assert quota.spend_many("a", limit, 2)[0] == 0


def test_event_limit_answers_json(db: None, client: Client, monkeypatch: pytest.MonkeyPatch):
    shrink_bursts(monkeypatch, EVENTS=1)
    headers = bearer(make_key("ingest"))
    for _ in range(2):
        answer = client.post(
            "/v1/telemetry", json.dumps(EVENT), content_type="application/json", headers=headers
        )
    assert answer.json()["params"]["err"] == "too_many_requests"
