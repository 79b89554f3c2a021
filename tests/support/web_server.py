"""A web server on loopback that answers as a test tells it to."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Web:
    """`files` by name, at `/STATUS/name`, which answers with that status. `headers` are sent too.

    A name in `moved` is answered with a redirection to that place.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[str] = []  # ranges that were asked for
        self.agents: list[str] = []
        self.ranges = True
        self.tags = True
        self.cut_after: int | None = None  # bytes; then the connection breaks off
        self.uri = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        _, status, name = unquote(urlsplit(request.path).path).split("/")
        content = self.files.get(name, b"")
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        asked = request.headers.get("Range", "")
        self.requests.append(asked)
        self.agents.append(request.headers.get("User-Agent", ""))
        if name in self.moved:
            status = "302"
        elif request.headers.get("If-Match", tag) != tag:
            status = "412"
        if status != "200":
            request.send_response(int(status))
            if name in self.moved:
                request.send_header("Location", self.moved[name])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.ranges and asked:
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1 if last else None]
            request.send_response(206 if part else 416)
            end = int(first) + len(part) - 1
            span = f"{first}-{end}" if part else "*"
            request.send_header("Content-Range", f"bytes {span}/{len(content)}")
        else:
            part = content
            request.send_response(200)
        request.send_header("Content-Length", str(len(part)))
        if self.tags:
            request.send_header("ETag", tag)
        for header, value in self.headers.items():
            request.send_header(header, value)
        request.end_headers()
        request.wfile.write(part[: self.cut_after])


@contextmanager
def web_server() -> Iterator[Web]:
    told = Web()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            told.answer(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    told.uri = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
