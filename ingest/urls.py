from django.urls import path

from ingest.views import clickstream, desk, skalin
from ingest.views.conversations import ConversationView
from ingest.views.participants import ParticipantView, receive_participants
from ingest.views.telemetry import receive_telemetry

urlpatterns = [
    path("v1/telemetry", receive_telemetry),
    path("data/v1/telemetry", receive_telemetry),
    path("data/v3/telemetry", receive_telemetry),
    path("v1/participants", receive_participants),
    path("v1/participants/<path:identifier>", ParticipantView.as_view()),
    path("v1/conversations/<str:identifier>", ConversationView.as_view()),
    path("collect", clickstream.collect),
    path("ping", clickstream.ping),
    path("_bulk", desk.receive_bulk),
    path("<str:index>/_bulk", desk.receive_bulk),
    path("hit", skalin.receive_hit),
    path("hit/bulk", skalin.receive_bulk),
]
