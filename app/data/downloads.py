"""Files of a server, and those of a bucket.

They are listed first; a listing gives each file's size and its ETag, and these are the
fingerprint. Then they are fetched one by one while they are read: the next one in the
background while its predecessor is read, which is removed afterwards. So two files of a corpus
are on the disk, whatever its size.
"""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from app.data.data_dir import DataDir, own_folder
from app.data.files import ListedFile
from app.data.patterns import At, What, choose, names_in_common_folder, say_empty
from app.data.retries import Backoff, Sleep
from app.errors import ConfigError, Damaged, Unavailable
from app.failures import disk_failures
from app.process import in_background
from app.stores.s3_answers import http_status, s3_failures
from app.stores.s3_client import RangeIgnored, listing, open_client


class RemoteFiles(ABC):
    """Listed files of one server, in order. A subclass knows how to talk to its kind of server."""

    def __init__(
        self, uri: str, data_dir: Path, alive: Callable[[], None], block: int, sleep: Sleep | None
    ) -> None:
        """`block` is the number of bytes that are fetched at once."""
        self._setting = f"DATASET={uri}"
        place = DataDir(data_dir)
        self._place, self._folder = place.setting, place.downloads
        self._alive, self._block, self._sleep = alive, block, sleep
        self.listed = tuple(self._list(uri))

    @abstractmethod
    def _list(self, uri: str) -> Iterable[ListedFile]:
        """The files that `uri` names, each with its ETag, or its date where there is none."""

    @abstractmethod
    def _open(self, file: ListedFile, offset: int) -> AbstractContextManager[BinaryIO]:
        """The content of `file` from `offset` on.

        Raises Restarted if the server only gives it from the start, ConfigError if it is not
        the listed version any more, NotFound, AccessDenied, Unavailable or Damaged.
        """

    def digests(self) -> Iterable[str]:
        return [f"{file.size} {file.version}" for file in self.listed]

    def paths(self, first: int) -> Generator[Path, None, None]:
        """As `Files.paths`. Raises AccessDenied, Unavailable or ConfigError for DATA_DIR too."""
        stopped = threading.Event()
        with disk_failures(self._place), own_folder(self._folder) as folder:

            def begin(number: int) -> Future[Path]:
                file = self.listed[number]
                target = folder / f"{number:06d}"  # the file's own name may be too long here
                return in_background(lambda: self._fetch(file, target, stopped), "download")

            downloads = map(begin, range(first, len(self.listed)))
            try:
                download = next(downloads, None)
                while download is not None:
                    path = download.result()
                    download = next(downloads, None)
                    yield path
                    path.unlink()
            finally:
                stopped.set()

    def check(self, number: int) -> None:
        """What is read is a copy of the listed version: there is nothing to look at."""
        del number

    def _fetch(self, file: ListedFile, target: Path, stopped: threading.Event) -> Path:
        """Fetch the whole `file` to `target`. A transfer that breaks off goes on where it was.

        Raises what `_open` raises, some of it after several tries; Unavailable once `stopped`
        is set.
        """
        backoff = Backoff(self._sleep)
        furthest = 0
        with disk_failures(self._place), target.open("wb") as output:
            while output.tell() < file.size:
                try:
                    with self._open(file, output.tell()) as content:
                        while block := content.read(self._block):
                            output.write(block)
                            self._alive()
                            if stopped.is_set():
                                raise Unavailable(f"{file.place}: no longer needed")
                    if output.tell() < file.size:
                        raise Unavailable(f"DATASET: {file.place}: the connection broke off")
                except (Restarted, Damaged) as error:
                    output.seek(0)
                    output.truncate()
                    if isinstance(error, Damaged):  # something on the way changed what was sent
                        backoff.failed(error)
                except Unavailable as error:
                    if stopped.is_set():
                        raise
                    if output.tell() > furthest:
                        furthest = output.tell()
                        backoff.worked()
                    backoff.failed(error)
            if output.tell() > file.size:
                raise replaced(file)
        return target


class Restarted(Exception):
    """The server begins at the start of the file again."""


def replaced(file: ListedFile) -> ConfigError:
    return ConfigError(
        f"DATASET: {file.place} was replaced while the corpus was read: a run needs a source that "
        "stays as it is"
    )


class BucketTree:
    """The folders that the keys of a bucket spell.

    An object whose key ends with a slash, or an empty one with the name of a folder, marks that
    folder, as file managers write it, and is no file.
    """

    def __init__(self, bucket: str, sizes: Mapping[str, int]) -> None:
        """`sizes` gives the bytes of each object by its key."""
        self._bucket = bucket
        self._sizes = {tuple(key.split("/")): size for key, size in sizes.items()}
        self._folders: dict[At, set[str]] = {(): set()}
        for at in self._sizes:
            for depth in range(len(at)):
                self._folders.setdefault(at[:depth], set()).add(at[depth])

    def what(self, at: At) -> What | None:
        if at in self._sizes and (self._sizes[at] or at not in self._folders):
            return "file"
        return "folder" if at in self._folders else None

    def entries(self, folder: At) -> Iterable[tuple[str, What]]:
        for name in self._folders[folder]:
            what = self.what((*folder, name))
            if what and (name or what == "folder"):
                yield name, what

    def identity(self, folder: At) -> object:
        return folder

    def place(self, at: At) -> str:
        return f"s3://{self._bucket}/{'/'.join(at)}"

    def size(self, at: At) -> int:
        return self._sizes[at]


class S3Files(RemoteFiles):
    """The object, those in the folder, or those that match the pattern."""

    def _list(self, uri: str) -> Iterable[ListedFile]:
        bucket, _, pattern = uri.partition("://")[2].partition("/")
        if not bucket:
            raise ConfigError(f"{self._setting} names no bucket: s3://bucket/folder")
        self._client, self._endpoint = open_client(self._setting)
        with s3_failures(self._setting, self._endpoint):
            prefix = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
            objects = {item["Key"]: item for item in listing(self._client, bucket, prefix)}
        tree = BucketTree(bucket, {key: item["Size"] for key, item in objects.items()})
        pattern = pattern.rstrip("/")
        found = choose(tree, tuple(pattern.split("/")) if pattern else (), self._setting)
        names = names_in_common_folder(found)
        for key, name in zip(map("/".join, found), names, strict=True):
            uri = f"s3://{bucket}/{key}"
            yield ListedFile(uri, name, uri, objects[key]["Size"], _bare_etag(objects[key]))
        empty = [name for at, name in zip(found, names, strict=True) if not tree.size(at)]
        say_empty(self._setting, empty)

    @contextmanager
    def _open(self, file: ListedFile, offset: int) -> Iterator[BinaryIO]:
        """The SDK compares a whole answer with the checksum that S3 has of it, if there is one."""
        bucket, _, key = file.place.removeprefix("s3://").partition("/")
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        with s3_failures(f"DATASET: {file.place}", self._endpoint):
            try:
                answer = self._client.get_object(
                    Bucket=bucket, Key=key, IfMatch=f'"{file.version}"', **ranged
                )
            except RangeIgnored as error:
                raise Restarted from error
            except ClientError as error:
                if http_status(error) in (412, 416):
                    raise replaced(file) from error
                raise
            with closing(answer["Body"]) as body:
                # Some servers ignore If-Match.
                if _bare_etag(answer) != file.version:
                    raise replaced(file)
                yield body


def _bare_etag(answer: Mapping[str, Any]) -> str:
    """The ETag without quotes: some servers list it without, and answer a GET with them."""
    return str(answer.get("ETag", "")).strip('"')
