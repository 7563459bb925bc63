"""A file for libraries that write to one, whose bytes are taken as they come."""

import io


class PendingBytes(io.RawIOBase):
    """A write-only file that keeps its bytes until `take`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._taken_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        size = len(self._buffer)
        self._buffer += data  # type: ignore[arg-type] # any buffer
        return len(self._buffer) - size

    def position(self) -> int:
        return self._taken_bytes + len(self._buffer)

    tell = position  # as files name it

    def take(self) -> bytes:
        """Returns the bytes written since the last call."""
        if not self._buffer:
            return b""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._taken_bytes += len(data)
        return data
