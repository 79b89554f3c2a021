"""A file behind a URI, and what each kind of server can do."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from app.errors import ConfigError

BLOCK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file behind a URI. `version` is its ETag, or its date where there is none."""

    uri: str
    name: str
    size: int
    version: str


class Remote(Protocol):
    """Where remote files come from."""

    def open(self, file: RemoteFile, offset: int) -> AbstractContextManager[Iterator[bytes]]:
        """The content of `file` from `offset` on, in blocks.

        Raises Restarted if the server only gives it from the start, ConfigError if it is not
        the listed version any more, NotFound, AccessDenied, Unavailable or Damaged.
        """
        ...


class Restarted(Exception):
    """The server begins at the start again."""


def changed(file: RemoteFile) -> ConfigError:
    return ConfigError(
        f"DATASET: {file.uri} was replaced while the corpus was read: a run needs a source that "
        "stays as it is"
    )
