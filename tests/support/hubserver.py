"""As much of the Hugging Face hub as its clients ask for, on loopback.

Repositories: o/good holds files, and so does o/private for who shows TOKEN; o/gated, o/missing,
o/forbidden and o/busy answer as the real hub does for such repositories (its X-Error-Code
header tells them apart).
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest

REVISION = "a" * 40
TOKEN = "hf_rightrightright"
_REFUSALS = {
    "missing": (401, "RepoNotFound"),
    "forbidden": (403, ""),
    "busy": (503, ""),
}


class Requests(list[str]):
    """The paths that were asked for. `failing` says for which of them the hub is down."""

    failing: Callable[[str], bool] = staticmethod(lambda path: False)


@contextmanager
def hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, files: Mapping[str, bytes]
) -> Iterator[Requests]:
    """The clients talk to a hub that holds `files` in o/good. Yields the requested paths."""
    requests = Requests()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(files, requests))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}", cache)
    try:
        yield requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do, for libraries that are imported already."""
    import datasets.config
    from huggingface_hub import HfFileSystem, constants

    HfFileSystem.clear_instance_cache()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(
        datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"))


def _handler(files: Mapping[str, bytes], requests: Requests) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:  # paths-info
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            entries = [entry for path in paths for entry in _entries(files, path)]
            self._answer(200, json.dumps(entries).encode())

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            requests.append(path)
            if requests.failing(path):
                self._answer(502, b"")
                return
            if "/o/private" in path and not self._may_see_private():
                return
            for name, (status, code) in _REFUSALS.items():
                if f"/o/{name}" in path:
                    known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                    told = 404 if name == "missing" and known else status
                    self._answer(told, b"{}", {"X-Error-Code": code} if code else {})
                    return
            if "/o/gated" in path and ("auth-check" in path or "/resolve/" in path):
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif "/tree/" in path:
                inside = path.partition(f"/tree/{REVISION}")[2].strip("/")
                self._answer(200, json.dumps(list(_below(files, inside))).encode())
            elif "/resolve/" in path:
                self._file(path.partition("/resolve/")[2].partition("/")[2])
            elif path.startswith("/api/"):
                self._answer(200, json.dumps(_info(files, path)).encode())
            else:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def _may_see_private(self) -> bool:
            """Answers as the real hub: to nobody in particular, a private repository is missing."""
            shown = self.headers.get("Authorization")
            if shown is None:
                self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif shown != f"Bearer {TOKEN}":
                message = "Invalid credentials in Authorization header"
                self._answer(401, b"{}", {"X-Error-Message": message})
            return shown == f"Bearer {TOKEN}"

        def _file(self, name: str) -> None:
            # The clients' cache takes files with the same ETag for the same content.
            etag = hashlib.sha256(files.get(name, b"")).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if name not in files:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound", **headers})
                return
            data = files[name]
            if asked := self.headers.get("Range"):
                first, _, last = asked.partition("=")[2].partition("-")
                part = data[int(first) : int(last or len(data)) + 1]
                end = int(first) + len(part) - 1
                headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
                self._answer(206, part, headers)
            else:
                self._answer(200, data, headers)

        def _answer(
            self, status: int, body: bytes, headers: Mapping[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _info(files: Mapping[str, bytes], path: str) -> dict[str, object]:
    gated = "/o/gated" in path
    return {
        "id": f"o/{path.partition('/o/')[2].partition('/')[0]}",
        "sha": REVISION,
        "gated": "manual" if gated else False,
        "private": False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "siblings": [{"rfilename": name} for name in files],
    }


def _entries(files: Mapping[str, bytes], path: str) -> Iterator[dict[str, object]]:
    if path in files:
        yield {"type": "file", "oid": "1", "path": path, "size": len(files[path])}
    elif any(name.startswith(f"{path}/") for name in files):
        yield {"type": "directory", "oid": "1", "path": path}


def _below(files: Mapping[str, bytes], folder: str) -> Iterator[dict[str, object]]:
    for name in files:
        if name.startswith(folder):
            yield from _entries(files, name)
