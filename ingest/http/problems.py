"""Errors as application/problem+json (RFC 9457), with the remedy in `detail`."""

from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, TooManyFieldsSent
from django.http import Http404, HttpResponseBase, JsonResponse
from rest_framework import exceptions, status
from rest_framework.response import Response

from ingest import logs
from ingest.adapters.base import PROBLEM, problem_members
from ingest.db import outages
from ingest.events import RequestError
from ingest.limits.admission import next_retry_seconds

log = logs.get_logger(__name__)
UNREADABLE = "The request is malformed, or has too many fields, files or bytes; send less."
HTTPS_ONLY = "Send this by https. A key that came by http may be known to others: rotate it."
UNKNOWN_HOST = "This service has another name; operators add names in ALLOWED_HOSTS."


def classify(error: Exception) -> tuple[int, str, str] | None:
    """Returns (HTTP status, code, sentence) of a caller's error; None for one of ours."""
    if isinstance(error, RequestError):
        return error.status, error.reason, error.detail
    if isinstance(error, Http404):
        return 404, "not_found", "There is nothing here by that name."
    if isinstance(error, PermissionDenied):
        return 403, "forbidden", "This is not allowed."
    if isinstance(error, TooManyFieldsSent):  # Django counts them when they are read first
        limit = settings.DATA_UPLOAD_MAX_NUMBER_FIELDS
        return (
            400,
            "too_many",
            f"The query or the form has more than {limit:,} parameters; send fewer.",
        )
    if isinstance(error, exceptions.ValidationError):
        field, sentence = first_error(error.detail)
        return error.status_code, "invalid", f"{field}: {sentence}" if field else sentence
    if isinstance(error, exceptions.APIException):
        code = error.get_codes()
        return error.status_code, code if isinstance(code, str) else "invalid", str(error.detail)
    return None


def explain(error: Exception) -> tuple[int, str, str]:
    """Returns the same of any error. Logs one that is ours."""
    problem = classify(error)
    if problem is not None:
        return problem
    if reason := outages.describe_outage(error):
        log.warning("database.call_failed", exc_info=error)
        return 503, "unavailable", f"The database is {reason}; try again after Retry-After seconds."
    log.error("request.failed", exc_info=error)
    return 500, "server_error", "We failed; the cause is in our log. Try again later."


def add_headers(response: HttpResponseBase, code: int) -> None:
    """Adds what a caller needs beside the body: how to authenticate, when to try again."""
    if code == status.HTTP_401_UNAUTHORIZED:
        response["WWW-Authenticate"] = "Bearer"
    if code == status.HTTP_503_SERVICE_UNAVAILABLE:
        response["Retry-After"] = str(next_retry_seconds())


def first_error(detail: Any, path: str = "") -> tuple[str, str]:
    """Returns the first field that a serializer rejected, dotted, and its sentence."""
    if isinstance(detail, dict):
        field, inner = next(iter(detail.items()))
        name = "" if field == "non_field_errors" else str(field)
        return first_error(inner, f"{path}.{name}".strip("."))
    if isinstance(detail, list):
        return first_error(detail[0], path)
    return path, str(detail)


def handle_exception(error: Exception, context: dict[str, Any]) -> Response | None:
    """Returns the response to an exception; the exception handler of DRF."""
    code, reason, detail = explain(error)
    response = Response(problem_members(code, reason, detail), code, content_type=PROBLEM)
    add_headers(response, code)
    return response


def build_response(code: int, reason: str, detail: str) -> JsonResponse:
    """Returns a problem response of a plain Django view."""
    response = JsonResponse(
        problem_members(code, reason, detail), status=code, content_type=PROBLEM
    )
    add_headers(response, code)
    return response
