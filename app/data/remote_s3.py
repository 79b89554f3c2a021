"""Objects in a bucket as files of a corpus."""

import fnmatch
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from botocore.exceptions import ClientError

from app.data.remote import BLOCK, RemoteFile, changed
from app.stores.s3_client import http_status, open_client, s3_failures


class S3Objects:
    """The objects of one bucket."""

    def __init__(self, setting: str) -> None:
        """`setting` is like "DATASET=s3://bucket/prefix", for messages."""
        self._setting = setting
        self._client, self._endpoint = open_client(setting)

    def list(self, uri: str, suffixes: Sequence[str]) -> list[RemoteFile]:
        """The object, those below the prefix, or those that match the glob; sorted by key.

        Of a prefix or glob, the objects that end with one of `suffixes`.
        """
        bucket, _, pattern = uri.removeprefix("s3://").partition("/")
        with s3_failures(self._setting, self._endpoint):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=re.split(r"[*?\[]", pattern, maxsplit=1)[0]
            )
            objects = {item["Key"]: item for page in pages for item in page.get("Contents", ())}
        if any(mark in pattern for mark in "*?["):
            keys = [key for key in objects if fnmatch.fnmatchcase(key, pattern)]
        elif pattern in objects:
            keys = [pattern]
        else:
            inside = f"{pattern.rstrip('/')}/" if pattern else ""
            keys = [key for key in objects if key.startswith(inside)]
        if pattern not in keys:
            keys = [key for key in keys if key.endswith(tuple(suffixes))]
        folders = {posixpath.dirname(f"/{key}") for key in keys}
        root = posixpath.commonpath(folders) if folders else "/"
        return [
            RemoteFile(
                uri=f"s3://{bucket}/{key}",
                name=posixpath.relpath(f"/{key}", root),
                size=objects[key]["Size"],
                version=_etag(objects[key]),
            )
            for key in sorted(keys)
        ]

    @contextmanager
    def open(self, file: RemoteFile, offset: int) -> Iterator[Iterator[bytes]]:
        """As `Remote.open`. Whole answers are compared with the checksum that S3 has, if any."""
        bucket, _, key = file.uri.removeprefix("s3://").partition("/")
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with s3_failures(f"DATASET: {file.uri}", self._endpoint):
            try:
                answer = self._client.get_object(
                    Bucket=bucket, Key=key, IfMatch=f'"{file.version}"', **ranged
                )
            except ClientError as error:
                if http_status(error) in (412, 416):
                    raise changed(file) from error
                raise
            with closing(answer["Body"]) as body:
                # Some servers know no If-Match.
                if _etag(answer) != file.version:
                    raise changed(file)
                yield iter(lambda: body.read(BLOCK), b"")


def _etag(answer: Mapping[str, Any]) -> str:
    """Without quotes: some servers list ETags without, and answer with them."""
    return str(answer.get("ETag", "")).strip('"')
