"""The response to profiles."""

from ingest.adapters.base import Receipt, Response, list_rejections
from ingest.events import Profile, Rejection


def respond(receipt: Receipt) -> Response:
    profiles, result = receipt.batch.profiles, receipt.result
    partly_taken = {rejection.position for rejection in result.rejections}
    erased = [profile for profile in result.erased if profile.position not in partly_taken]
    rejections = [*result.rejections, *map(_erased_rejection, erased)]
    whole = [profile for profile in profiles if profile.position not in partly_taken]
    return Response(
        {
            "accepted": len(whole) - len(erased),
            "rejected": len(rejections),
            "rejections": list_rejections(rejections),
        }
    )


def _erased_rejection(profile: Profile) -> Rejection:
    """Returns a rejection that is listed but not stored, since the person was erased."""
    return Rejection(
        profile.position,
        "erased",
        "This person was erased; send a consent that was given afterwards, with its consentAt.",
        b"",
    )
