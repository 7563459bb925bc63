"""Sunbird telemetry v3: a batch, an event, or an event a line, sent with a key."""

from django.utils.translation.trans_null import gettext_noop

from ingest.adapters.base import Adapter, Endpoint, SourceDocs, accept_json
from ingest.adapters.telemetry import http
from ingest.adapters.telemetry.context import read_context
from ingest.adapters.telemetry.parser import SOURCE, parse

ADAPTER = Adapter(
    name=SOURCE,
    title=gettext_noop("Telemetry"),
    parse=parse,
    openapi="ingest.adapters.telemetry.openapi",
    endpoints=(
        Endpoint(
            routes=(
                "v1/telemetry",
                "data/v1/telemetry",
                "data/v3/telemetry",
                # as Sunbird's gateway, portal and editors name them in public
                "api/data/v1/telemetry",
                "api/data/v3/telemetry",
                "content/data/v1/telemetry",
                "action/data/v3/telemetry",
            ),
            method_detail="Telemetry comes by POST.",
            check=accept_json,
            parse=parse,
            respond=http.respond,
            refuse=http.refuse,
            overload=http.OVERLOAD,
            operation="sendTelemetry",
        ),
    ),
    device_fields=frozenset({"did", "id"}),
    cors=http.CORS,
    read_context=read_context,
    page_path=("edata", "uri"),
    duration_path=("edata", "duration"),
    duration_unit_ms=1000,
    page_view_types=frozenset({"IMPRESSION"}),
    error_types=frozenset({"ERROR"}),
    system_types=frozenset(
        {"START", "END", "LOG", "HEARTBEAT", "AUDIT", "METRICS", "SUMMARY", "EXDATA"}
    ),
    docs=SourceDocs(
        addresses="`POST /v1/telemetry`",
        sender="a key with `ingest`",
        identity="time, mid, device, session, question",
        winner="the first",
    ),
)
