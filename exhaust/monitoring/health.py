"""Whether the process lives, whether it can work, and what to say where nothing is."""

from datetime import date

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, JsonResponse

from exhaust.files import storage
from exhaust.jobs import transitions
from exhaust.models import DailyRun
from ingest import logs
from ingest.feed import watermark
from ingest.http import problems
from ingest.http.response_fields import Body, choice, integer, text
from ingest.http.schema import extend_schema

log = logs.get_logger(__name__)
BROKER_TIMEOUT_SECONDS = 1


class Liveness(Body):
    """The process answers."""

    status = choice("ok.", ["ok"])


class Readiness(Body):
    """The state of the service."""

    status = choice("Whether requests are served.", ["ok", "degraded", "failed"])
    database = text("ok, or the error.")
    migrations = text("ok, or what to run.")
    broker = text("ok or unreachable: exports start later.", required=False)
    storage = text("ok or unreachable: no file is made meanwhile.", required=False)
    queue_wait_seconds = integer("How long an export has waited for a worker.", required=False)


@extend_schema(
    "alive",
    {
        200: Liveness,
        (400, "text/html"): {"type": "string", "description": "The Host header is unknown."},
        "4XX": None,
    },
    methods=["GET"],
    auth=[],
)
def report_liveness(request: HttpRequest) -> JsonResponse:
    """Get whether the process answers."""
    return JsonResponse({"status": "ok"})


@extend_schema("ready", {200: Readiness, 503: Readiness, "4XX": None}, methods=["GET"], auth=[])
def report_readiness(request: HttpRequest) -> JsonResponse:
    """Get whether the service can work.

    503 means that the database cannot be written or lacks migrations. Without the broker or the
    storage the service still takes events and requests and loses nothing: `degraded`.
    `queue_wait_seconds` grows also if workers live but take no work.
    """
    status: dict[str, object] = {"database": _check_database(), "migrations": "unknown"}
    if status["database"] == "ok":
        status["migrations"] = _check_migrations()
    if status["migrations"] == "ok":
        queue_wait = transitions.queue_wait()
        status |= {"broker": _check_broker(), "storage": _check_storage()}
        status["queue_wait_seconds"] = round(queue_wait.total_seconds())
    if status["migrations"] != "ok":
        return JsonResponse({"status": "failed", **status}, status=503)
    is_complete = status["broker"] == status["storage"] == "ok"
    return JsonResponse({"status": "ok" if is_complete else "degraded", **status})


def _check_database() -> str:
    """Writes a row and rolls back: a standby or a full disk still answers reads."""
    try:
        with transaction.atomic():
            DailyRun(pk=0, day=date.min).save(force_insert=True)
            transaction.set_rollback(True)
    except DatabaseError as error:
        log.warning("database.check_failed", error=type(error).__name__)
        return "unreachable or read-only"
    return "ok"


is_migrated = False


def _check_migrations() -> str:
    """Whether the tables are those of this code; once they are they stay so."""
    global is_migrated
    if not is_migrated:
        from django.db.migrations.executor import MigrationExecutor  # a tenth of a start

        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return "missing: run manage.py migrate"
        if (
            watermark.fetch_last_position() >= watermark.fetch_upper_bound()
        ):  # nobody would ever see what comes in
            return "a restored dump: run manage.py rebase_positions"
        is_migrated = True
    return "ok"


def _check_broker() -> str:
    url = settings.CELERY_BROKER_URL
    if url.startswith("filesystem"):
        return "ok"
    import redis  # who has none need not wait for it at every start

    try:
        with redis.Redis.from_url(
            url,
            socket_connect_timeout=BROKER_TIMEOUT_SECONDS,
            socket_timeout=BROKER_TIMEOUT_SECONDS,
        ) as broker:
            broker.ping()
    except redis.RedisError as error:
        log.warning("broker.connection_failed", error=type(error).__name__)
        return "unreachable"
    return "ok"


def _check_storage() -> str:
    try:
        storage.get_storage().probe()
    except storage.StorageError as error:
        log.warning("storage.connection_failed", error=type(error.__cause__ or error).__name__)
        return "unreachable"
    return "ok"


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return problems.build_response(404, "not_found", "There is nothing at this address.")


def server_error(request: HttpRequest) -> JsonResponse:
    return problems.build_response(500, "server_error", "We failed; the cause is in our log.")
