from django.urls import path

from ingest import views

urlpatterns = [
    path("v1/telemetry", views.telemetry),
    path("data/v1/telemetry", views.telemetry),
    path("data/v3/telemetry", views.telemetry),
    path("v1/participants", views.people),
    path("v1/conversations/<str:identifier>", views.ConversationView.as_view()),
]
