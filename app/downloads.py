"""Files that a URI names, fetched into DATA_DIR/downloads; what is there is not fetched again."""

import fnmatch
import functools
import hashlib
import json
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.errors import AccessDenied, ConfigError, NotFound, Unavailable
from app.failures import disk_failures
from app.locks import locked_folder

_TIMEOUT = 60.0  # seconds of silence
# An SSLError in the middle of an answer carries errno 1, which is EPERM to a disk.
_NO_ANSWER = (
    urllib.error.URLError,
    HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)


def download(uri: str, data_dir: Path, suffixes: Sequence[str]) -> list[Path]:
    """Local copies of the files at `uri`: s3:// (object, prefix or glob), http:// or https://.

    Of a prefix, the objects that end with one of `suffixes`. Raises ConfigError (another
    scheme), NotFound, AccessDenied, Unavailable.
    """
    scheme = urlsplit(uri).scheme
    with disk_failures(f"DATA_DIR={data_dir}"):
        folder = data_dir / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(folder, waiting=lambda: None):
            if scheme == "s3":
                return _from_s3(uri, folder, suffixes)
            if scheme in ("http", "https"):
                return [_from_web(uri, folder)]
    raise ConfigError(f"DATASET={uri}: URIs start with s3://, https://, http:// or file://")


def _from_s3(uri: str, folder: Path, suffixes: Sequence[str]) -> list[Path]:
    from botocore.exceptions import ClientError

    from app.s3_client import explain_head, open_client, s3_failures, transfer

    setting = f"DATASET={uri}"
    bucket, _, pattern = uri.removeprefix("s3://").partition("/")
    is_glob = any(mark in pattern for mark in "*?[")
    client, endpoint = open_client(setting)
    with s3_failures(setting, endpoint):
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        )
        objects = {
            item["Key"]: item.get("ETag", "") for page in pages for item in page.get("Contents", [])
        }
        if is_glob:
            keys = [key for key in objects if fnmatch.fnmatchcase(key, pattern)]
        elif pattern in objects:
            keys = [pattern]
        else:
            inside = f"{pattern.rstrip('/')}/" if pattern else ""
            keys = [key for key in objects if key.startswith(inside)]
        if pattern not in keys:
            keys = [key for key in keys if key.endswith(tuple(suffixes))]
        if not keys:
            raise NotFound(f"{setting}: no object matches (of {', '.join(suffixes)})")
        keys.sort()
        # Objects that are replaced in the bucket get a new folder, and so are fetched again.
        version = _short_hash(json.dumps([uri, *((key, objects[key]) for key in keys)]))
        (folder / version).mkdir(exist_ok=True)
        paths = []
        for index, key in enumerate(keys):
            path = folder / version / f"{index:05d}-{key.rsplit('/', 1)[-1]}"
            if not path.is_file():
                partial = path.with_name(path.name + ".partial")
                try:
                    transfer(functools.partial(client.download_file, bucket, key, str(partial)))
                except ClientError as error:
                    explain_head(client, error, bucket, key)
                    raise
                partial.replace(path)
            paths.append(path)
    return paths


def _from_web(uri: str, folder: Path) -> Path:
    setting = f"DATASET={uri}"
    name = unquote(urlsplit(uri).path).rsplit("/", 1)[-1] or "download"
    path = folder / _short_hash(uri) / name
    if path.is_file():
        return path
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(name + ".partial")
    try:
        with urllib.request.urlopen(uri, timeout=_TIMEOUT) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            length = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise AccessDenied(f"{setting}: the server refuses access ({error.code})") from error
        if error.code in (404, 410):
            raise NotFound(f"{setting}: there is no such file ({error.code})") from error
        raise Unavailable(f"{setting}: the server answers {error.code}") from error
    except _NO_ANSWER as error:
        raise Unavailable(f"{setting} cannot be reached: {error}") from error
    # A connection that closes early looks like the end of the file.
    if length is not None and int(length) != partial.stat().st_size:
        raise Unavailable(f"{setting}: the connection broke off: start again")
    partial.replace(path)
    return path


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
