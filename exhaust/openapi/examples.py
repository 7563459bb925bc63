"""A made-up example for each body, sent or answered. The suite checks that they fit."""

from typing import Any

_T = 1648785600123
_UUID = "017fe309-8a7b-5d2f-8c4e-0123456789ab"
_CONFIG = {
    "type": "uci-response-exhaust",
    "conversationId": "bot-1",
    "startDate": "2022-04-01",
    "endDate": "2022-04-30",
}
_JOB = {
    "requestId": "3C6C7C0A5B2E4F1D9A8B7C6D5E4F3A2B",
    "tag": "april:ORG_001",
    "dataset": "uci-response-exhaust",
    "requestedBy": "asha",
    "requestedChannel": "ORG_001",
    "status": "SUCCESS",
    "lastUpdated": _T,
    "datasetConfig": _CONFIG,
    "attempts": 0,
    "jobStats": {"dtJobSubmitted": _T, "dtJobCompleted": _T + 900, "executionTime": 412},
    "downloadUrls": ["https://exhaust.example/dataset/v1/download/eyJmIjoxfQ:1nZ"],
    "expiresAt": _T + 86_400_000,
    "statusMessage": "",
    "priority": "interactive",
    "files": [
        {
            "name": "bot-1_response_20220501.csv",
            "format": "csv",
            "rows": 20000,
            "bytes": 10737624,
            "sha256": "341231ce828fe050a3f3c4a1d6f6b7c8341231ce828fe050a3f3c4a1d6f6b7c8",
            "deleted": False,
        }
    ],
    "progress": {
        "phase": "ended",
        "queuePosition": None,
        "startedAt": _T + 488,
        "rows": 20000,
        "estimatedRows": 20000,
        "percent": 100,
    },
}
_METADATA = {
    f"{level}{what}": "ORG_001"
    for level in ("organization", "workspace", "application")
    for what in ("Name", "Slug")
}
_ASSESS = {
    "eid": "ASSESS",
    "ets": _T,
    "ver": "3.0",
    "mid": "ASSESS:1",
    "actor": {"id": "d-1", "type": "User"},
    "context": {
        "channel": "ORG_001",
        "did": "d-1",
        "sid": "s-1",
        "cdata": [{"type": "Conversation", "id": "bot-1"}],
    },
    "edata": {
        "item": {"id": "q-1", "type": "ftp", "title": "How was lunch?", "params": []},
        "resvalues": [{"ans1": "good"}],
        "score": 1,
        "duration": 12,
    },
}
_EVENT = {
    "id": _UUID,
    "sessionId": "s-1",
    "userId": "d-1",
    "timestamp": _T,
    "type": "ASSESS",
    "dialect": "telemetry",
    "deviceId": "d-1",
    "receivedTime": _T + 100,
    "position": "742.1",
    "context": None,
    "payload": {"@type": "ASSESS", **_ASSESS},
}
_SESSION = {
    "sessionId": _UUID,
    "userId": "d-1",
    "externalUserId": None,
    "parentId": None,
    "window": {"start": _T, "end": _T + 60_000},
    "closeTime": _T + 1_860_000,
    "closed": True,
    "landingPageUrl": None,
    "deviceId": "d-1",
    "senderSessionId": "s-1",
    "statistics": {"pageViews": 0, "events": 3, "answers": 2},
    "eventTypes": {"ASSESS": 2, "END": 1},
    "version": 1,
    "lastModifiedTime": _T + 1_860_000,
    "position": "750.1",
}
_USER = {
    "userId": "u-1",
    "externalUserId": "u-1",
    "anonymous": False,
    "deviceId": None,
    "email": "asha@people.example",
    "customAttributes": {"email": "asha@people.example"},
    "firstSeenTime": _T,
    "lastSeenTime": _T + 60_000,
    "lastModifiedTime": _T + 60_000,
    "version": 1,
    "position": "751.1",
}
_COUNTS = {"stored": 1, "duplicate": 0, "rejected": 0, "rejections": []}
_CURSOR = "W1s3NDIsMV0sIjRmNTNjZGExOGMyYmFhMGMiXQ:Zk3X"
_DELIVERY = {
    "kind": "feed",
    "status": "delivered",
    "documents": 50,
    "bytes": 41000,
    "attempts": 1,
    "answer": 200,
    "error": "",
    "startedAt": _T,
    "endedAt": _T + 120,
}
_DESTINATION_FIELDS = {
    "url": "https://warehouse.example/sessions",
    "user": "exhaust",
    "password": "…",
}
_DESTINATION = {
    "name": "warehouse",
    "requestedChannel": "ORG_001",
    "kind": "webhook",
    "resource": "sessions",
    "types": [],
    "url": "https://warehouse.example/sessions",
    "method": "PUT",
    "contentType": "application/x-ndjson",
    "user": "exhaust",
    "index": "",
    "docType": "",
    "hasPassword": True,
    "signed": False,
    "state": "working",
    "reason": "",
    "failures": 0,
    "nextAttempt": None,
    "cursor": _CURSOR,
    "lag": {"documents": 0, "seconds": 0.0},
    "deadLetters": 0,
    "deliveries": [_DELIVERY],
}
_SCHEDULE_WORDS = {
    "cron": "0 6 * * *",
    "timezone": "Asia/Kolkata",
    "dataset": "uci-response-exhaust",
    "conversationId": "bot-1",
    "window": "yesterday",
    "tag": "daily-{start}",
}
_SCHEDULE = {
    "name": "every-morning",
    "requestedChannel": "ORG_001",
    **_SCHEDULE_WORDS,
    "outputFormat": "csv",
    "requestedBy": "asha",
    "callbackUrl": "",
    "encryption": "",
    "paused": False,
    "nextRun": 1648773000000,
    "nextWindow": {"startDate": "2022-03-31", "endDate": "2022-03-31"},
    "nextTag": "daily-2022-03-31",
    "lastError": "",
    "jobs": [{"requestId": _JOB["requestId"], "tag": "daily-2022-03-30", "status": "SUCCESS"}],
}
_BULK_SESSION = '{"userSessionId": "1394_1008", "startTime": 1648785600123, "userActions": []}\n'

EXAMPLES: dict[str, Any] = {
    # what is sent
    "SubmitRequest": {
        "request": {
            "tag": "april",
            "dataset": "uci-response-exhaust",
            "requestedBy": "asha",
            "datasetConfig": _CONFIG,
        }
    },
    "SearchJobsRequest": {
        "request": {"filters": {"status": ["SUCCESS", "FAILED"], "tagPrefix": "april"}, "limit": 50}
    },
    "SaveScheduleRequest": {"request": _SCHEDULE_WORDS},
    "SaveDestinationRequest": {"request": _DESTINATION_FIELDS},
    "RewindRequest": {"request": {"time": 0}},
    "ConversationNameRequest": {"name": "Lunch bot"},
    "TelemetryBatch": {"id": "ekstep.telemetry", "ver": "3.0", "events": [_ASSESS]},
    "TelemetryLines": '{"eid": "START", "ets": 1648785600123, "context": {}, "edata": {}}\n',
    "Participants": [
        {
            "deviceId": "d-1",
            "userName": "Asha",
            "phone": "+910000000001",
            "consent": True,
            "consentAt": "2022-04-01T00:00:00Z",
        }
    ],
    "Clicks": [
        {
            "event_type": "answer",
            "event_id": "e-1",
            "timestamp": _T,
            "device_id": "d-2",
            "attributes": {
                "conversation_id": "bot-1",
                "question_id": "q-1",
                "question_title": "How was lunch?",
                "response": "good",
            },
        }
    ],
    "SkalinBulk": {
        "identities": [{"identity": {"email": "asha@people.example"}, "customerId": "c-1"}],
        "features": [{"identity": {"email": "asha@people.example"}, "name": "report"}],
    },
    "DeskSession": {"userSessionId": "1394_1008", "startTime": _T, "userActions": []},
    "DeskLines": _BULK_SESSION,
    "BulkLines": '{"index": {"_index": "sessions"}}\n' + _BULK_SESSION,
    # what is answered
    "Job": _JOB,
    "JobList": {"count": 1, "jobs": [_JOB], "nextCursor": None},
    "Preview": {
        "dataset": "uci-response-exhaust",
        "requestedChannel": "ORG_001",
        "datasetConfig": _CONFIG,
        "estimate": {"rows": 20000, "bytes": 10737624, "counted": True},
        "columns": [
            {
                "header": "Message ID",
                "kind": "text",
                "description": "The answer's id.",
                "personal": False,
            }
        ],
        "rows": [{"Message ID": "ASSESS:1"}],
        "message": "",
    },
    "Schedule": _SCHEDULE,
    "ScheduleList": {"count": 1, "schedules": [_SCHEDULE], "nextCursor": None},
    "Delivery": {**_DELIVERY, "kind": "test", "documents": 1, "bytes": 240},
    "Destination": _DESTINATION,
    "DestinationList": {"count": 1, "destinations": [_DESTINATION]},
    "DeadLetterList": {
        "count": 1,
        "deadLetters": [
            {
                "documentId": f"ORG_001-{_UUID}",
                "position": "750.1",
                "answer": 400,
                "reason": "mapper_parsing_exception",
                "time": _T,
                "requeued": False,
            }
        ],
        "nextCursor": None,
    },
    "Deleted": {"name": "every-morning"},
    "Revoked": {"requestId": _JOB["requestId"], "tag": "april:ORG_001", "revoked": 1},
    "AuditPage": {
        "count": 1,
        "entries": [
            {
                "id": 7,
                "time": _T,
                "action": "job.submitted",
                "outcome": "done",
                "actor": "our warehouse",
                "key": "Ab3dE5fG",
                "channel": "ORG_001",
                "subject": _JOB["requestId"],
                "address": "203.0.113.0/24",
                "details": {"dataset": "uci-response-exhaust"},
            }
        ],
        "nextCursor": None,
    },
    "Requeued": {"count": 3},
    "EventPage": {"items": [_EVENT], "metadata": _METADATA, "nextCursor": _CURSOR},
    "EventAnswer": {"metadata": _METADATA, "event": _EVENT},
    "SessionPage": {"items": [_SESSION], "nextCursor": _CURSOR},
    "Session": _SESSION,
    "UserPage": {"items": [_USER], "nextCursor": _CURSOR},
    "User": _USER,
    "Mapping": {"mappings": {"properties": {"startTime": {"type": "date"}}}},
    "TelemetryAnswer": {
        "id": "api.telemetry",
        "ver": "1.0",
        "ets": _T,
        "params": {"resmsgid": _UUID, "status": "successful"},
        "responseCode": "SUCCESS",
        "result": _COUNTS,
    },
    "ParticipantsAnswer": {"accepted": 1, "rejected": 0, "rejections": []},
    "Conversation": {"id": "bot-1", "name": "Lunch bot"},
    "Pong": {"timestamp": 1648785600.123},
    "SkalinAnswer": {"status": "success", **_COUNTS},
    "DeskAnswer": {"sessions": 1, **_COUNTS},
    "BulkAnswer": {
        "took": 3,
        "errors": False,
        "items": [
            {
                "index": {
                    "_index": "sessions",
                    "_id": "-1394_1008-1648785600123",
                    "status": 201,
                    "result": "created",
                }
            }
        ],
    },
    "SessionLines": '{"tenantId": "ORG_001", "userSessionId": "017fe309", "userActions": []}\n',
    "Page": "<!doctype html>",
    "Document": {"openapi": "3.1.0", "info": {"title": "Exhaust"}, "paths": {}},
    "Alive": {"status": "ok"},
    "Ready": {
        "status": "ok",
        "database": "ok",
        "migrations": "ok",
        "broker": "ok",
        "storage": "ok",
        "queue_wait_seconds": 0,
    },
    "Metrics": '# TYPE exhaust_events_total counter\nexhaust_events_total{door="desk"} 1.0\n',
    "ErasureCertificate": {
        "subject": "9f86d081884c7d65",
        "askedAt": _T,
        "finishedAt": _T,
        "erased": {"events": 12, "participants": 1},
    },
    "Problem": {
        "type": "about:blank",
        "title": "cursor",
        "status": 400,
        "detail": "cursor: was altered; use it exactly as it was given.",
    },
    "TelemetryError": {
        "id": "api.telemetry",
        "ver": "1.0",
        "ets": _T,
        "params": {
            "resmsgid": _UUID,
            "status": "failed",
            "err": "empty",
            "errmsg": "The body is empty.",
        },
        "responseCode": "CLIENT_ERROR",
        "result": {},
    },
    "SkalinError": {
        "status": "error",
        "message": "Neither 'identities' nor 'features' is there.",
        "code": 400,
        "reason": "not_a_batch",
    },
    "BulkError": {
        "error": {
            "type": "security_exception",
            "reason": "unauthorized: The application or its password is not known here.",
            "root_cause": [{"type": "security_exception", "reason": "unauthorized: …"}],
        },
        "status": 401,
    },
    "EnvelopeError": {
        "id": "ekstep.analytics.dataset.request.submit",
        "ver": "1.0",
        "ts": "2022-04-01T04:00:00.123+00:00",
        "params": {
            "resmsgid": _UUID,
            "status": "failed",
            "err": "CLIENT_ERROR",
            "errmsg": "request.dataset: There is no dataset 'x'; ask for one of …",
            "client_key": None,
        },
        "responseCode": "CLIENT_ERROR",
        "result": {},
    },
}


def enveloped(operation: str, name: str) -> dict[str, Any]:
    return {
        "id": f"ekstep.analytics.dataset.{operation}",
        "ver": "1.0",
        "ts": "2022-04-01T04:00:00.123+00:00",
        "params": {"resmsgid": _UUID, "status": "successful", "client_key": None},
        "responseCode": "OK",
        "result": EXAMPLES[name],
    }
