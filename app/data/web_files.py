"""A file at an http:// or https:// address."""

import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from app.data.downloads import RemoteFiles, Restarted, replaced
from app.data.files import ListedFile
from app.data.kinds import ENDINGS, FileKind, kind_of
from app.data.patterns import say_empty
from app.data.stand_ins import HEAD, is_page, refuse_stand_in
from app.errors import AccessDenied, AppError, ConfigError, NotFound, Unavailable

_TIMEOUT = 60.0  # seconds in which a web server says nothing
# Several servers refuse the agent that Python's library names.
_AGENT = {"User-Agent": "smollm2-spot-trainer", "Accept": "*/*"}
# An SSLError in the middle of an answer carries errno 1, which would mean EPERM on a disk.
_NO_ANSWER = (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
_DENIED = (401, 403, 407, 451)
_MISSING = (404, 410)
_NOT_NOW = (408, 409, 423, 425, 429)
_DECODED = ("", "identity", "gzip", "x-gzip", "zstd")  # the reader knows the last three by itself

_Answer = HTTPResponse | urllib.error.HTTPError


class WebFile(RemoteFiles):
    """One file at an address. Redirections are followed."""

    def _list(self, uri: str) -> Iterable[ListedFile]:
        """Size and version come with a GET of the first bytes: signed addresses allow no HEAD.

        Raises ConfigError where the server tells too little to notice that the file changed, or
        answers with something else than a file of ours.
        """
        head = b""
        try:
            with self._get(uri, {"Range": f"bytes=0-{HEAD - 1}"}) as answer:
                head = answer.read(HEAD)
                file = self._listed(uri, answer)
                self._check_content(answer, head, file.kind)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # an empty file has no first byte
                raise self._refusal(error) from error
            file = self._listed(uri, error)
        say_empty(self._setting, [] if file.size else [file.name])
        return [file]

    def _listed(self, uri: str, answer: _Answer) -> ListedFile:
        size, version = _whole_size(answer), _version(answer)
        if size is None or not version:
            raise ConfigError(
                f"{self._setting}: the server names neither ETag nor Last-Modified, or no size, so "
                "a change would go unnoticed: put the file into a bucket or a folder"
            )
        names = [_name_in(uri), answer.headers.get_filename() or "", _name_in(answer.url)]
        name = next((name for name in names if kind_of(name)), None)
        if name is None:
            raise ConfigError(f"{self._setting}: files end with {ENDINGS}")
        return ListedFile(uri, name, uri, size, version)

    def _check_content(self, answer: HTTPResponse, head: bytes, kind: FileKind) -> None:
        encoding = answer.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _DECODED or (encoding not in _DECODED[:2] and kind.content == "table"):
            raise ConfigError(
                f"{self._setting}: the server sends it with Content-Encoding: {encoding}, which is "
                "not read: put the file into a bucket or a folder"
            )
        said = answer.headers.get_content_type()
        is_html = said in ("text/html", "application/xhtml+xml")
        markup = head.lstrip().startswith(b"<") or bool(encoding)
        if (is_html and markup) or (is_page(head) and kind != FileKind("text")):
            raise ConfigError(
                f"{self._setting}: the server answers with a web page (HTML), and not with the "
                "file. On GitHub and on the hub the address of a file has /raw/ or /resolve/ "
                "in the place of /blob/"
            )
        refuse_stand_in(head, self._setting, kind)

    @contextmanager
    def _open(self, file: ListedFile, offset: int) -> Iterator[BinaryIO]:
        headers = {"If-Match": file.version} if file.version.startswith('"') else {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with self._get(file.place, headers) as answer:
                if (_whole_size(answer), _version(answer)) != (file.size, file.version):
                    raise replaced(file)
                if offset and answer.status != 206:
                    raise Restarted
                yield answer
        except urllib.error.HTTPError as error:
            if error.code in (412, 416):
                raise replaced(file) from error
            raise self._refusal(error) from error

    @contextmanager
    def _get(self, uri: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        try:
            with self._asked(uri, headers) as answer:
                yield answer
        except urllib.error.HTTPError:
            raise
        except _NO_ANSWER as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ConfigError(
                    f"{self._setting}: the server's certificate is not trusted "
                    f"({reason.verify_message}): SSL_CERT_FILE names the authorities that are"
                ) from error
            raise Unavailable(f"{self._setting} cannot be reached: {error}") from error

    def _asked(self, uri: str, headers: dict[str, str]) -> HTTPResponse:
        try:
            request = urllib.request.Request(_ascii_address(uri), headers={**_AGENT, **headers})
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
        except (InvalidURL, ValueError):  # its text can hold a part of a password
            raise ConfigError(f"{self._setting} is no address of a web server") from None
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> AppError:
        code = error.code
        if code in _DENIED:
            return AccessDenied(f"{self._setting}: the server refuses access ({code})")
        if code in _MISSING:
            star = "*" in self._setting
            also = "; a web server lists no files, so * means nothing to it" if star else ""
            return NotFound(f"{self._setting}: there is no such file ({code}){also}")
        if 400 <= code < 500 and code not in _NOT_NOW:
            return ConfigError(
                f"{self._setting}: the server refuses the request ({code} {error.reason}): correct "
                "the address"
            )
        return Unavailable(f"{self._setting}: the server answers {code}")


def _ascii_address(uri: str) -> str:
    """The address as it is sent: what is not ASCII, or no sign of an address, is encoded.

    What is encoded already stays so. Raises ValueError.
    """
    parts = urlsplit(uri)
    if not parts.hostname:
        raise ValueError("no server is named")
    server = parts.netloc
    if not server.isascii():
        port = f":{parts.port}" if parts.port else ""
        server = (parts.hostname or "").encode("idna").decode() + port
    path, query = (_encoded(text) for text in (parts.path, parts.query))
    return urlunsplit((parts.scheme, server, path, query, ""))


def _encoded(text: str) -> str:
    stray = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(stray, safe="%/:=&?~+!$,;'@()*", errors="surrogateescape")


def _name_in(uri: str) -> str:
    return unquote(urlsplit(uri).path).rpartition("/")[2]


def _whole_size(answer: _Answer) -> int | None:
    """The size of the whole file, whatever part of it the answer holds."""
    if of_range := re.search(r"/(\d+)$", answer.headers.get("Content-Range", "")):
        return int(of_range[1])
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and length.isdigit() else None


def _version(answer: _Answer) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
