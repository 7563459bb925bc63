"""The download of a file, by its link or by a signed-in user."""

import re
from collections.abc import Callable, Iterator
from typing import IO

from django.db import DatabaseError
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_safe

from exhaust import metrics
from exhaust.api.responses import DOWNLOAD, LOCATION
from exhaust.files import links, storage
from exhaust.jobs import withdrawal
from exhaust.models import File
from ingest import audit
from ingest.audit import Actor
from ingest.http import pages, problems
from ingest.http.schema import extend_schema
from ingest.limits import admission, rate_limits, token_bucket


class ChannelBusy(Exception):
    """The channel of the file has as many downloads in progress as it may."""


@require_safe
@extend_schema(
    "downloadFile",
    DOWNLOAD,
    methods=["GET"],
    tags=["Request datasets"],
    parameters=[LOCATION],
    auth=[],
)
def download(request: HttpRequest, token: str, name: str = "") -> HttpResponse | FileResponse:
    """Download a file.

    The link is the permission, until it expires. The name is for tools that read it, and may be
    left out.
    """
    address = audit.truncate_address(token_bucket.get_client_address(request))
    with audit.act_as(Actor("link", address=address)):
        return _respond(request, lambda: _open_link(request, token, name))


def send_to_user(file: File, request: HttpRequest) -> HttpResponse | FileResponse:
    """Sends a file to the signed-in user, whom the audit log names. Makes no link.

    A bucket's file is a redirect to an address that works for `REDIRECT_SECONDS`.
    """
    return _respond(request, lambda: _send(file, request, lambda: links.record_user_download(file)))


def _open_link(request: HttpRequest, token: str, name: str) -> HttpResponse | FileResponse:
    with rate_limits.throttle_auth_failures(request, token):
        link = links.find_by_token(token, name)
    return _send(link.file, request, lambda: links.record_download(link))


def _send(
    file: File, request: HttpRequest, record: Callable[[], None]
) -> HttpResponse | FileResponse:
    if withdrawal.revoke_if_marked(file.job):
        raise links.LinkUnusable(410, links.WITHDRAWN, links.WITHDRAWN_PAGE_TEXT)
    is_head = request.method == "HEAD"
    if not is_head and not admission.claim_stream(request.META, file.job.channel_id):
        raise ChannelBusy
    response = _serve_file(file, request)
    if not is_head and response.status_code != 416:  # only a transfer counts
        try:
            record()
        except links.LinkUnusable:
            response.close()
            raise
    return response


def _respond(
    request: HttpRequest, send: Callable[[], HttpResponse | FileResponse]
) -> HttpResponse | FileResponse:
    response: HttpResponse | FileResponse
    try:
        response = send()
    except links.LinkUnusable as error:
        response = _explain(request, error.status, str(error), _ENDED, error.page_text)
    except rate_limits.RateLimited as error:
        response = _explain(request, error.status, str(error))
    except DatabaseError as error:
        code, _, detail = problems.explain(error)
        response = _explain(request, code, detail)
    except ChannelBusy:
        sentence = "Too many downloads of this channel are in progress; open the link again after"
        response = _explain(request, 503, f"{sentence} Retry-After seconds.")
    except FileNotFoundError:
        response = _explain(request, 410, "This file was deleted.", _ENDED, links.FILE_DELETED)
    except storage.StorageError:
        sentence = "The storage does not answer; open the link again after Retry-After seconds."
        response = _explain(request, 503, sentence)
    response["Referrer-Policy"] = "no-referrer"
    metrics.DOWNLOADS.labels(str(response.status_code)).inc()
    return response


_ENDED = gettext_noop("This link does not work")
_WAIT = gettext_noop("The file cannot be sent right now. Wait a minute, then open the link again.")


def _explain(
    request: HttpRequest,
    status: int,
    sentence: str,
    title: str = pages.TRY_AGAIN,
    page_text: str = _WAIT,
) -> HttpResponse:
    """Returns the sentence. A browser gets a page instead, which says whom to ask."""
    if pages.wants_page(request):
        response = pages.build_page(request, status, title, page_text)
    else:
        response = HttpResponse(f"{sentence}\n", "text/plain; charset=utf-8", status=status)
    if status == 503:
        problems.add_headers(response, status)
    return response


_FOLLOW = "The file is at the address in Location; let your client follow it, as curl -L does.\n"
_RANGE_PATTERN = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def _parse_range(header: str, byte_count: int) -> range | None:
    """Returns the offsets that are asked for, empty for none that exist; None for the whole file.

    Several ranges get the whole file, as RFC 9110 allows.
    """
    match = _RANGE_PATTERN.fullmatch(header)
    first, last = (match[1], match[2]) if match else ("", "")
    if first:
        if last and int(last) < int(first):
            return None  # not a range
        return range(int(first), min(int(last) + 1 if last else byte_count, byte_count))
    return range(max(byte_count - int(last), 0), byte_count) if last else None


def _serve_file(file: File, request: HttpRequest) -> HttpResponse | FileResponse:
    """Returns the file, the range of it that is asked for, or a redirect to the bucket.

    HEAD is not counted, and describes the file without a redirect: S3 signs for GET only.
    """
    headers = request.headers
    is_head = request.method == "HEAD"
    address = links.sign_redirect(file)
    if address and not is_head:
        return HttpResponseRedirect(
            address, content=_FOLLOW, content_type="text/plain; charset=utf-8"
        )
    tag = f'"{file.sha256}"'
    asked = None
    if not is_head and headers.get("If-Range", tag) == tag:
        asked = _parse_range(headers.get("Range", ""), file.byte_count)
    if asked is not None and not asked:
        return HttpResponse(status=416, headers={"Content-Range": f"bytes */{file.byte_count}"})
    sent = asked or range(file.byte_count)
    response: HttpResponse | FileResponse
    if is_head:
        response = HttpResponse(content_type=file.content_type)
    else:
        content = storage.get_storage().open(file.key)
        if sent.start:
            content.seek(sent.start)
        response = FileResponse(content, content_type=file.content_type)
        if sent.stop < file.byte_count:
            response.streaming_content = _read_bytes(content, len(sent))
    response["Content-Length"] = len(sent)
    response["Content-Disposition"] = storage.content_disposition(file.name)
    response["Accept-Ranges"] = "bytes"
    if not address:  # the bucket has its own for the same bytes, and readers compare the two
        response["ETag"] = tag
    if asked is not None:
        response.status_code = 206
        response["Content-Range"] = f"bytes {sent.start}-{sent.stop - 1}/{file.byte_count}"
    return response


def _read_bytes(content: IO[bytes], byte_count: int) -> Iterator[bytes]:
    while byte_count and (block := content.read(min(byte_count, 64 * 1024))):
        byte_count -= len(block)
        yield block
