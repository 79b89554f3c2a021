"""An S3 server for machines that reach a package registry but no image registry.

moto keeps everything in memory. It tests the condition of a conditional write and then
writes, in threads, so that two writers can both win; the lock here makes the pair atomic,
as the stack's own server does.

    python tests/support/s3server.py PORT
"""

import io
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

WsgiApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


class AtomicConditionalWrites:
    """WSGI middleware: at most one write that carries a condition runs at a time."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        conditional = "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ
        if conditional and environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            # A client that is paused in the middle of its request must not hold the lock.
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            with self._lock:
                return list(self._app(environ, start_response))
        return self._app(environ, start_response)


if __name__ == "__main__":
    s3 = AtomicConditionalWrites(DomainDispatcherApplication(create_backend_app))
    run_simple("0.0.0.0", int(sys.argv[1]), s3, threaded=True)
