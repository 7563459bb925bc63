"""The participants' door."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from ingest import access, problems, store
from ingest.adapters import body
from ingest.adapters import participants as adapter
from ingest.events import Refused


@csrf_exempt
def participants(request: HttpRequest) -> HttpResponse:
    """`POST /v1/participants`: profiles and consents, as an array or one a line."""
    received_at = timezone.now()
    try:
        if request.method != "POST":
            raise Refused("method_not_allowed", "Participants come by POST.", 405)
        caller = access.identify(request)
        caller.require("ingest")
        channel_id, _ = caller.channel(request.headers.get("X-Channel-ID"))
        body.require_json(request.content_type or "")
        sent = body.read(request)
        profiles, rejections = adapter.parse(sent, request.content_type or "", received_at)
        store.keep_participants(channel_id, received_at, profiles, rejections)
    except Refused as refused:
        return problems.response(refused.status, refused.reason, refused.detail)
    return JsonResponse(
        {
            "accepted": len(profiles),
            "rejected": len(rejections),
            "rejections": problems.told(rejections),
        }
    )
