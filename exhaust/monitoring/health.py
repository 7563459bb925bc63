"""Whether the process lives, and whether it can work."""

from collections.abc import Sequence
from datetime import date, timedelta
from hmac import compare_digest
from ipaddress import ip_address

import psycopg
from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.http import HttpRequest, JsonResponse

from exhaust.files import storage
from exhaust.jobs import transitions, wakeup
from exhaust.models import DailyRun
from exhaust.monitoring.checks import Check, State
from ingest import logs
from ingest.db import outages
from ingest.db.clock import read_clock
from ingest.db.pool import Unsuitable
from ingest.feed import restore
from ingest.http.response_fields import Body, choice, integer, text
from ingest.http.schema import extend_schema

log = logs.get_logger(__name__)
BROKER_TIMEOUT_SECONDS = 1
SWEEP_MAX_AGE = timedelta(seconds=60)
ESSENTIAL_PARTS = ("database", "migrations")  # without one of them no request is served


class Liveness(Body):
    """The process answers."""

    status = choice("ok.", ["ok"])


class Readiness(Body):
    """The state of the service. All but `status` needs the token."""

    status = choice("Whether requests are served.", ["ok", "degraded", "failed"])
    database = text("ok, or the error.", required=False)
    migrations = text("ok, or what to run.", required=False)
    broker = text("ok, unreachable or refuses writes: exports start later.", required=False)
    storage = text("ok or unreachable: no file is made meanwhile.", required=False)
    queue_wait_seconds = integer("How long an export has waited for a worker.", required=False)
    sweep = text("ok, or what to do: callbacks and retries wait meanwhile.", required=False)
    sweep_age_seconds = integer("How long ago a worker looked for due work.", required=False)


@extend_schema("alive", {200: Liveness, "4XX": None}, methods=["GET"], auth=[])
def report_liveness(request: HttpRequest) -> JsonResponse:
    """Get whether the process answers."""
    return JsonResponse({"status": "ok"})


@extend_schema(
    "ready",
    {200: Readiness, 503: Readiness, "4XX": None},
    methods=["GET"],
    auth=[{}, {"metrics": []}],
)
def report_readiness(request: HttpRequest) -> JsonResponse:
    """Get whether the service can work.

    503 means that the database cannot be written or lacks migrations. Without the broker or the
    storage the service still takes events and requests and loses nothing: `degraded`.
    `queue_wait_seconds` grows also if workers live but take no work. An answer comes within two
    seconds and is kept for one. The parts are named to callers with `Authorization: Bearer
    EXHAUST_METRICS_TOKEN`; without that setting, to callers on the same machine.
    """
    state = read_state()
    parts = state if may_read_details(request) else {}
    status = determine_status(state)
    return JsonResponse({"status": status, **parts}, status=503 if status == "failed" else 200)


def has_metrics_token(request: HttpRequest) -> bool:
    """Returns whether the request has `EXHAUST_METRICS_TOKEN`."""
    scheme, _, given_token = request.headers.get("Authorization", "").partition(" ")
    token = settings.EXHAUST_METRICS_TOKEN
    return (
        token != ""
        and scheme.lower() == "bearer"
        and compare_digest(given_token.strip().encode(), token.encode())
    )


def may_read_details(request: HttpRequest) -> bool:
    """Returns whether the caller has the token; without one, whether it is on this machine."""
    if settings.EXHAUST_METRICS_TOKEN:
        return has_metrics_token(request)
    if "X-Forwarded-For" in request.headers:  # a proxy may be on this machine too
        return False
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def determine_status(state: State) -> str:
    """Returns `ok`, `degraded` or `failed`."""
    if any(state.get(part) != "ok" for part in ESSENTIAL_PARTS):
        return "failed"
    is_complete = all(value == "ok" for value in state.values() if isinstance(value, str))
    return "ok" if is_complete else "degraded"


# The checks, each in a thread of its own ----------------------------------------------------------


def check_database() -> State:
    """Returns the state of the database and of what is read from it."""
    for is_last in (False, True):
        try:
            require_writable()
            read_clock()  # so that the event loop knows the time
            state: State = {"database": "ok", "migrations": _check_migrations()}
            if state["migrations"] == "ok":
                state["database"] = restore.find_fault() or "ok"
                state["queue_wait_seconds"] = round(transitions.queue_wait().total_seconds())
                state |= _check_sweep()
        except (DatabaseError, InterfaceError) as error:
            connection.close()  # a new one may reach a server that works
            if is_last:
                log.warning("database.check_failed", error=error)
                reason = outages.describe_outage(error) or "unreachable or read-only"
                if isinstance(error.__cause__, Unsuitable):
                    reason = str(error.__cause__)
        else:
            return state
    return {"database": reason, "migrations": "unknown"}


def require_writable() -> None:
    """Raises `DatabaseError` for a standby or a full disk, which still answer reads."""
    if connection.vendor == "postgresql":
        # an exported snapshot is a file on the server's disk for a moment, and takes no
        # transaction number
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_export_snapshot(), current_setting('transaction_read_only')")
            if cursor.fetchone()[1] == "on":
                raise DatabaseError from psycopg.errors.ReadOnlySqlTransaction()
    else:
        with transaction.atomic():  # its commit is written to the disk, though nothing has changed
            DailyRun(pk=0, day=date.min).save(force_insert=True)
            DailyRun.objects.filter(pk=0).delete()


is_migrated = False


def _check_migrations() -> str:
    """Whether the tables are those of this code; once they are they stay so."""
    global is_migrated
    if not is_migrated:
        from django.db.migrations.executor import MigrationExecutor  # a tenth of a start

        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return "missing: run manage.py migrate"
        is_migrated = True
    return "ok"


def _check_sweep() -> State:
    age = wakeup.fetch_sweep_age()
    if age is None:  # before the first worker
        return {"sweep": "ok"}
    is_late = age > SWEEP_MAX_AGE
    return {
        "sweep": "stalled: start a worker" if is_late else "ok",
        "sweep_age_seconds": round(age.total_seconds()),
    }


def check_broker() -> State:
    """Returns the state of the broker."""
    url = settings.CELERY_BROKER_URL
    if url.startswith("filesystem"):
        return {"broker": "ok"}
    import redis  # who has none need not wait for it at every start

    try:
        with redis.Redis.from_url(
            url,
            socket_connect_timeout=BROKER_TIMEOUT_SECONDS,
            socket_timeout=BROKER_TIMEOUT_SECONDS,
        ) as broker:
            # one that was demoted, is full or cannot save still answers a PING
            broker.set("exhaust:readyz", "", ex=60)
    except redis.RedisError as error:
        log.warning("broker.connection_failed", error=error)
        is_reached = isinstance(error, redis.ResponseError)
        return {"broker": "refuses writes" if is_reached else "unreachable"}
    return {"broker": "ok"}


def check_storage() -> State:
    """Returns the state of the storage."""
    try:
        storage.get_storage().probe()
    except storage.StorageError as error:
        log.warning("storage.connection_failed", error=error)
        return {"storage": "unreachable"}
    return {"storage": "ok"}


SERVER_CHECKS = (Check("broker", check_broker), Check("storage", check_storage))
CHECKS = (Check("database", check_database), *SERVER_CHECKS)


def read_state(checks: Sequence[Check] = CHECKS) -> State:
    """Returns the state of each part, at most a second old."""
    for check in checks:
        check.start()
    return {part: value for check in checks for part, value in check.read().items()}
