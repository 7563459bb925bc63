"""Where libraries that write files leave their bytes until they are taken."""

import io


class Pending(io.RawIOBase):
    """A file that can only be written on."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._given = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        size = len(self._held)
        self._held += data  # type: ignore[arg-type] # any buffer
        return len(self._held) - size

    def tell(self) -> int:
        return self._given + len(self._held)

    def given(self) -> bytes:
        """What was written since the last time."""
        if not self._held:
            return b""
        given = bytes(self._held)
        self._held.clear()
        self._given += len(given)
        return given
