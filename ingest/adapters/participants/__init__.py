"""Participants: the profiles of persons, with their consent, sent with a key."""

from django.utils.translation.trans_null import gettext_noop

from ingest.adapters.base import Adapter, Cors, Endpoint, SourceDocs, accept_json
from ingest.adapters.participants import http
from ingest.adapters.participants.parser import SOURCE, parse

ADAPTER = Adapter(
    name=SOURCE,
    title=gettext_noop("Participants"),
    parse=parse,
    openapi="ingest.adapters.participants.openapi",
    endpoints=(
        Endpoint(
            routes=("v1/participants",),
            method_detail="Participants come by POST.",
            check=accept_json,
            parse=parse,
            respond=http.respond,
            operation="sendParticipants",
        ),
    ),
    device_fields=frozenset({"deviceId"}),
    cors=Cors("POST, OPTIONS"),
    docs=SourceDocs(
        addresses="`POST /v1/participants`",
        sender="a key with `ingest`",
        identity="`deviceId`",
        winner="the newest consent",
    ),
)
