"""Answers in the place of an S3 server: refusals, outages, and servers that know less."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.s3server import WsgiApp

Answer = tuple[int, str]
Answering = Callable[[dict[str, Any]], Answer | None]


class Held:
    """Keeps requests of `method` on some paths waiting, from the first until `release`.

    `then` is called once, when the first one has come in. Their bodies are not read: a
    client that uploads gets stuck in the middle.
    """

    def __init__(
        self, method: str, matches: Callable[[str], bool], then: Callable[[], None]
    ) -> None:
        self._method, self._matches, self._then = method, matches, then
        self._lock, self._released = threading.Lock(), threading.Event()
        self.came = False

    def release(self) -> None:
        self._released.set()

    def __call__(self, environ: dict[str, Any]) -> Answer | None:
        if environ["REQUEST_METHOD"] == self._method and self._matches(environ["PATH_INFO"]):
            with self._lock:
                first, self.came = not self.came, True
            if first:
                self._then()
            self._released.wait(60)
        return None


class Interposed:
    """WSGI middleware that asks `answering` first: (status, body), or None for the server's own.

    `requests` has the method and the path of what came in.
    """

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self.reset()

    def reset(self) -> None:
        self.answering: Answering = lambda environ: None
        self.requests: list[str] = []
        self.withheld = 0  # bytes that an answer announces and does not deliver
        self.headers: dict[str, str] = {}  # that an answer has beside its own

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        answer = self.answering(environ)
        if answer is None:
            return self._app(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, text = answer
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()
        headers = {
            "Content-Type": "application/xml",
            "ETag": '"0"',
            "Content-Length": str(len(body) + self.withheld),
            **self.headers,
        }
        start_response(f"{status} Scripted", list(headers.items()))
        return [body]


def failing_at(*endings: str) -> Answering:
    """500 for whoever reads an object whose key ends so, as after a power cut."""

    def answering(environ: dict[str, Any]) -> Answer | None:
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        hit = reads and environ["PATH_INFO"].endswith(endings)
        return (500, "<Error><Code>InternalError</Code></Error>") if hit else None

    return answering
