"""A file that a web server gives."""

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from urllib.parse import unquote, urlsplit

from app.data.remote import BLOCK, RemoteFile, Restarted, changed
from app.errors import AccessDenied, AppError, ConfigError, NotFound, Unavailable

_TIMEOUT = 60.0  # seconds of silence
# An SSLError in the middle of an answer carries errno 1, which is EPERM to a disk.
_NO_ANSWER = (
    urllib.error.URLError,
    HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)


class WebFile:
    """One file at an http:// or https:// address."""

    def __init__(self, setting: str) -> None:
        """`setting` is like "DATASET=https://host/file.txt", for messages."""
        self._setting = setting

    def list(self, uri: str, _: Sequence[str]) -> list[RemoteFile]:
        """The file with its size and version.

        Asked by a GET for its first byte: signed addresses allow no HEAD. Raises ConfigError
        where the server tells too little to notice that the file changed.
        """
        name = unquote(urlsplit(uri).path).rsplit("/", 1)[-1] or "download"
        try:
            with self._get(uri, {"Range": "bytes=0-0"}) as answer:
                size, version = _size(answer), _version(answer)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # which an empty file answers
                raise self._refusal(error) from error
            size, version = _size(error), _version(error)
        if size is None or not version:
            raise ConfigError(
                f"{self._setting}: the server names neither ETag nor Last-Modified, or no size, so "
                "a change would go unnoticed: put the file into a bucket or a folder"
            )
        return [RemoteFile(uri, name, size, version)]

    @contextmanager
    def open(self, file: RemoteFile, offset: int) -> Iterator[Iterator[bytes]]:
        """As `Remote.open`."""
        headers = {"If-Match": file.version} if file.version.startswith('"') else {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._get(file.uri, headers) as answer:
                if (_size(answer), _version(answer)) != (file.size, file.version):
                    raise changed(file)
                if offset and answer.status != 206:
                    raise Restarted
                yield self._blocks(answer)
        except urllib.error.HTTPError as error:
            if error.code in (412, 416):
                raise changed(file) from error
            raise self._refusal(error) from error

    @contextmanager
    def _get(self, uri: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(uri, headers=headers), timeout=_TIMEOUT
            ) as answer:
                yield answer
        except urllib.error.HTTPError:
            raise
        except InvalidURL:  # whose text can be a part of a password
            raise ConfigError(f"{self._setting} is no address of a web server") from None
        except _NO_ANSWER as error:
            raise Unavailable(f"{self._setting} cannot be reached: {error}") from error

    def _blocks(self, answer: HTTPResponse) -> Iterator[bytes]:
        while block := answer.read(BLOCK):
            yield block

    def _refusal(self, error: urllib.error.HTTPError) -> AppError:
        if error.code in (401, 403):
            return AccessDenied(f"{self._setting}: the server refuses access ({error.code})")
        if error.code in (404, 410):
            return NotFound(f"{self._setting}: there is no such file ({error.code})")
        return Unavailable(f"{self._setting}: the server answers {error.code}")


def _size(answer: HTTPResponse | urllib.error.HTTPError) -> int | None:
    """Of the whole file, whatever part of it this is."""
    if of_range := re.search(r"/(\d+)$", answer.headers.get("Content-Range", "")):
        return int(of_range[1])
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _version(answer: HTTPResponse | urllib.error.HTTPError) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
