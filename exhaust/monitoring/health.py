"""Whether the process lives, whether it can work, and what to say where nothing is."""

import logging
from datetime import date

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, JsonResponse

from exhaust.files import storage
from exhaust.jobs import transitions
from exhaust.models import DailyRun
from ingest.feed import watermark
from ingest.http import problems

log = logging.getLogger(__name__)
BROKER_SECONDS = 1


def alive(request: HttpRequest) -> JsonResponse:
    """`GET /healthz`: the process answers."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> JsonResponse:
    """`GET /readyz`: whether requests can be served, and what of the rest does not answer.

    503 only where the database cannot be written or its tables are not ours: without the broker
    or the storage, events and requests are still taken in and nothing is lost ("degraded").
    `oldest_due_job_seconds` is how long a job has waited for a worker: workers may be alive and
    deaf, but this figure grows.
    """
    told: dict[str, object] = {"database": _database(), "migrations": "unknown"}
    if told["database"] == "ok":
        told["migrations"] = _migrations()
    if told["migrations"] == "ok":
        oldest = transitions.oldest_due()
        told |= {"broker": _broker(), "storage": _storage()}
        told["oldest_due_job_seconds"] = round(oldest.total_seconds())
    if told["migrations"] != "ok":
        return JsonResponse({"status": "failed", **told}, status=503)
    whole = told["broker"] == told["storage"] == "ok"
    return JsonResponse({"status": "ok" if whole else "degraded", **told})


def _database() -> str:
    """A row is written, and taken back: a standby or a full disk reads well."""
    try:
        with transaction.atomic():
            DailyRun(pk=0, day=date.min).save(force_insert=True)
            transaction.set_rollback(True)
    except DatabaseError as error:
        log.warning("database.not_ready error=%s", type(error).__name__)
        return "unreachable or read-only"
    return "ok"


_migrated = False


def _migrations() -> str:
    """Whether the tables are those of this code; once they are they stay so."""
    global _migrated
    if not _migrated:
        from django.db.migrations.executor import MigrationExecutor  # a tenth of a start

        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            return "missing: run manage.py migrate"
        if watermark.last() >= watermark.ahead():  # nobody would ever see what comes in
            return "a restored dump: run manage.py restored"
        _migrated = True
    return "ok"


def _broker() -> str:
    url = settings.CELERY_BROKER_URL
    if url.startswith("filesystem"):
        return "ok"
    import redis  # who has none need not wait for it at every start

    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=BROKER_SECONDS, socket_timeout=BROKER_SECONDS
        ) as broker:
            broker.ping()
    except redis.RedisError as error:
        log.warning("broker.unreachable error=%s", type(error).__name__)
        return "unreachable"
    return "ok"


def _storage() -> str:
    try:
        storage.default().probe()
    except storage.StorageError as error:
        log.warning("storage.unreachable error=%s", type(error.__cause__ or error).__name__)
        return "unreachable"
    return "ok"


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return problems.response(404, "not_found", "There is nothing at this address.")


def failed(request: HttpRequest) -> JsonResponse:
    return problems.response(500, "server_error", "We failed; the cause is in our log.")
