"""A file somewhere else, read by ranges. It knows neither Django nor pyarrow."""

import io
from collections.abc import Callable


class RangeFile(io.RawIOBase):
    """A file somewhere else that is read by ranges: only what a reader asks for is fetched.

    `read_range` takes a start and a size. Reading raises `FileNotFoundError` once it is deleted.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], byte_count: int) -> None:
        self._read_range, self._size = read_range, byte_count
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = origins[whence] + offset
        return self._position

    def position(self) -> int:
        return self._position

    tell = position  # as files name it

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        data = self._read_range(self._position, size)
        self._position += len(data)
        return data
