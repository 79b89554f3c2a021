"""Answers in the place of an S3 server: refusals, outages, and servers that know less."""

from collections.abc import Callable, Iterable
from typing import Any

from tests.s3server import WsgiApp

Answer = tuple[int, str]
Answering = Callable[[dict[str, Any]], Answer | None]


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
        }
        start_response(f"{status} Scripted", list(headers.items()))
        return [body]
