"""As much of the Hugging Face hub as an upload through LFS asks for, on loopback.

Xet, which the real hub prefers, is switched off: its server is no part of any package.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tests.support.hubserver import use_endpoint

MAY_WRITE = "hf_maywritemaywrite"
MAY_READ = "hf_mayreadmayread"


@dataclass
class Repositories:
    """What the hub holds: files by repository and branch, and the large ones by SHA-256.

    `private` are the repositories that are, `sent` the large files in the order in which they came.
    `commits_fail` answers each commit with a failure.
    """

    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    sent: list[str] = field(default_factory=list)
    commits_fail: bool = False


@contextmanager
def writable_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, token: str | None
) -> Iterator[Repositories]:
    """The client talks to a hub that is empty at first, with this HF_TOKEN."""
    held = Repositories()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(held))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        use_writable(monkeypatch, f"http://127.0.0.1:{server.server_port}", cache, token)
        yield held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_writable(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, token: str | None) -> None:
    """What HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_DISABLE_XET do, after the import."""
    from huggingface_hub import constants

    use_endpoint(monkeypatch, url, cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def _handler(held: Repositories) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            owner, name, _, branch, file = self._words(5)
            content = held.files.get(f"{owner}/{name}", {}).get(branch, {}).get(file)
            if content is None:
                self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            else:
                self._answer(200, {}, {"ETag": '"1"', "X-Repo-Commit": "a" * 40})

        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.path != "/api/whoami-v2" or token not in (MAY_WRITE, MAY_READ):
                self._answer(401, {"error": "Invalid credentials"})
            else:
                self._answer(200, {"name": "o", "type": "user"})

        def do_PUT(self) -> None:
            content = self._body()
            digest = hashlib.sha256(content).hexdigest()
            assert self.path == f"/large/{digest}"
            held.large[digest] = content
            held.sent.append(digest)
            self._answer(200, {})

        def do_POST(self) -> None:
            body, path = self._body(), unquote(self.path.partition("?")[0])
            if path == "/api/validate-yaml":
                self._answer(200, {"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {MAY_WRITE}":
                self._answer(403, {"error": "You don't have the rights"})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path.endswith("/info/lfs/objects/batch"):
                self._answer(200, {"transfer": "basic", "objects": self._wanted(json.loads(body))})
            else:
                self._change(path, body)

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked['organization']}/{asked['name']}"
            if name in held.files:
                self._answer(409, {"url": f"{self._url}/{name}", "error": "exists"})
                return
            held.files[name] = {"main": {}}
            if asked.get("private") or asked.get("visibility") == "private":
                held.private.add(name)
            self._answer(200, {"url": f"{self._url}/{name}"})

        def _wanted(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
            return [
                {**one, "actions": {"upload": {"href": f"{self._url}/large/{one['oid']}"}}}
                if one["oid"] not in held.large
                else one
                for one in asked["objects"]
            ]

        def _change(self, path: str, body: bytes) -> None:
            _, _, owner, name, what, branch = path.strip("/").split("/", 5)
            branches = held.files[f"{owner}/{name}"]
            if what == "branch":
                new = branch not in branches
                branches.setdefault(branch, dict(branches["main"]))
                self._answer(200 if new else 409, {})
            elif what == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            elif held.commits_fail:
                self._answer(520, {})
            else:
                assert what == "commit"
                branches[branch] |= dict(_committed(held, body))
                self._answer(200, {"commitUrl": f"{self._url}/c/1", "commitOid": "b" * 40})

        @property
        def _url(self) -> str:
            return f"http://{self.headers['Host']}"

        def _words(self, count: int) -> list[str]:
            return unquote(self.path).strip("/").split("/", count - 1)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(
            self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None
        ) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


def _committed(held: Repositories, body: bytes) -> Iterator[tuple[str, bytes]]:
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "file":
            yield value["path"], base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            yield value["path"], held.large[value["oid"]]
