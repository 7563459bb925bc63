"""Whether the process lives, whether it can work, and what to say where nothing is."""

from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse

from ingest import problems


def alive(request: HttpRequest) -> JsonResponse:
    """`GET /healthz`: the process answers."""
    return JsonResponse({"status": "ok"})


def ready(request: HttpRequest) -> JsonResponse:
    """`GET /readyz`: the database answers and knows our tables."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM exhaust_job LIMIT 1")
    except DatabaseError:
        return JsonResponse({"status": "failed", "database": "unreachable"}, status=503)
    return JsonResponse({"status": "ok", "database": "ok"})


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return problems.response(404, "not_found", "There is nothing at this address.")


def failed(request: HttpRequest) -> JsonResponse:
    return problems.response(500, "server_error", "We failed; the cause is in our log.")
