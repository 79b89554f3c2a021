"""The stack's object store: SeaweedFS with a key of its own, a bucket, and writes that are synced.

    python scripts/object_store.py --folder /data --key /key/credentials     # until SIGTERM
    python scripts/object_store.py --healthy                                 # exit 0 or 1

The first start makes a key up, and writes it to the key file, in the form that
AWS_SHARED_CREDENTIALS_FILE names. Later starts take what is there. Needs `weed`
(requirements-store.txt) and nothing of Python but its standard library.
"""

import argparse
import configparser
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

BUCKETS = "/buckets/"  # where the server's own file system has them
_START_SECONDS = 60.0


class StoreError(Exception):
    """The server ended, or does not do what it was asked for."""


@dataclass(frozen=True)
class Ports:
    """Of the server's parts; gRPC listens 10,000 above each."""

    s3: int = 8333
    filer: int = 8888
    master: int = 9333
    volume: int = 9340
    admin: int = 23646


@dataclass(frozen=True)
class ObjectStore:
    """A server with its objects in `folder`. All its parts listen on `address`.

    Only the S3 port asks for a key: the address must be one that no neighbour reaches.
    """

    folder: Path
    bucket: str = "checkpoints"
    address: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)

    def start(
        self, key: tuple[str, str], output: IO[bytes] | None = None
    ) -> "subprocess.Popen[bytes]":
        """A server with its bucket, ready for use; its log goes to `output`. Raises StoreError."""
        environment = {
            # Without it, a gigabyte of uploads leaves nearly as much memory in use.
            "GOMEMLIMIT": "256MiB",
            **os.environ,
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
        }
        server = subprocess.Popen(
            self._command(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
        )
        try:
            self._wait_until(server, self._has_bucket, "has no bucket")
            self._sync_writes()
            self._wait_until(server, self.healthy, "is not ready")
        except BaseException:
            server.terminate()
            server.wait()
            raise
        return server

    def healthy(self) -> bool:
        """Whether S3 answers, the bucket is there, and what is written to it is synced."""
        try:
            self._get(self.ports.s3, "/healthz")
            rules = json.loads(self._get(self.ports.filer, "/etc/seaweedfs/filer.conf"))
        except (OSError, ValueError):
            return False
        locations = rules.get("locations") if isinstance(rules, dict) else None
        synced = [
            rule.get("locationPrefix")
            for rule in locations or ()
            if isinstance(rule, dict) and rule.get("fsync")
        ]
        return BUCKETS in synced and self._has_bucket()

    def _command(self) -> list[str]:
        options = {
            "dir": self.folder,
            "bucket": self.bucket,
            "ip": "127.0.0.1",  # by which the parts know each other, whatever a restart changes
            "ip.bind": self.address,
            "s3.port": self.ports.s3,
            "filer.port": self.ports.filer,
            "master.port": self.ports.master,
            "volume.port": self.ports.volume,
            "admin.port": self.ports.admin,
            "admin.ui": "false",
            "webdav": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            # A bucket takes a whole one, and what was deleted is freed one by one.
            "master.volumeSizeLimitMB": 64,
            "master.telemetry": "false",
        }
        return ["weed", "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _sync_writes(self) -> None:
        """Without it, a power cut takes the last seconds of what was acknowledged."""
        command = ["weed", "shell", f"-master=127.0.0.1:{self.ports.master}"]
        command.append(f"-filer=127.0.0.1:{self.ports.filer}")
        rule = f"fs.configure -locationPrefix={BUCKETS} -fsync -apply\n"
        done = subprocess.run(
            command, input=rule, text=True, capture_output=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise StoreError(f"the server takes no rule for syncing: {done.stdout}{done.stderr}")

    def _wait_until(
        self, server: "subprocess.Popen[bytes]", holds: Callable[[], bool], what: str
    ) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not holds():
            if server.poll() is not None:
                raise StoreError(f"the server ended with {server.returncode}")
            if time.monotonic() > deadline:
                raise StoreError(f"the server {what} after {_START_SECONDS:.0f} s")
            time.sleep(0.05)

    def _has_bucket(self) -> bool:
        try:
            self._get(self.ports.filer, f"{BUCKETS}{self.bucket}/")
        except OSError:  # HTTPError too: not there yet
            return False
        return True

    def _get(self, port: int, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            content: bytes = answer.read()
        return content


def key_of(file: Path) -> tuple[str, str]:
    """The store's key and secret: of `file`, or made now and written there. Raises OSError."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(file, "utf-8")
    if parser.has_section("default"):
        return parser["default"]["aws_access_key_id"], parser["default"]["aws_secret_access_key"]
    key, secret = f"stack-{secrets.token_hex(8)}", secrets.token_urlsafe(30)
    parser["default"] = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as text:
        parser.write(text)
    partial.replace(file)
    return key, secret


def serve(store: ObjectStore, key: tuple[str, str]) -> int:
    """Run the server until it ends or this process is asked to; its exit code, 0 if asked."""
    asked = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server = store.start(key)
    print(f"ready: bucket {store.bucket}, port {store.ports.s3}", flush=True)
    try:
        return server.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        server.terminate()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/data"), help="where objects lie")
    parser.add_argument("--key", type=Path, default=Path("/key/credentials"), help="the key file")
    parser.add_argument("--bucket", default="checkpoints")
    parser.add_argument("--address", default="127.0.0.1", help="to listen on")
    parser.add_argument("--healthy", action="store_true", help="exit 0 if a running one is ready")
    arguments = parser.parse_args()
    store = ObjectStore(arguments.folder, arguments.bucket, arguments.address)
    if arguments.healthy:
        return 0 if store.healthy() else 1
    try:
        return serve(store, key_of(arguments.key))
    except (StoreError, OSError, configparser.Error) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
