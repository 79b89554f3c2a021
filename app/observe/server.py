"""The report as a web page that follows its run: `python -m app report --serve`.

It only reads, and answers only GET and HEAD. There is one page for each run, and its name in the
URL counts only if the store has a folder of that name: nobody is led anywhere else.

A page of a foreign site must not read this one through a name of its own that leads here (DNS
rebinding). So a request has to name the server by a number, as localhost, or as `--host` does.
"""

import contextlib
import ipaddress
import logging
import socket
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
_PREFIX = "/runs/"
_AGAIN_SECONDS = 10  # for a browser without scripts
_MOST_LINKS = 20
_IDLE_SECONDS = 20.0  # of a connection that asks nothing
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

log = logging.getLogger(__name__)


class PageServer(ThreadingHTTPServer):
    """Serves the pages of `runs`, which lie below `uri`, on `host` and `port`; 0 is any free one.

    Raises ConfigError for a place that is taken or is none, and AccessDenied for one that this user
    may not have.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, host: str, port: int, runs: LiveRuns, uri: str) -> None:
        self.host, self.runs, self.uri = host, runs, uri
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host).version == 6:
                self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except PermissionError as error:
            raise AccessDenied(
                f"--port {port}: this user may not serve it: name one above 1023"
            ) from error
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"the page cannot be served on --host {host} --port {port} ({reason}): name "
                "another --port, or stop what listens there"
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
        if not self._named_well():
            self._send(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this page is reached as localhost or by a number; --host names another host\n",
            )
            return
        path = unquote(urlsplit(self.path).path, errors="replace")
        if path == SCRIPT:
            script = Path(__file__).with_name("live.js").read_text("utf-8")
            self._send(HTTPStatus.OK, script, "text/javascript")
        elif path == "/health":
            self._send(HTTPStatus.OK, "serving\n")
        elif path in ("/", _PREFIX) or path.startswith(_PREFIX):
            self._send(*self._page(path), "text/html")
        else:
            self._send(HTTPStatus.NOT_FOUND, "there is no such page; the runs are at /runs/\n")

    def _page(self, path: str) -> tuple[HTTPStatus, str]:
        runs = self.server.runs
        name = path.removeprefix(_PREFIX) if path.startswith(_PREFIX) else ""
        if path == "/" and len(folders := runs.folders().value or ()) == 1:
            name = folders[0]
        if name and (seen := runs.run(name)) is not None:
            return HTTPStatus.OK, self._run(name, seen)
        if path not in ("/", _PREFIX):
            said = f"{self.server.uri} holds no run of this name"
            return HTTPStatus.NOT_FOUND, notice("No such run", said, self._served(None))
        listed = runs.all()
        if listed.value is None:
            reading = f"reading {self.server.uri} …"
            return HTTPStatus.OK, notice("Runs", reading, self._served(listed.problem))
        return HTTPStatus.OK, index(self.server.uri, listed.value, self._served(listed.problem))

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
        newest = self.server.runs.names()[:_MOST_LINKS]
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

    def _send(self, status: HTTPStatus, content: str, kind: str = "text/plain") -> None:
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
