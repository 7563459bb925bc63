"""The registry of conversations."""

from typing import Any

from django.http import Http404
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ingest.auth import keys
from ingest.events import RequestError
from ingest.http import request_body
from ingest.http.response_fields import Body, text
from ingest.http.schema import extend_schema
from ingest.models import Conversation


class ConversationNameSerializer(serializers.Serializer[Conversation]):
    """The name of a conversation."""

    example = {"name": "Lunch bot"}
    name = serializers.CharField(
        max_length=255, allow_blank=True, help_text="The bot's name, as the files show it."
    )


class ConversationAnswer(Body):
    """A conversation."""

    id = text("The id.")
    name = text("The name.")


class ConversationView(APIView):
    """`GET|PUT /v1/conversations/{id}`: a bot's name, which fills the exhaust's column."""

    permission_classes = [keys.HasScope]
    scope = "ingest"

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        request_body.require_length(request._request)

    @extend_schema("readConversation", ConversationAnswer, 404)
    def get(self, request: Request, identifier: str) -> Response:
        """Get a conversation's name.

        Needs `ingest`.
        """
        channel_id, _ = keys.get_caller(request).resolve_channel(
            request.headers.get("X-Channel-ID")
        )
        if "\0" in identifier:
            raise Http404
        conversation = get_object_or_404(Conversation, channel_id=channel_id, identifier=identifier)
        return Response({"id": conversation.identifier, "name": conversation.name})

    @extend_schema("nameConversation", ConversationAnswer, request=ConversationNameSerializer)
    def put(self, request: Request, identifier: str) -> Response:
        """Name a conversation.

        Needs `ingest`.
        """
        channel_id, _ = keys.get_caller(request).resolve_channel(
            request.headers.get("X-Channel-ID")
        )
        if len(identifier) > 255 or "\0" in identifier:
            raise RequestError("id", "A conversation's id has up to 255 characters.")
        serializer = ConversationNameSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        conversation, _ = Conversation.objects.update_or_create(
            channel_id=channel_id, identifier=identifier, defaults=serializer.validated_data
        )
        return Response({"id": conversation.identifier, "name": conversation.name})
