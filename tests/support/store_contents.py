"""What lies in a store, listed and not listed."""

import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3

from app.stores.contract import Store


def keys(store: Store, prefix: str = "") -> list[str]:
    """The keys of a listing, in its order."""
    return [info.key for info in store.list(prefix)]


def leave_half_written(store: Store, key: str) -> None:
    """Leave what a writer leaves that is killed while it writes `key`."""
    uri = urlsplit(store.uri)
    if uri.scheme == "file":
        partial = (Path(uri.path) / key).with_name(f".store-partial-0-{secrets.token_hex(8)}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"half")
        return
    client: Any = boto3.session.Session().client("s3")
    client.create_multipart_upload(Bucket=uri.netloc, Key=f"{uri.path[1:]}/{key}")
