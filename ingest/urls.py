from django.urls import path

from ingest.views.conversations import ConversationView
from ingest.views.participants import participants
from ingest.views.telemetry import telemetry

urlpatterns = [
    path("v1/telemetry", telemetry),
    path("data/v1/telemetry", telemetry),
    path("data/v3/telemetry", telemetry),
    path("v1/participants", participants),
    path("v1/conversations/<str:identifier>", ConversationView.as_view()),
]
