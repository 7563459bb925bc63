"""User sessions as Dynatrace exports them, as lines of documents or Elasticsearch bulks."""

from django.utils.translation.trans_null import gettext_noop

from ingest.adapters.base import (
    COMMON_HEADERS,
    Adapter,
    Cors,
    Credential,
    Endpoint,
    SourceDocs,
    accept_json,
)
from ingest.adapters.desk import http
from ingest.adapters.desk.context import read_context
from ingest.adapters.desk.parser import SOURCE, parse, parse_bulk

ADAPTER = Adapter(
    name=SOURCE,
    title=gettext_noop("User sessions (Dynatrace, DESK)"),
    parse=parse,
    openapi="ingest.adapters.desk.openapi",
    endpoints=(
        Endpoint(
            routes=("export/events",),
            methods=("PUT", "POST"),
            is_shared=True,
            check=accept_json,
            parse=parse,
            respond=http.respond,
            refuse=http.refuse,
            operation="sendSessions",
        ),
        Endpoint(
            routes=("_bulk", "<str:index>/_bulk"),
            methods=("POST", "PUT"),
            method_detail="Bulks come by POST or PUT.",
            check=http.check_bulk,
            parse=parse_bulk,
            respond=http.respond_bulk,
            refuse=http.refuse_bulk,
            overload=http.BULK_OVERLOAD,
            operation="sendBulk",
        ),
        Endpoint(  # where Elasticsearch's clients look for Elasticsearch
            routes=("",),
            methods=("GET", "HEAD"),
            documented_methods=("GET",),
            is_shared=True,
            accept="json",
            parse=None,
            respond=http.respond_with_product,
            refuse=http.refuse_bulk,
            overload=http.BULK_OVERLOAD,
            operation="getProduct",
        ),
    ),
    credential=Credential.PASSWORD,
    device_fields=frozenset({"internalUserId", "visitorId", "userId"}),
    cors=Cors("PUT, POST, OPTIONS", f"{COMMON_HEADERS}, X-Elastic-Client-Meta"),
    read_context=read_context,
    page_view_types=frozenset({"userAction"}),
    error_types=frozenset({"error", "crash"}),
    has_client_sessions=True,
    docs=SourceDocs(
        addresses="`PUT`/`POST /export/events`, `/_bulk`",
        sender="HTTP Basic of the application",
        identity="start, tenant, session",
        winner="the last",
    ),
)
