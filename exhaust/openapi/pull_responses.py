"""What pull answers."""

from exhaust.openapi.json_schema import (
    Schema,
    anything,
    extensible,
    flag,
    free,
    listed,
    maybe,
    moment,
    ref,
    shape,
    text,
    whole,
)

_POSITION = text("Where it stands in the feed: the same in a page, a push and a file.")
_VERSION = whole("Higher each time it comes again.")
_CURSOR = text("Ask with it as `cursor` for what comes next; opaque.")
PULL: dict[str, Schema] = {
    "Problem": shape(
        "A refusal (RFC 9457).",
        ("details",),
        type=text("Always about:blank."),
        title=text("A code."),
        status=whole("The HTTP status."),
        detail=text("What is wrong: the field and the remedy."),
        details=text("The same, where Croct's clients look for it."),
    ),
    "Metadata": shape(
        "Croct's three levels; here all are the channel.",
        **{
            f"{level}{what}": text(f"The channel's {said}.")
            for level in ("organization", "workspace", "application")
            for what, said in (("Name", "name"), ("Slug", "id"))
        },
    ),
    "EventContext": shape(
        "Where on the web it happened.",
        type=text("Always web.", enum=["web"]),
        metadata=free("Empty."),
        url=text("The page."),
    ),
    "EventPayload": extensible(
        "What the sender wrote, under its type.", **{"@type": text("The event's type.")}
    ),
    "Event": shape(
        "One event of any door.",
        id=text("Its id.", format="uuid"),
        sessionId=text("The sender's session; empty for none."),
        userId=text("The user, or the device of nobody known."),
        timestamp=moment("When it happened"),
        type=text("What kind."),
        dialect=text("By which door it came."),
        deviceId=text("The device; empty for none."),
        receivedTime=moment("When it arrived"),
        position=_POSITION,
        context=maybe(ref("EventContext")),
        payload=ref("EventPayload"),
    ),
    "EventPage": shape(
        "Events, in the order of arrival.",
        items=listed("The events; none at the end.", ref("Event")),
        metadata=ref("Metadata"),
        nextCursor=_CURSOR,
    ),
    "EventAnswer": shape("One event.", metadata=ref("Metadata"), event=ref("Event")),
    "SessionWindow": shape(
        "The session's events.",
        start=moment("When the first happened"),
        end=moment("When the last happened"),
    ),
    "SessionStatistics": shape(
        "The session in numbers.",
        pageViews=whole("Pages and screens seen."),
        events=whole("Its events."),
        answers=whole("Its answers."),
    ),
    "Session": shape(
        "One session, derived from events or as a sender gave it.",
        sessionId=text("Its id.", format="uuid"),
        userId=text("The user, or the device of nobody known."),
        externalUserId=maybe(text("The sender's user id.")),
        parentId=maybe(text("The session that it became a part of.", format="uuid")),
        window=ref("SessionWindow"),
        closeTime=moment("When it closes or closed"),
        closed=flag("Whether it is over."),
        landingPageUrl=maybe(text("The first page.")),
        deviceId=text("The device; empty for none."),
        senderSessionId=maybe(text("The sender's own id.")),
        statistics=ref("SessionStatistics"),
        eventTypes={
            "type": "object",
            "description": "How many events of each type.",
            "additionalProperties": {"type": "integer", "description": "How many."},
        },
        version=_VERSION,
        lastModifiedTime=moment("When it last changed"),
        position=_POSITION,
    ),
    "SessionPage": shape(
        "Sessions, by their last change.",
        items=listed("The sessions; none at the end.", ref("Session")),
        nextCursor=_CURSOR,
    ),
    "User": shape(
        "One user, as far as senders told.",
        ("email", "phone", "firstName", "lastName", "gender", "company", "jobTitle"),
        userId=text("Its id, or the device of somebody who never signed in."),
        externalUserId=maybe(text("The sender's user id.")),
        anonymous=flag("Whether nobody signed in."),
        deviceId=maybe(text("The device.")),
        email=anything("As the sender told it."),
        phone=anything("As the sender told it."),
        firstName=anything("As the sender told it."),
        lastName=anything("As the sender told it."),
        gender=anything("As the sender told it."),
        company=anything("As the sender told it."),
        jobTitle=anything("As the sender told it."),
        customAttributes=free("All that senders told, by name."),
        firstSeenTime=moment("When it was first seen"),
        lastSeenTime=moment("When it was last seen"),
        lastModifiedTime=moment("When it last changed"),
        version=_VERSION,
        position=_POSITION,
    ),
    "UserPage": shape(
        "Users, by their last change.",
        items=listed("The users; none at the end.", ref("User")),
        nextCursor=_CURSOR,
    ),
    "Mapping": free("What an Elasticsearch index of sessions is created with."),
}
