"""Another S3 server behind the tests' own front door, so that answers can still be scripted.

    S3_UNDER_TEST=http://127.0.0.1:9000 python -m pytest tests/stores/test_contract.py …

The server has to know the key `testing` with the secret `testing-secret`.
"""

import http.client
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Forwarded:
    """WSGI application: every request as it came, signature and host included, to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._address = (parts.hostname or "", parts.port or 80)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_") and name != "HTTP_EXPECT"
        }
        headers["Content-Length"] = str(len(body))
        if environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = environ["CONTENT_TYPE"]
        server = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            server.request(method, environ["RAW_URI"], body, headers)
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        passed = [h for h in answer.getheaders() if h[0].lower() not in _HOP_BY_HOP]
        length = answer.getheader("Content-Length") if method == "HEAD" else str(len(content))
        if length is not None:
            passed.append(("Content-Length", length))
        start_response(f"{answer.status} {answer.reason}", passed)
        return [content]
