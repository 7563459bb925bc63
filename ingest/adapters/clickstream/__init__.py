"""AWS Clickstream Analytics: its Web, Android and Swift SDKs, which name an application."""

from ingest.adapters.base import Adapter, Credential, Endpoint, SourceDocs
from ingest.adapters.clickstream import http
from ingest.adapters.clickstream.context import read_context
from ingest.adapters.clickstream.parser import SOURCE, parse

ADAPTER = Adapter(
    name=SOURCE,
    title="AWS Clickstream",
    parse=parse,
    openapi="ingest.adapters.clickstream.openapi",
    endpoints=(
        Endpoint(
            routes=("collect",),
            read_parameters=http.read_parameters,
            max_bytes=http.MAX_BODY_BYTES,
            is_compressed=http.is_compressed,
            decode=http.keep_as_sent,
            parse=parse,
            respond=http.respond,
            operation="collectClicks",
        ),
        Endpoint(
            routes=("ping",),
            methods=("GET",),
            read_parameters=http.read_parameters,
            parse=None,
            respond=http.respond_with_time,
            operation="pingClicks",
        ),
    ),
    credential=Credential.APPLICATION_ID,
    application_parameters=("appId",),
    checks_cookie=True,
    cors=http.CORS,
    device_fields=frozenset({"device_id", "unique_id"}),
    read_context=read_context,
    page_path=("attributes", "_page_url"),
    duration_path=("attributes", "_engagement_time_msec"),
    page_view_types=frozenset({"_page_view", "_screen_view"}),
    error_types=frozenset({"_app_exception", "_clickstream_error"}),
    system_types=frozenset(
        {
            "_first_open", "_session_start", "_app_start", "_app_end", "_app_update", "_os_update",
            "_user_engagement", "_profile_set", "_page_load", "_user_login",
        }
    ),
    docs=SourceDocs(
        addresses="`POST /collect`",
        sender="`appId`, and a cookie where the application has one",
        identity="application, `event_id`",
        winner="the first",
    ),
)  # fmt: skip
