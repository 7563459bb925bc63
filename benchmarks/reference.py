"""The reference of `read` in `benchmarks.api`: the same row by a ModelSerializer and the ORM.

The shipped application with one more address, `/reference/{tag}?requestId=`. It needs no key,
checks no channel and creates no link.
"""

from config.wsgi import application  # before what needs Django set up

# isort: split
from typing import Any

from django.shortcuts import get_object_or_404
from django.urls import path
from rest_framework import generics, serializers

from config import urls
from exhaust.models import File, Job

__all__ = ["application"]


class FileSerializer(serializers.ModelSerializer[File]):
    class Meta:
        model = File
        fields = ["name", "content_type", "row_count", "byte_count", "sha256"]


class JobSerializer(serializers.ModelSerializer[Job]):
    files = FileSerializer(many=True, read_only=True)

    class Meta:
        model = Job
        exclude = ["encrypted_key"]


class ReferenceView(generics.RetrieveAPIView[Job]):
    authentication_classes = ()
    permission_classes = ()
    serializer_class = JobSerializer
    queryset = Job.objects.select_related("channel").prefetch_related("files")

    def get_object(self) -> Any:
        return get_object_or_404(
            self.get_queryset(),
            tag=self.kwargs["tag"],
            request_id=self.request.query_params["requestId"],
        )


urls.urlpatterns.append(path("reference/<str:tag>", ReferenceView.as_view()))
