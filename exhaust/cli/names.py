"""Names of files that every file system takes. The server gives them, a client makes sure."""

import re
import unicodedata

MAX_NAME_BYTES = 200  # file systems take 255; browsers and tools add to it
_TAIL_CHARACTERS = 40  # dataset, day, part and ending stay when a name is cut
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


def make_safe_name(name: str) -> str:
    """Returns the name with `_` for what some file system refuses, at most 200 bytes in UTF-8.

    A safe name stays as it is. No name begins with a dot, so none is hidden or a folder.
    """
    safe = "".join(
        "_" if c in '/\\:*?"<>|' or unicodedata.category(c)[0] == "C" else c for c in name
    )
    safe = re.sub(r"^[. ]|[. ]$|[\u2028\u2029]", "_", safe) or "_"
    if _RESERVED.match(safe):
        safe = f"_{safe}"
    tail = safe[-_TAIL_CHARACTERS:]
    if len(safe.encode()) > MAX_NAME_BYTES:
        room = MAX_NAME_BYTES - len(tail.encode())
        safe = safe[:-_TAIL_CHARACTERS].encode()[:room].decode(errors="ignore") + tail
    return safe
