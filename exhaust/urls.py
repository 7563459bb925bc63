from django.urls import path

from exhaust.api import views

urlpatterns = [
    path("dataset/v1/request/submit", views.SubmitView.as_view()),
    path("dataset/v1/request/submi", views.SubmitView.as_view()),  # as the guide prints it
    path("dataset/v1/request/read/<str:tag>", views.ReadView.as_view()),
    path("dataset/v1/request/list/<str:tag>", views.ListView.as_view()),
    path("dataset/v1/download/<str:token>", views.download),
]
