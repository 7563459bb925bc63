from django.urls import path

from ingest.views import clickstream, desk, skalin
from ingest.views.conversations import ConversationView
from ingest.views.participants import participants
from ingest.views.telemetry import telemetry

urlpatterns = [
    path("v1/telemetry", telemetry),
    path("data/v1/telemetry", telemetry),
    path("data/v3/telemetry", telemetry),
    path("v1/participants", participants),
    path("v1/conversations/<str:identifier>", ConversationView.as_view()),
    path("collect", clickstream.collect),
    path("ping", clickstream.ping),
    path("export/events", desk.by_method(PUT=desk.sessions, POST=desk.sessions)),
    path("_bulk", desk.bulk),
    path("<str:index>/_bulk", desk.bulk),
    path("hit", skalin.hit),
    path("hit/bulk", skalin.bulk),
]
