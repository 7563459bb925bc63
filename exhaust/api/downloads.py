"""The download of a file by its link."""

import re

from django.db import DatabaseError
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.http import require_safe

from exhaust import metrics
from exhaust.api.responses import DOWNLOAD, LOCATION
from exhaust.files import links, storage
from exhaust.models import File
from ingest import audit
from ingest.audit import Actor
from ingest.http import problems
from ingest.http.schema import extend_schema
from ingest.limits import rate_limits, token_bucket


@require_safe
@extend_schema(
    "downloadFile", DOWNLOAD, methods=["GET"], tags=["Datasets"], parameters=[LOCATION], auth=[]
)
def download(request: HttpRequest, token: str) -> HttpResponse | FileResponse:
    """Download a file.

    The link is the permission, until it expires.
    """
    response: HttpResponse | FileResponse
    actor_token = audit.current_actor.set(
        Actor("link", address=audit.truncate_address(token_bucket.get_client_address(request)))
    )
    try:
        with rate_limits.throttle_auth_failures(request, token):
            link = links.find_by_token(token)
        response = _serve_file(link.file, request)
        if request.method != "HEAD" and response.status_code != 416:  # only a transfer counts
            try:
                links.record_download(link)
            except links.LinkUnusable:
                response.close()
                raise
    except (links.LinkUnusable, rate_limits.RateLimited) as error:
        response = HttpResponse(f"{error}\n", "text/plain; charset=utf-8", status=error.status)
    except DatabaseError as error:
        code, _, detail = problems.explain(error)
        response = HttpResponse(f"{detail}\n", "text/plain; charset=utf-8", status=code)
        problems.add_headers(response, code)
    except FileNotFoundError:
        response = HttpResponse("This file was deleted.\n", "text/plain; charset=utf-8", status=410)
    finally:
        audit.current_actor.reset(actor_token)
    response["Cache-Control"] = "no-store"
    response["Referrer-Policy"] = "no-referrer"
    metrics.DOWNLOADS.labels(str(response.status_code)).inc()
    return response


_RANGE_PATTERN = re.compile(r"bytes=([0-9]{1,18})-")


def _serve_file(file: File, request: HttpRequest) -> HttpResponse | FileResponse:
    """Returns the file, the rest of it for a resumed download, or a redirect to the bucket.

    HEAD is not counted and gets no redirect. Other ranges get the whole file, as RFC 9110 allows.
    """
    headers = request.headers
    is_head = request.method == "HEAD"
    if not is_head and (address := links.sign_redirect(file)):
        return HttpResponseRedirect(address)
    tag = f'"{file.sha256}"'
    range_match = _RANGE_PATTERN.fullmatch(headers.get("Range", ""))
    if range_match is None or headers.get("If-Range", tag) != tag:
        start = None
    elif (start := int(range_match[1])) >= file.byte_count:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{file.byte_count}"})
    response: HttpResponse | FileResponse
    if is_head:
        response = HttpResponse(content_type=file.content_type)
    else:
        content = storage.get_storage().open(file.key)
        if start:
            content.seek(start)
        response = FileResponse(content, content_type=file.content_type)
    response["Content-Length"] = file.byte_count - (start or 0)
    response["Content-Disposition"] = storage.content_disposition(file.name)
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = tag
    if start is not None:
        response.status_code = 206
        response["Content-Range"] = f"bytes {start}-{file.byte_count - 1}/{file.byte_count}"
    return response
