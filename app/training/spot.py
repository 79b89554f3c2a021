"""Spot notices: the cloud says ahead of time that it takes this machine back.

    AWS   PUT /latest/api/token for a session, then GET /latest/meta-data/spot/instance-action:
          404, or {"action": "terminate", "time": "2026-01-01T12:00:00Z"} two minutes ahead.
          https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
          https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-v2-how-it-works.html
    GCP   GET /computeMetadata/v1/instance/preempted: FALSE, or TRUE up to 30 seconds ahead.
          https://cloud.google.com/compute/docs/instances/create-use-preemptible
          https://cloud.google.com/compute/docs/metadata/querying-metadata

A thread asks the cloud's metadata server. It logs a notice, and then sends SIGTERM to its own
process, so that all that follows is the same as when an orchestrator asks to stop. If the server
does not answer, training goes on.
"""

import http.client
import io
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

from app.errors import AccessDenied, AppError, ConfigError, Damaged, Unavailable
from app.settings.variables import CheckpointSettings, MetadataServers

log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0  # a server on the machine's own link has answered by then, or is none
_ANSWER_BYTES = 64 * 1024
_TOKEN_SECONDS = 21_600  # the longest that AWS gives
_NETLOC = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d+)?")


@dataclass(frozen=True)
class Notice:
    """What the cloud is going to do with this machine, in its own words."""

    cloud: str
    action: str
    when: str


@dataclass(frozen=True)
class Answer:
    status: int
    body: str


class NoticeSource(Protocol):
    """A cloud's way of giving notice."""

    variable: str
    every: float  # seconds between two questions

    def notice(self) -> Notice | None:
        """Ask once. Raises Unavailable, AccessDenied, or Damaged for an answer without meaning."""
        ...


class MetadataServer:
    """HTTP to a link-local address: no proxy, no redirect, and limits on time and size."""

    def __init__(self, setting: str, url: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        """Raises ConfigError for an address that cannot be one; `setting` names the variable.

        An answer that is not whole after `answer_seconds` is given up.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host = None
        if not host or parts.scheme != "http" or not _NETLOC.fullmatch(parts.netloc):
            raise ConfigError(
                f"{setting} does not name a metadata server: unset it, or give an address such as "
                "http://169.254.169.254 (AWS) or 169.254.169.254 (GCP)"
            )
        self.url = f"http://{parts.netloc}{parts.path.rstrip('/')}"
        self._address, self._netloc, self._prefix = (host, port), parts.netloc, parts.path
        self._answer_seconds = answer_seconds

    def ask(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """Raises Unavailable if there is no whole answer in time."""
        lines = {"Host": self._netloc, "Connection": "close", "Content-Length": "0", **headers}
        request = f"{method} {self._prefix.rstrip('/')}{path} HTTP/1.1\r\n"
        request += "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
        try:
            received = self._exchange(request.encode("ascii"))
            response = http.client.HTTPResponse(cast(socket.socket, _Received(received)))
            response.begin()
            return Answer(response.status, response.read().decode("utf-8", "replace"))
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{self.url} does not answer ({reason})") from error

    def _exchange(self, request: bytes) -> bytes:
        """Send `request`, and read the answer until the server closes the connection."""
        deadline = time.monotonic() + self._answer_seconds
        received = b""
        with socket.create_connection(self._address, timeout=self._answer_seconds) as link:
            link.sendall(request)
            while len(received) <= _ANSWER_BYTES:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not all of it came within {self._answer_seconds:g} s")
                link.settimeout(left)
                if not (part := link.recv(_ANSWER_BYTES)):
                    return received
                received += part
        raise http.client.HTTPException(f"more than {_ANSWER_BYTES} bytes")


class _Received:
    """What http.client needs of a socket to parse an answer that has been received already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, _: str) -> io.BytesIO:
        return io.BytesIO(self._content)


class AwsNotices:
    """EC2: instance-action, read with an IMDSv2 session token."""

    variable = "SPOT_NOTICES=aws"
    every = 5.0  # what AWS recommends

    def __init__(self, endpoint: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        setting = f"AWS_EC2_METADATA_SERVICE_ENDPOINT={endpoint}"
        self._server = MetadataServer(setting, endpoint, answer_seconds)
        self._token: str | None = None

    def notice(self) -> Notice | None:
        answer = self._with_token()
        if answer.status == 401:  # the session is over
            self._token = None
            answer = self._with_token()
        if answer.status == 404:
            return None
        _expect_200(answer, f"{self._server.url} (spot/instance-action)")
        try:
            content = json.loads(answer.body)
            action, when = content["action"], content["time"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _meaningless(self._server.url, answer.body) from error
        if not isinstance(action, str) or not isinstance(when, str):
            raise _meaningless(self._server.url, answer.body)
        return Notice("AWS", _short(action), f"at {_short(when)}")

    def _with_token(self) -> Answer:
        if self._token is None:
            self._token = self._new_token()
        headers = {"X-aws-ec2-metadata-token": self._token}
        return self._server.ask("GET", "/latest/meta-data/spot/instance-action", headers)

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        try:
            answer = self._server.ask("PUT", "/latest/api/token", headers)
        except Unavailable as error:
            raise Unavailable(
                f"{error}; in a container the instance needs a metadata hop limit of 2"
            ) from error
        _expect_200(answer, f"{self._server.url} (api/token)")
        if not re.fullmatch(r"[\x21-\x7e]{1,4096}", answer.body):
            raise _meaningless(self._server.url, answer.body)
        return answer.body


class GcpNotices:
    """Compute Engine: the metadata key `preempted`."""

    variable = "SPOT_NOTICES=gcp"
    every = 1.0  # a notice comes only 30 seconds ahead, so no second of it should be lost

    def __init__(self, host: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        setting = f"GCE_METADATA_HOST={host}"
        self._server = MetadataServer(setting, f"http://{host}", answer_seconds)

    def notice(self) -> Notice | None:
        path = "/computeMetadata/v1/instance/preempted"
        answer = self._server.ask("GET", path, {"Metadata-Flavor": "Google"})
        _expect_200(answer, f"{self._server.url} (instance/preempted)")
        match answer.body.strip():
            case "TRUE":
                return Notice("GCP", "preempted", "within 30 s")
            case "FALSE":
                return None
        raise _meaningless(self._server.url, answer.body)


class SpotWatch:
    """Asks `source` on a thread of its own until there is a notice, and then calls `act` once."""

    def __init__(self, source: NoticeSource, act: Callable[[], None]) -> None:
        self._source, self._act = source, act
        self._closed = threading.Event()
        self._acting = threading.Lock()
        self._said: set[type[AppError]] = set()
        self._answered = False
        self.thread = threading.Thread(target=self._run, name="spot-notices", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def close(self) -> None:
        """A notice that comes later is not acted on."""
        with self._acting:
            self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            notice = self._ask()
            if notice is not None:
                self._take(notice)
                return
            self._closed.wait(self._source.every)

    def _ask(self) -> Notice | None:
        """Ask once. An error counts as no notice; each type of error is logged once."""
        source = self._source
        try:
            notice = source.notice()
        except AppError as error:
            if type(error) not in self._said:
                self._said.add(type(error))
                log.warning("%s: %s: training goes on without notices", source.variable, error)
            return None
        if not self._answered and notice is None:
            log.info("%s: asking every %g s, no notice so far", source.variable, source.every)
        self._answered = True
        return notice

    def _take(self, notice: Notice) -> None:
        with self._acting:
            if not self._closed.is_set():
                log.warning(
                    "SPOT NOTICE from %s: %s %s; stopping as on SIGTERM",
                    notice.cloud,
                    notice.action,
                    notice.when,
                )
                self._act()


@contextmanager
def watched_for_notices(
    settings: CheckpointSettings, servers: MetadataServers, answer_seconds: float = ANSWER_SECONDS
) -> Iterator[None]:
    """While the block runs, a spot notice sends SIGTERM to this process.

    Raises ConfigError for an address of `servers` that cannot be one.
    """
    sources: Mapping[str, Callable[[], NoticeSource]] = {
        "aws": lambda: AwsNotices(servers.aws_ec2_metadata_service_endpoint, answer_seconds),
        "gcp": lambda: GcpNotices(servers.gce_metadata_host, answer_seconds),
    }
    if settings.spot_notices == "off":
        yield
        return
    watch = SpotWatch(
        sources[settings.spot_notices](), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    watch.start()
    try:
        yield
    finally:
        watch.close()


def _expect_200(answer: Answer, place: str) -> None:
    if answer.status in (401, 403):
        raise AccessDenied(f"{place} refuses access ({answer.status})")
    if answer.status != 200:
        raise Unavailable(f"{place} answers {answer.status}")


def _meaningless(url: str, body: str) -> Damaged:
    return Damaged(f"{url} answers what is no notice: {_short(body)!r}")


def _short(text: str) -> str:
    """`text` cut to fit one line of the log, in printable ASCII."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:80]
