"""A body that is kept in memory, compressed too, and sent again only if it changed."""

import gzip
import hashlib
from typing import NamedTuple

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import get_conditional_response, patch_vary_headers


class KeptBody(NamedTuple):
    plain: bytes
    compressed: bytes
    etag: str  # weak, for both


def keep_body(plain: bytes) -> KeptBody:
    etag = hashlib.sha256(plain).hexdigest()[:32]
    return KeptBody(plain, gzip.compress(plain, mtime=0), f'W/"{etag}"')


def respond(request: HttpRequest, body: KeptBody, content_type: str) -> HttpResponseBase:
    """Returns the body as the caller accepts it; 304 without it for its `If-None-Match`."""
    is_compressed = "gzip" in request.headers.get("Accept-Encoding", "")
    response = HttpResponse(body.compressed if is_compressed else body.plain, content_type)
    if is_compressed:
        response["Content-Encoding"] = "gzip"
    response["ETag"] = body.etag
    patch_vary_headers(response, ["Accept-Encoding"])
    return get_conditional_response(request, body.etag, response=response) or response
