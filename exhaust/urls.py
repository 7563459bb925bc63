from django.urls import path

from exhaust.api import destinations, downloads, jobs, pull, schedules
from exhaust.api.audit import AuditView
from exhaust.api.samples import MappingView, SampleView

urlpatterns = [
    path("dataset/v1/request/submit", jobs.SubmitView.as_view()),
    path("dataset/v1/request/submi", jobs.SubmitView.as_view()),  # as the guide prints it
    path("dataset/v1/request/preview", jobs.PreviewView.as_view()),
    path("dataset/v1/request/read/<str:tag>", jobs.ReadView.as_view()),
    path("dataset/v1/request/list/<str:tag>", jobs.ListView.as_view()),
    path("dataset/v1/request/search", jobs.SearchView.as_view()),
    path("dataset/v1/request/cancel/<str:tag>", jobs.CancelView.as_view()),
    path("dataset/v1/request/retry/<str:tag>", jobs.RetryView.as_view()),
    path("dataset/v1/request/revoke/<str:tag>", jobs.RevokeView.as_view()),
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
    path("export/datasets/<str:name>", pull.DatasetRowsView.as_view()),
    path("dataset/v1/download/<str:token>/<text:name>", downloads.download),
    path("dataset/v1/download/<str:token>", downloads.download),
]

# Croct's clients use the singular, its pages the plural
for name, list_view, view in (
    ("session", pull.SessionsView, pull.SessionView),
    ("sessions", pull.SessionsView, pull.SessionView),
    ("user", pull.UsersView, pull.UserView),
    ("users", pull.UsersView, pull.UserView),
):
    urlpatterns += [
        path(f"export/{name}", list_view.as_view()),
        path(f"export/{name}/<str:identifier>", view.as_view()),
    ]
urlpatterns.append(path("export/events/<str:identifier>", pull.EventView.as_view()))
