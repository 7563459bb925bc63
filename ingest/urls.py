from django.urls import path

from ingest.views import clickstream, desk, skalin
from ingest.views.conversations import ConversationView
from ingest.views.participants import ParticipantView, participants
from ingest.views.telemetry import telemetry

urlpatterns = [
    path("v1/telemetry", telemetry),
    path("data/v1/telemetry", telemetry),
    path("data/v3/telemetry", telemetry),
    path("v1/participants", participants),
    path("v1/participants/<path:identifier>", ParticipantView.as_view()),
    path("v1/conversations/<str:identifier>", ConversationView.as_view()),
    path("collect", clickstream.collect),
    path("ping", clickstream.ping),
    path("_bulk", desk.bulk),
    path("<str:index>/_bulk", desk.bulk),
    path("hit", skalin.hit),
    path("hit/bulk", skalin.bulk),
]
