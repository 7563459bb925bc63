"""Skalin: identities and features, up to a hundred of each at once, or one hit in a query."""

from ingest.adapters.base import Adapter, AddressLimit, Cors, Credential, Endpoint, SourceDocs
from ingest.adapters.skalin import http, query
from ingest.adapters.skalin.context import read_context
from ingest.adapters.skalin.parser import SOURCE, parse

ADAPTER = Adapter(
    name=SOURCE,
    title="Skalin",
    parse=parse,
    openapi="ingest.adapters.skalin.openapi",
    endpoints=(
        Endpoint(
            routes=("hit",),
            methods=("GET", "POST"),
            read_parameters=query.parse_query,
            reads_body=http.has_no_body,
            decode=http.decode_hit,
            parse=parse,
            respond=http.respond,
            refuse=http.refuse,
            overload=http.OVERLOAD,
            operation="sendHit",
        ),
        Endpoint(
            routes=("hit/bulk",),
            methods=("GET", "POST"),
            documented_methods=("POST",),
            read_parameters=http.read_bulk_parameters,
            max_bytes=http.MAX_BODY_BYTES,
            reads_body=http.has_bulk_body,
            decode=http.decode_bulk,
            parse=parse,
            respond=http.respond,
            refuse=http.refuse,
            overload=http.OVERLOAD,
            operation="sendHits",
        ),
    ),
    credential=Credential.APPLICATION_ID,
    application_parameters=("client_id", "clientId"),
    cors=Cors("GET, POST, OPTIONS"),
    address_limit=AddressLimit(calls_per_second=100, burst=500),
    device_fields=frozenset({"id", "email"}),
    read_context=read_context,
    page_path=("url",),
    page_view_types=frozenset({"view"}),
    system_types=frozenset({"identity"}),
    docs=SourceDocs(
        addresses="`POST /hit/bulk`, `GET`/`POST /hit`",
        sender="`client_id`",
        identity="application, list, `eventId`",
        winner="the last",
    ),
)
