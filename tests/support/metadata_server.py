"""As much of the metadata servers of AWS and GCP as spot notices need, on loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, bytes]

AWS_NOTICE = json.dumps({"action": "terminate", "time": "2026-11-24T12:02:00Z"}).encode()


@dataclass
class FakeCloud:
    """Answers as a machine's own cloud does; a test sets `noticed`, or replies in its place."""

    address: str = ""
    noticed: bool = False
    tokens: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    instead: Callable[[str], Reply | None] = lambda _: None

    def expire_tokens(self) -> None:
        self.tokens = ["expired" for _ in self.tokens]

    def environment(self) -> dict[str, str]:
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.address}/",
            "GCE_METADATA_HOST": self.address,
        }


@contextmanager
def fake_cloud() -> Iterator[FakeCloud]:
    cloud = FakeCloud()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cloud))
    cloud.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(cloud: FakeCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_PUT(self) -> None:
            self._reply(self._token)

        def do_GET(self) -> None:
            self._reply(self._aws if self.path.startswith("/latest/") else self._gcp)

        def _token(self) -> Reply:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if self.path != "/latest/api/token" or not seconds.isdigit():
                return 400, b""
            cloud.tokens.append(f"token-{len(cloud.tokens)}==")
            return 200, cloud.tokens[-1].encode()

        def _aws(self) -> Reply:
            if self.headers.get("X-aws-ec2-metadata-token") not in cloud.tokens:
                return 401, b""
            if self.path != "/latest/meta-data/spot/instance-action" or not cloud.noticed:
                return 404, b"not found"
            return 200, AWS_NOTICE

        def _gcp(self) -> Reply:
            if self.headers.get("Metadata-Flavor") != "Google":
                return 403, b""
            if self.path != "/computeMetadata/v1/instance/preempted":
                return 404, b""
            return 200, b"TRUE" if cloud.noticed else b"FALSE"

        def _reply(self, usual: Callable[[], Reply]) -> None:
            cloud.requests.append(f"{self.command} {self.path}")
            status, body = cloud.instead(self.path) or usual()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
