"""Every operation at every address: what it is called, takes and answers.

A body that a DRF serializer reads is named by its class, so that it is described where it is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rest_framework.serializers import Serializer

from exhaust.api import destinations, samples, schedules, validation
from exhaust.api import pull as feed
from exhaust.files.formats import FORMATS
from exhaust.openapi.examples import enveloped
from exhaust.openapi.json_schema import Schema, ref, text, whole
from ingest.views import conversations

JSON, NDJSON, PROBLEM = "application/json", "application/x-ndjson", "application/problem+json"
BULK = "application/vnd.elasticsearch+x-ndjson"
DATASETS, PULL, PUSH, SENDING, PROBES = "Datasets", "Pull", "Push", "Sending", "Service"
TAGS = {
    DATASETS: "Asks for files, follows them, asks again by itself.",
    PULL: "Events, sessions and users page by page; Croct's export clients work here.",
    PUSH: "Receivers of sessions and events, as they arrive.",
    SENDING: "The doors, each in its senders' own protocol.",
    PROBES: "For probes, and this page.",
}
# keys of `components.securitySchemes`; several are alternatives
KEY: tuple[str, ...] = ("bearer", "key")
BASIC: tuple[str, ...] = ("application",)
REFUSED = {
    400: "What was sent cannot be read; the sentence names the field and the remedy.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key lacks the scope or the channel.",
    404: "There is nothing by that name; another's is the same as none.",
    409: "Not in its present state.",
    410: "Gone: too old.",
    429: "Too many; come again after `Retry-After` seconds.",
}


@dataclass(frozen=True)
class Operation:
    """One method at one address. `error` is the shape of its refusals, `sent` and `answer` are
    media types and schemas; an example stands in EXAMPLES under the schema's name or `example`."""

    id: str
    summary: str
    tag: str
    method: str
    path: str
    answer: str = ""  # a schema's name, "" for one without a body
    envelope: str = ""  # the operation's name in the envelope
    says: str = ""  # more than the summary
    sent: type[Serializer[Any]] | dict[str, tuple[Schema, str]] | None = None
    query: type[Serializer[Any]] | tuple[Schema, ...] | None = None
    path_says: str = ""
    auth: tuple[str, ...] = KEY
    channel: bool = True  # whether X-Channel-ID chooses
    error: str = "EnvelopeError"
    refused: tuple[int, ...] = ()
    headers: dict[str, Schema] = field(default_factory=dict)
    also: dict[int, Any] = field(default_factory=dict)  # further answers
    media: str = JSON
    links: dict[str, Any] = field(default_factory=dict)


def parameter(name: str, schema: Schema, *, required: bool = False, example: Any = None) -> Schema:
    said = {
        "name": name,
        "in": "query",
        "required": required,
        "description": schema["description"],
        "schema": {key: value for key, value in schema.items() if key != "description"},
    }
    return said if example is None else {**said, "example": example}


# The dataset API ---------------------------------------------------------------------------------

_TAG = "The tag, without the channel."
_REQUEST_ID = parameter(
    "requestId", text("The job's id."), required=True, example="3C6C7C0A5B2E4F1D9A8B7C6D5E4F3A2B"
)
_SCOPE = "Needs the dataset's scope."
_ABOUT = {"tag": "$request.body#/request/tag", "requestId": "$response.body#/result/requestId"}
_JOB_LINKS = {
    name: {"operationId": operation, "parameters": _ABOUT, "description": "The same job."}
    for name, operation in (
        ("read", "readJob"), ("cancel", "cancelJob"), ("retry", "retryJob"),
    )
}  # fmt: skip


def job(verb: str, method: str, summary: str, **more: Any) -> Operation:
    return Operation(
        f"{verb}Job", summary, DATASETS, method, f"/dataset/v1/request/{verb}/{{tag}}", "Job",
        **{"query": (_REQUEST_ID,), "path_says": _TAG, "refused": (404,), "says": _SCOPE, **more},
    )  # fmt: skip


def schedule(verb: str, method: str, summary: str, end: str = "", **more: Any) -> Operation:
    return Operation(
        f"{verb}Schedule", summary, DATASETS, method, f"/dataset/v1/schedule/{{name}}{end}",
        more.pop("answer", "Schedule"), f"schedule.{verb}",
        **{"path_says": "The schedule's name.", "refused": (404,), "says": _SCOPE, **more},
    )  # fmt: skip


def destination(verb: str, method: str, summary: str, end: str = "", **more: Any) -> Operation:
    return Operation(
        more.pop("id", f"{verb}Destination"), summary, PUSH, method, f"/dataset/v1/destination/{{name}}{end}",
        more.pop("answer", "Destination"), f"destination.{verb}",
        **{"path_says": "The destination's name.", "refused": (404,), "says": "Needs `pull`.", **more},
    )  # fmt: skip


DATASET_API = [
    Operation(
        "submitJob", "Ask for a dataset", DATASETS, "post", "/dataset/v1/request/submit", "Job",
        "request.submit", "The same question on one day (UTC) is the same job. " + _SCOPE,
        validation.SubmitBody, links=_JOB_LINKS,
    ),
    Operation(
        "previewJob", "What a submission would give", DATASETS, "post",
        "/dataset/v1/request/preview", "Preview", "request.preview", _SCOPE, validation.SubmitBody,
    ),
    job("read", "get", "One job", envelope="request.info"),
    Operation(
        "listJobs", "A tag's jobs", DATASETS, "get", "/dataset/v1/request/list/{tag}", "JobList",
        "request.list", "Those of datasets whose scope the key has.", query=validation.Paging,
        path_says=_TAG,
    ),
    Operation(
        "searchJobs", "A channel's jobs by filters", DATASETS, "post",
        "/dataset/v1/request/search", "JobList", "request.search",
        "Those of datasets whose scope the key has.", validation.SearchBody,
    ),
    job("cancel", "post", "Stop a request", envelope="request.cancel", refused=(404, 409)),
    job(
        "retry", "post", "Run a request again", envelope="request.retry", refused=(404, 409),
        says="One that FAILED or was CANCELLED; a waiting one waits no more. " + _SCOPE,
    ),
    Operation(
        "revokeLinks", "End a request's links now", DATASETS, "post",
        "/dataset/v1/request/revoke/{tag}", "Revoked", "request.revoke",
        "A link to a bucket cannot be revoked: 409. " + _SCOPE, query=(_REQUEST_ID,),
        path_says=_TAG, refused=(404, 409),
    ),
    Operation(
        "listAuditEvents", "Who did what in the channel", DATASETS, "get", "/dataset/v1/audit",
        "AuditPage", "audit.list", "Needs `audit`. CSV for `Accept: text/csv` too.",
        query=(
            parameter("from", text("The first day, UTC.", format="date"), example="2022-04-01"),
            parameter("to", text("The last day, UTC.", format="date"), example="2022-04-30"),
            parameter("action", text("One kind of act."), example="job.submitted"),
            parameter("limit", whole("How many.", minimum=1, maximum=1000), example=100),
            parameter("cursor", text("The page before's nextCursor; with CSV its Link header.")),
            parameter("format", text("json or csv.", enum=["json", "csv"]), example="json"),
        ),
        also={200: {"description": "As asked.", "content": {
            JSON: {"schema": ref("AuditPageAnswer"),
                   "example": enveloped("audit.list", "AuditPage")},
            "text/csv": {"schema": text("A header, then an entry a line."),
                         "example": "ID,Time,Action,Outcome,Actor,Key,Channel,…"},
        }}},
    ),
    Operation(
        "listSchedules", "Recurring requests", DATASETS, "get", "/dataset/v1/schedule",
        "ScheduleList", "schedule.list", "Those of datasets whose scope the key has.",
        query=validation.Paging,
    ),
    schedule("save", "put", "Create or replace a recurring request", sent=schedules.ScheduleBody,
             refused=()),
    schedule("read", "get", "One recurring request"),
    schedule("delete", "delete", "Delete a recurring request; its jobs stay", answer="Deleted"),
    schedule("pause", "post", "No request while it is paused", "/pause"),
    schedule("resume", "post", "Go on", "/resume", refused=(404, 409)),
    Operation(
        "downloadFile", "A file, by its link", DATASETS, "get", "/dataset/v1/download/{token}",
        says="The link is the right; it ends when it says.", path_says="As the link has it.",
        auth=(), channel=False,
        also={
            200: {
                "description": "The file.",
                "content": {
                    kind: {"schema": {"description": "The file's bytes."}}
                    for kind in sorted({form.content_type for form in FORMATS.values()} | {JSON})
                },
            },
            302: {
                "description": "The file lies in the bucket.",
                "headers": {
                    "Location": {"description": "A short link.", "schema": {"type": "string"}}
                },
            },
            206: {
                "description": "The rest of it, for `Range: bytes=N-`.",
                "content": {
                    kind: {"schema": {"description": "The file's bytes from N on."}}
                    for kind in sorted({form.content_type for form in FORMATS.values()} | {JSON})
                },
            },
            416: {"description": "There is nothing behind that byte."},
            **{
                status: {
                    "description": said,
                    "content": {"text/plain": {"schema": text("A sentence.")}},
                }
                for status, said in (
                    (403, "The link was altered or revoked."), (404, "There is no such file."),
                    (410, "The link has ended, or the file was deleted."),
                    (429, "Too many altered links from this address."),
                )
            },
        },
    ),
    Operation(
        "listDestinations", "The channel's destinations", PUSH, "get", "/dataset/v1/destination", "DestinationList",
        "destination.list", "Needs `pull`.",
    ),
    destination("save", "put", "Create or replace a destination", sent=destinations.DestinationBody, refused=()),
    destination("read", "get", "One destination"),
    destination("delete", "delete", "Delete a destination", answer="Deleted"),
    destination("pause", "post", "Send nothing while it is paused", "/pause"),
    destination("resume", "post", "Go on where it stood", "/resume"),
    destination("rewind", "post", "Go on from elsewhere", "/rewind", sent=destinations.RewindBody),
    destination("test", "post", "Send one made-up document now", "/test", answer="Delivery"),
    destination("requeue", "post", "Send all dead letters once more", "/requeue", answer="Requeued",
         id="requeueDeadLetters"),
    destination("deadletters", "get", "What the receiver refused", "/deadletters",
         answer="DeadLetterList", id="listDeadLetters", query=validation.Paging),
]  # fmt: skip

# Pull --------------------------------------------------------------------------------------------

_FEED_HEADERS = {
    "X-Feed-End": text("true when no more is there now.", enum=["true", "false"]),
    "X-Feed-Lag": text("How many seconds what arrived may be behind."),
}


def pages(id: str, path: str, name: str, what: str, scope: str) -> list[Operation]:
    """A page and one of them, under the names of Croct's clients."""
    answer = "EventAnswer" if name == "Event" else name
    return [
        Operation(
            f"{id}s", f"{what}, page by page", PULL, "get", path, f"{name}Page", says=scope,
            query=feed.PageQuery, error="Problem", refused=(410,), headers=_FEED_HEADERS,
            links={
                "next": {
                    "operationId": f"{id}s",
                    "parameters": {"cursor": "$response.body#/nextCursor"},
                    "description": "The next page: until `items` is empty.",
                }
            },
        ),
        Operation(
            f"{id}ById", f"One of the {what.lower()}", PULL, "get", path + "/{identifier}", answer,
            says=scope, path_says="Its id.", error="Problem", refused=(404,),
        ),
    ]  # fmt: skip


PULLING = [
    *pages("exportEvent", "/export/events", "Event", "Events", "Needs `pull`."),
    *pages("exportSession", "/export/session", "Session", "Sessions", "Needs `pull`."),
    *pages("exportUser", "/export/user", "User", "Users", "Needs `pull` and `export:private`."),
    Operation(
        "exportSample", "The last sessions, as they are pushed", PUSH, "get", "/export/sample",
        "SessionLines", says="Needs `pull`.", query=samples.SampleQuery, error="Problem", media=NDJSON,
    ),
    Operation(
        "exportMapping", "Elasticsearch's mapping of sessions", PUSH, "get", "/export/mapping",
        "Mapping", says="Needs `pull`.", error="Problem",
    ),
]  # fmt: skip

# Doors -------------------------------------------------------------------------------------------

_LINES = text("A JSON object a line; gzip where Content-Encoding says so.")
_APP = parameter("appId", text("The application's id."), required=True, example="my-app")
_CLIENT = parameter("client_id", text("The application's id; also as clientId."), example="my-app")
_TELEMETRY: Schema = {
    "description": "A batch, an array of events, or one event.",
    "anyOf": [
        ref("TelemetryBatch"),
        {
            "type": "array",
            "description": "The events.",
            "items": ref("TelemetryEvent"),
        },
        ref("TelemetryEvent"),
    ],
}
_HIT = (
    _CLIENT,
    parameter(
        "action",
        text("ui for an identity, ev for a feature.", enum=["ui", "ev"]),
        required=True,
        example="ev",
    ),
    parameter(
        "identity",
        text("Who, as JSON: `email` or `id`."),
        required=True,
        example='{"email": "asha@people.example"}',
    ),
    parameter("event", text("Of a feature, as JSON: its `name`."), example='{"name": "report"}'),
    parameter("event_id", text("Its id; the last one of an id wins."), example="e-1"),
    parameter("ts", text("When; now where it is left out."), example="2026-01-31T10:00:00"),
    parameter("visit_id", text("The visit."), example="v-1"),
)


def either(
    description: str, name: str, example: str, media: str = JSON
) -> dict[str, tuple[Schema, str]]:
    """A list of them, or one."""
    one = ref(name)
    several: Schema = {"type": "array", "description": description, "items": one}
    return {media: ({"description": f"{description} Or one.", "anyOf": [several, one]}, example)}


def desk(method: str, path: str, id: str, *, bulk: bool) -> Operation:
    lines: dict[str, tuple[Schema, str]] = (
        {
            kind: (text("An action line, then a session, in turn."), "BulkLines")
            for kind in (NDJSON, BULK)
        }
        if bulk
        else {NDJSON: (_LINES, "DeskLines"), JSON: (ref("DeskSession"), "DeskSession")}
    )
    return Operation(
        id, "Sessions by Elasticsearch's bulk" if bulk else "Sessions of Dynatrace, one a line",
        SENDING, method, path, "BulkAnswer" if bulk else "DeskAnswer", sent=lines, auth=BASIC,
        path_says="The index where a line names none; it is echoed.",
        channel=False, error="BulkError" if bulk else "Problem",
    )  # fmt: skip


DOORS = [
    Operation(
        "sendTelemetry", "Sunbird telemetry", SENDING, "post", "/v1/telemetry", "TelemetryAnswer",
        says="Needs `ingest`. What cannot be read is kept aside; the rest is stored.",
        sent={JSON: (_TELEMETRY, "TelemetryBatch"), NDJSON: (_LINES, "TelemetryLines")},
        error="TelemetryError",
    ),
    Operation(
        "sendParticipants", "Who they are, and what they consented to", SENDING, "post",
        "/v1/participants", "ParticipantsAnswer", says="Needs `ingest`.",
        sent=either("Participants.", "Participant", "Participants"), error="Problem",
    ),
    Operation(
        "eraseParticipant", "Erase a person", SENDING, "delete", "/v1/participants/{identifier}",
        "ErasureCertificate", says="Needs `erase`. 202 while there is more to do: ask again.",
        path_says="The device id.", error="Problem",
        also={202: {"description": "There is more to do.",
                    "content": {JSON: {"schema": ref("ErasureCertificate")}}}},
    ),
    Operation(
        "readConversation", "A bot's name", SENDING, "get", "/v1/conversations/{identifier}",
        "Conversation", says="Needs `ingest`.", path_says="The bot's id.", error="Problem",
        refused=(404,),
    ),
    Operation(
        "nameConversation", "Name a bot", SENDING, "put", "/v1/conversations/{identifier}",
        "Conversation", says="Needs `ingest`.", sent=conversations.ConversationNameSerializer,
        path_says="The bot's id.", error="Problem",
    ),
    Operation(
        "collectClicks", "AWS Clickstream events", SENDING, "post", "/collect",
        says="200 without a body says that it is kept; also gzip, or base64 of gzip.",
        sent=either("Events.", "ClickstreamEvent", "Clicks"),
        query=(
            _APP,
            parameter("hashCode", text("First 8 hex digits of the body's SHA-256."),
                      example="3f0a9c1d"),
            parameter("upload_timestamp", whole("The sender's clock, in milliseconds."),
                      example=1648785600123),
        ),
        auth=(), channel=False, error="Problem", media="text/plain",
    ),
    Operation(
        "pingClicks", "Our clock, for AWS Clickstream's SDKs", SENDING, "get", "/ping", "Pong",
        query=(_APP,), auth=(), channel=False, error="Problem",
    ),
    Operation(
        "sendHits", "Skalin's identities and features", SENDING, "post", "/hit/bulk",
        "SkalinAnswer", sent={JSON: (ref("SkalinBulk"), "SkalinBulk")}, query=(_CLIENT,), auth=(),
        channel=False, error="SkalinError",
    ),
    Operation(
        "sendHit", "One of Skalin's identities or features, in the query", SENDING, "get", "/hit",
        "SkalinAnswer", query=_HIT, auth=(), channel=False, error="SkalinError",
    ),
    desk("put", "/export/events", "sendSessions", bulk=False),
    desk("post", "/_bulk", "sendBulk", bulk=True),
    desk("post", "/{index}/_bulk", "sendIndexBulk", bulk=True),
]  # fmt: skip

SERVICE = [
    Operation(
        "docs", "This description, as a page", PROBES, "get", "/docs/", "Page", auth=(),
        channel=False, error="", media="text/html",
    ),
    *(
        Operation(
            f"openapi{kind.title()}", f"This description, as {kind.upper()}", PROBES, "get",
            f"/docs/openapi.{kind}", "Document", auth=(), channel=False, error="",
            media=f"application/{kind}",
        )
        for kind in ("json", "yaml")
    ),
    Operation(
        "alive", "Whether the process answers", PROBES, "get", "/healthz", "Alive", auth=(),
        channel=False, error="",
        also={400: {"description": "The Host header names nobody here.",
                    "content": {"text/html": {"schema": text("A sentence.")}}}},
    ),
    Operation(
        "ready", "Whether it can work", PROBES, "get", "/readyz", "Ready", auth=(), channel=False,
        error="", also={503: {"description": "The database does not answer.",
                              "content": {JSON: {"schema": ref("Ready")}}}},
    ),
    Operation(
        "metrics", "For Prometheus", PROBES, "get", "/metrics", "Metrics", auth=("metrics",),
        channel=False, error="", media="text/plain", says="404 where no EXHAUST_METRICS_TOKEN is set.",
        also={401: {"description": "Not EXHAUST_METRICS_TOKEN.",
                    "content": {"text/plain": {"schema": text("A sentence.")}}},
              404: {"description": "No EXHAUST_METRICS_TOKEN is set.",
                    "content": {PROBLEM: {"schema": ref("Problem")}}}},
    ),
]  # fmt: skip

# (method, address) of what is another operation under another name
ALIASES = {
    ("post", "/data/v1/telemetry"): "sendTelemetry",
    ("post", "/data/v3/telemetry"): "sendTelemetry",
    ("post", "/hit"): "sendHit",
    ("post", "/export/events"): "sendSessions",
    ("put", "/_bulk"): "sendBulk",
    ("put", "/{index}/_bulk"): "sendIndexBulk",
    ("post", "/dataset/v1/request/submi"): "submitJob",
    ("get", "/export/sessions"): "exportSessions",
    ("get", "/export/sessions/{identifier}"): "exportSessionById",
    ("get", "/export/users"): "exportUsers",
    ("get", "/export/users/{identifier}"): "exportUserById",
}


def operations() -> Iterator[Operation]:
    told = [*DATASET_API, *PULLING, *DOORS, *SERVICE]
    yield from told
    named = {operation.id: operation for operation in told}
    for (method, path), name in ALIASES.items():
        same = named[name]
        words = path.replace("{identifier}", "one").replace("{index}", "index").split("/")
        id = (
            name
            + "By"
            + method.title()
            + "".join(word.strip("_").title() for word in words if word)
        )
        yield replace(
            same, id=id, method=method, path=path, summary=f"As {name}", links={},
            says=f"The same as `{name}`, {same.summary.lower()}.",
        )  # fmt: skip
