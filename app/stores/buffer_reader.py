"""Many buffers as one file that can be read: what the SDK uploads from."""

import io
from typing import Any

from app.stores.contract import Data


class BufferReader(io.RawIOBase):
    """A seekable file over buffers. They are never joined: that would copy a whole snapshot."""

    def __init__(self, data: Data) -> None:
        self._views = [memoryview(buffer).cast("B") for buffer in data]
        self._size = sum(map(len, self._views))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, target: Any) -> int:
        """Fill `target` wherever there is enough: s3transfer takes a short read for the end."""
        wanted = memoryview(target).cast("B")
        filled, start = 0, 0
        for view in self._views:
            skip = self._position - start
            if skip < len(view) and filled < len(wanted):
                piece = view[skip : skip + len(wanted) - filled]
                wanted[filled : filled + len(piece)] = piece
                filled += len(piece)
                self._position += len(piece)
            start += len(view)
        return filled
