from django.urls import path

from exhaust.api import destinations, schedules, views
from exhaust.api.audit import AuditView
from exhaust.api.pull import PageView, RecordView
from exhaust.api.samples import MappingView, SampleView

urlpatterns = [
    path("dataset/v1/request/submit", views.SubmitView.as_view()),
    path("dataset/v1/request/submi", views.SubmitView.as_view()),  # as the guide prints it
    path("dataset/v1/request/preview", views.PreviewView.as_view()),
    path("dataset/v1/request/read/<str:tag>", views.ReadView.as_view()),
    path("dataset/v1/request/list/<str:tag>", views.ListView.as_view()),
    path("dataset/v1/request/search", views.SearchView.as_view()),
    path("dataset/v1/request/cancel/<str:tag>", views.CancelView.as_view()),
    path("dataset/v1/request/retry/<str:tag>", views.RetryView.as_view()),
    path("dataset/v1/request/revoke/<str:tag>", views.RevokeView.as_view()),
    path("dataset/v1/schedule", schedules.ScheduleListView.as_view()),
    path("dataset/v1/schedule/<str:name>", schedules.ScheduleView.as_view()),
    path("dataset/v1/schedule/<str:name>/pause", schedules.PauseView.as_view()),
    path("dataset/v1/schedule/<str:name>/resume", schedules.ResumeView.as_view()),
    path("dataset/v1/destination", destinations.DestinationListView.as_view()),
    path("dataset/v1/destination/<str:name>", destinations.DestinationView.as_view()),
    path("dataset/v1/destination/<str:name>/pause", destinations.PauseView.as_view()),
    path("dataset/v1/destination/<str:name>/resume", destinations.ResumeView.as_view()),
    path("dataset/v1/destination/<str:name>/rewind", destinations.RewindView.as_view()),
    path("dataset/v1/destination/<str:name>/test", destinations.TestView.as_view()),
    path("dataset/v1/destination/<str:name>/requeue", destinations.RequeueView.as_view()),
    path("dataset/v1/destination/<str:name>/deadletters", destinations.DeadLettersView.as_view()),
    path("dataset/v1/audit", AuditView.as_view()),
    path("export/sample", SampleView.as_view()),
    path("export/mapping", MappingView.as_view()),
    path("dataset/v1/download/<str:token>", views.download),
]

for resource, names in (("sessions", ("session", "sessions")), ("users", ("user", "users"))):
    for name in names:  # Croct's clients say the one, its pages the other
        urlpatterns += [
            path(f"export/{name}", PageView.as_view(resource=resource)),
            path(f"export/{name}/<str:identifier>", RecordView.as_view(resource=resource)),
        ]
urlpatterns.append(path("export/events/<str:identifier>", RecordView.as_view(resource="events")))
