"""The answers of pull, as the OpenAPI document describes them; `documents` writes them."""

from typing import Any

from rest_framework.serializers import DictField

from exhaust.feed.documents import STANDARD_ATTRIBUTES
from ingest.http.response_fields import (
    Body,
    anything,
    choice,
    epoch_ms,
    flag,
    free_object,
    integer,
    text,
)

POSITION = "The position in the feed: the same in a page, a push and a file."
CURSOR = "Opaque. Send it as `cursor` to get what comes next."
VERSION = "It grows with each change."
SENT = "As the sender wrote it."
NO_USER = "The user; without one the device."


class Metadata(Body):
    """The organization, the channel as workspace, the application of all events or the channel."""

    for level in ("organization", "workspace", "application"):
        locals()[f"{level}Name"] = text(f"The {level}'s name.")
        locals()[f"{level}Slug"] = text(f"The {level}'s id.")
    del level


class EventContext(Body):
    """The page, or the app."""

    type = choice("web if there is a page.", ["web", "app"])
    metadata = free_object("`platform`, if the sender names one.")
    url = text("The address.", required=False)


class EventPayload(Body):
    """The sender's event, under its type; of a type in Croct's vocabulary as that has it."""

    is_extensible = True
    locals()["@type"] = text("The event's type.")


class Event(Body):
    """An event of any source."""

    id = text("The id.", {"format": "uuid"})
    sessionId = text("The sender's session; empty for none.")
    userId = text(NO_USER)
    timestamp = epoch_ms("When it happened")
    type = text("The type.")
    dialect = text("The source.")
    deviceId = text("The device; empty for none.")
    receivedTime = epoch_ms("When it arrived")
    position = text(POSITION)
    context: Any = EventContext(allow_null=True)
    payload = EventPayload()


class EventPage(Body):
    """Events, in the order of arrival."""

    items = Event(many=True, help_text="The events; empty at the end.")
    metadata = Metadata()
    nextCursor = text(CURSOR)


class EventAnswer(Body):
    """One event."""

    metadata = Metadata()
    event = Event()


class SessionWindow(Body):
    """The time of the session's events."""

    start = epoch_ms("When the first one happened")
    end = epoch_ms("When the last one happened")


class SessionStatistics(Body):
    """The session in numbers."""

    pageViews = integer("Pages and screens seen.")
    events = integer("Events.")
    answers = integer("Answers.")
    orders = integer("Orders placed.", required=False)


class Session(Body):
    """A session, derived from events or as a sender gave it."""

    sessionId = text("The id.", {"format": "uuid"})
    userId = text(NO_USER)
    externalUserId = text("The sender's user id.", allow_null=True)
    parentId = text("The session that this one joined.", {"format": "uuid"}, allow_null=True)
    window = SessionWindow()
    closeTime = epoch_ms("When it closes or closed")
    closed = flag("Whether it is closed.")
    landingPageUrl = text("The first page.", allow_null=True)
    referrer = text("The page before it.", required=False)
    campaign = free_object("`name`, `source`, `medium`, `content`, `term`.", required=False)
    location = free_object("`continent`, `country`, `region`, `city`.", required=False)
    client = free_object("`browser` and `device`.", required=False)
    deviceId = text("The device; empty for none.")
    senderSessionId = text("The sender's session id.", allow_null=True)
    statistics = SessionStatistics()
    eventTypes = DictField(child=integer("The number."), help_text="Events by type.")
    version = integer(VERSION)
    lastModifiedTime = epoch_ms("When it last changed")
    position = text(POSITION)


class SessionPage(Body):
    """Sessions, by their last change."""

    items = Session(many=True, help_text="The sessions; empty at the end.")
    nextCursor = text(CURSOR)


class User(Body):
    """A user, as senders described it."""

    userId = text("The id, or the device of a user who never signed in.")
    externalUserId = text("The sender's user id.", allow_null=True)
    anonymous = flag("Whether the user never signed in.")
    deviceId = text("The device.", allow_null=True)
    locals().update({name: anything(SENT, required=False) for name in STANDARD_ATTRIBUTES})
    customAttributes = free_object("All attributes, by name.")
    firstSeenTime = epoch_ms("When it was first seen")
    lastSeenTime = epoch_ms("When it was last seen")
    lastModifiedTime = epoch_ms("When it last changed")
    version = integer(VERSION)
    position = text(POSITION)


class UserPage(Body):
    """Users, by their last change."""

    items = User(many=True, help_text="The users; empty at the end.")
    nextCursor = text(CURSOR)
