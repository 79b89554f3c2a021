"""The report as a web page that follows its run: `python -m app report --serve`, METRICS_PORT.

It only reads, and answers only GET and HEAD. There is one page for each run, and its name in the
URL counts only if the store has a folder of that name: nobody is led anywhere else.

Beside the pages there are a few plain texts for machines: `/healthz`, and in a training process
`/metrics`. They are read under any name, as Prometheus and an orchestrator ask for them.

A page of a foreign site must not read this one through a name of its own that leads here (DNS
rebinding). So a request has to name the server by a number, as localhost, or as `--host` does.
"""

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from app.errors import AccessDenied, ConfigError
from app.observe.index import index, notice
from app.observe.live import LiveRuns, Seen
from app.observe.report import Served, page
from app.observe.reported_run import ReportedRun

SCRIPT = "/live.js"
HEALTH, METRICS = "/healthz", "/metrics"
_PREFIX = "/runs/"
_AGAIN_SECONDS = 10  # for a browser without scripts
_MOST_LINKS = 20
_IDLE_SECONDS = 20.0  # of a connection that asks nothing
TEXT = "text/plain"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 is any free one. `asked` is how the user says so, for messages."""

    host: str
    port: int
    asked: str


@dataclass(frozen=True)
class Answer:
    status: HTTPStatus
    content: str
    kind: str = TEXT


def _serving() -> Answer:
    return Answer(HTTPStatus.OK, "serving\n")


@dataclass(frozen=True)
class Shown:
    """What is served: the pages of `runs`, which lie below `uri`, and `texts` by their paths.

    The run `home`, where it exists, is shown at `/`; else the only one, or the list of all.
    """

    runs: LiveRuns
    uri: str
    home: str | None = None
    texts: Mapping[str, Callable[[], Answer]] = field(default_factory=lambda: {HEALTH: _serving})


class PageServer(ThreadingHTTPServer):
    """Serves what is `shown`.

    Raises ConfigError for an address that is taken or is none, and AccessDenied for one that this
    user may not have.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: Address, shown: Shown) -> None:
        self.host, self.shown = address.host, shown
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(address.host).version == 6:
                self.address_family = socket.AF_INET6
        try:
            super().__init__((address.host, address.port), _Handler)
        except PermissionError as error:
            raise AccessDenied(
                f"{address.asked}: this user may not serve it: name a port above 1023"
            ) from error
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"nothing can be served on {address.asked} ({reason}): name another port, or "
                "stop what listens there"
            ) from error

    def server_bind(self) -> None:
        """As it is, without the name of the host, which a slow name server would be asked for."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return (
            f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.server_port}/"
        )

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is nothing to tell."""
        log.debug("a request was not answered", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "report", ""
    timeout: ClassVar[float] = _IDLE_SECONDS

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path, errors="replace")
        if path in self.server.shown.texts:
            answer = self.server.shown.texts[path]()
            self._send(answer.status, answer.content, answer.kind)
            return
        if not self._named_well():
            self._send(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this page is reached as localhost or by a number; --host names another host\n",
            )
            return
        if path == SCRIPT:
            script = Path(__file__).with_name("live.js").read_text("utf-8")
            self._send(HTTPStatus.OK, script, "text/javascript")
        elif path in ("/", _PREFIX) or path.startswith(_PREFIX):
            self._send(*self._page(path), "text/html")
        else:
            hint = "; a training process serves it, see METRICS_PORT" if path == METRICS else ""
            said = f"there is no such page{hint}; the runs are at /runs/\n"
            self._send(HTTPStatus.NOT_FOUND, said)

    def _page(self, path: str) -> tuple[HTTPStatus, str]:
        runs = self.server.shown.runs
        name = path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else ""
        if path == "/":
            folders, home = runs.folders().value or (), self.server.shown.home
            only = folders[0] if len(folders) == 1 else ""
            name = home if home and home in folders else only
        if name and (seen := runs.run(name)) is not None:
            return HTTPStatus.OK, self._run(name, seen)
        if path not in ("/", _PREFIX):
            said = f"{self.server.shown.uri} holds no run of this name"
            return HTTPStatus.NOT_FOUND, notice("No such run", said, self._served(None))
        listed = runs.all()
        if listed.value is None:
            reading = f"reading {self.server.shown.uri} …"
            return HTTPStatus.OK, notice("Runs", reading, self._served(listed.problem))
        return HTTPStatus.OK, index(
            self.server.shown.uri, listed.value, self._served(listed.problem)
        )

    def _run(self, name: str, seen: Seen[ReportedRun]) -> str:
        served = self._served(seen.problem, name)
        if seen.value is None:
            return notice(name, "reading the run …", served)
        try:
            return page(seen.value, served)
        except Exception:  # a bug of the page, at what this run holds
            log.exception("the page of run %s was not made", name)
            return notice(
                name, "it cannot be shown: a bug of this page, whose log has more", served
            )

    def _served(self, problem: str | None, name: str = "") -> Served:
        """With links to the newest runs, the one that is shown among them."""
        newest = self.server.shown.runs.names()[:_MOST_LINKS]
        shown = [name] if name and name not in newest else []
        return Served([*newest, *shown], problem, SCRIPT, _AGAIN_SECONDS)

    def _named_well(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        try:
            host = urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        if host in ("localhost", self.server.host.lower()):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _send(self, status: HTTPStatus, content: str, kind: str = TEXT) -> None:
        body = content.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for header, value in _HEADERS.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A page that looks for news every few seconds would fill the log."""
