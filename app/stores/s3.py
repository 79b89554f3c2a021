"""A store under a prefix of a bucket: on S3, or on any server that speaks its protocol.

Much of the protocol is optional, and is done without where a server does not know it. The SDK adds
a checksum to each upload: `check` finds out whether the server refuses it or stores wrong bytes.
Objects are deleted one by one, since many servers refuse the request for several. Uploads in parts
and copies that the server makes are replaced at their first refusal.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from app.console import redacted
from app.errors import AppError, ConfigError, Damaged, NotFound, Unavailable
from app.stores.buffer_reader import BufferReader
from app.stores.contract import (
    MAX_GET_BYTES,
    RESERVED,
    Data,
    ExclusiveLock,
    HalfWritten,
    ObjectInfo,
    check_key,
    folder_of,
    is_key,
)
from app.stores.limits import DEFAULT_LIMITS, StoreLimits
from app.stores.s3_answers import (
    NO_SENSE,
    error_code,
    http_status,
    knows,
    no_checksums,
    no_conditions,
    not_known,
    refused,
    retried,
    s3_failures,
)
from app.stores.s3_client import (
    COPY,
    IN_ONE_PIECE,
    IN_PARTS,
    TRANSFER,
    RangeIgnored,
    explained_head,
    is_amazons,
    listing,
    open_client,
    transfer,
    until_it_answers,
)
from app.stores.s3_ranges import object_blocks

log = logging.getLogger(__name__)


class S3Store:
    """See `app.stores.contract.Store` for the contract.

    Waits for credentials that are not there yet. Raises what `open_client` raises. `page_size` is
    the number of keys in one answer to a listing.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        page_size: int = 1000,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        self._bucket, self._prefix, self._page_size = bucket, prefix and f"{prefix}/", page_size
        self._conditional, self._quotes_etags, self._deletes = True, True, True
        self._limits = limits
        self._upload_config = self._download_config = TRANSFER
        self._client, self._endpoint = open_client(f"CHECKPOINT_URI: {self.uri}", limits=limits)

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix.rstrip('/')}"

    @property
    def place(self) -> str:
        return self.uri if is_amazons(self._endpoint) else f"{self.uri} at {self._endpoint}"

    @property
    def conditional_writes(self) -> bool:
        return self._conditional

    @property
    def deletes(self) -> bool:
        return self._deletes

    def check(self) -> None:
        key = f"{RESERVED}probe-{secrets.token_hex(8)}"
        until_it_answers(self._reach, self._limits)
        try:
            pause = self._limits.probe_pause
            if not knows(lambda: self._keeps_content(key), no_checksums, pause):
                self._client, _ = open_client(
                    self._place(""), upload_checksums=False, limits=self._limits
                )
                if not self._keeps_content(key):
                    raise ConfigError(
                        f"{self.uri}: {self._endpoint} does not return what was written to it"
                    )
                log.warning(
                    "%s does not know the checksums of uploads: they are left out", self._endpoint
                )
            self._conditional = True
            self._conditional = knows(lambda: self._keeps_conditions(key), no_conditions, pause)
        except BaseException:
            with suppress(AppError):
                self._delete([key])
            raise
        self._deletes = knows(lambda: self._removes(key), refused, pause)

    def get(self, key: str, max_bytes: int = MAX_GET_BYTES) -> tuple[bytes, str]:
        return self._get(check_key(key), max_bytes)

    def etag(self, key: str) -> str | None:
        return self._current_etag(check_key(key))

    def put(self, key: str, data: Data) -> None:
        self._put(check_key(key), data)

    def put_if_absent(self, key: str, content: bytes) -> str | None:
        check_key(key)
        if not self._conditional and self._current_etag(key) is not None:
            return None
        return self._put_on_condition(key, content, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, content: bytes, etag: str) -> str | None:
        check_key(key)
        if not self._conditional and self._current_etag(key) != etag:
            return None
        return self._put_on_condition(key, content, self._if_match(etag))

    def fetch(self, key: str, directory: Path, alive: Callable[[], None] = lambda: None) -> Path:
        path = directory / check_key(key).rsplit("/", 1)[-1]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._head_failures(key):
                try:
                    self._download(key, path, alive)
                except RangeIgnored:
                    self._download_config = IN_ONE_PIECE
                    self._download(key, path, alive)
        except FileNotFoundError as error:
            # A missing object is answered with NoSuchKey. What is missing here is the folder.
            raise Unavailable(f"the download to {path} was removed meanwhile") from error
        return path

    def blocks(self, key: str, start: int, end: int) -> Iterator[bytes]:
        with self._failures(self._place(check_key(key))):
            yield from object_blocks(self._client, self._object(key), start, end)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = folder_of(prefix)
        found: dict[str, ObjectInfo] = {}
        with self._failures(self._place(folder)):
            prefix = self._prefix + folder
            for entry in listing(self._client, self._bucket, prefix, self._page_size):
                key = entry["Key"].removeprefix(self._prefix)
                if is_key(key):
                    found[key] = ObjectInfo(key, entry["Size"], entry.get("ETag", ""))
        yield from (found[key] for key in sorted(found))  # some servers list in another order

    def folders(self) -> Sequence[str]:
        with self._failures(self.uri):
            found = listing(self._client, self._bucket, self._prefix, self._page_size, flat=True)
            keys = [entry["Key"].removeprefix(self._prefix) for entry in found]
        return sorted({name for name, slash, _ in (k.partition("/") for k in keys) if slash})

    def delete(self, keys: Sequence[str]) -> None:
        self._delete([check_key(key) for key in keys])

    def move(self, source_key: str, target_key: str) -> None:
        source = self._object(check_key(source_key))
        target = self._prefix + check_key(target_key)
        with self._head_failures(source_key):
            try:
                transfer(lambda: self._client.copy(source, self._bucket, target, Config=COPY))
            except ClientError as error:
                outage = http_status(error) >= 500 and not not_known(error)
                if error.operation_name == "HeadObject" or outage:
                    raise
                self._copy_through(source, target)
        self._delete([source_key])

    def half_written(self) -> Sequence[HalfWritten]:
        before = datetime.now(UTC) - timedelta(seconds=self._limits.stale_upload)
        pages = self._client.get_paginator("list_multipart_uploads")
        found = []
        with self._housekeeping():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for upload in page.get("Uploads", ()):
                    # Some servers leave the prefix out of account, and list what is others'.
                    if upload["Key"].startswith(self._prefix):
                        key = upload["Key"].removeprefix(self._prefix)
                        began = upload.get("Initiated")
                        stale = began is not None and began < before
                        found.append(HalfWritten(key, 0, stale, upload["UploadId"]))
        return found

    def discard(self, half: HalfWritten) -> None:
        with self._housekeeping():
            self._client.abort_multipart_upload(**self._object(half.key), UploadId=half.upload_id)
            log.info("removed an upload of %s that broke off", self._place(half.key))

    def free_bytes(self) -> int | None:
        return None

    def exclusive_lock(self) -> ExclusiveLock | None:
        return None

    def _reach(self) -> None:
        with self._failures(self.uri):
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _failures(self, place: str) -> AbstractContextManager[None]:
        return s3_failures(f"CHECKPOINT_URI: {place}", self._endpoint)

    @contextmanager
    def _head_failures(self, key: str) -> Iterator[None]:
        """As `_failures`, for work on the object `key` that begins with a HEAD."""
        with self._failures(self._place(key)), explained_head(self._client, **self._object(key)):
            yield

    def _get(self, key: str, max_bytes: int) -> tuple[bytes, str]:
        try:
            return self._get_once(key, max_bytes)
        except Damaged:
            # A bit can flip on the way. An object that is read damaged twice is damaged.
            return self._get_once(key, max_bytes)

    def _get_once(self, key: str, max_bytes: int) -> tuple[bytes, str]:
        with self._failures(self._place(key)):
            answer = self._client.get_object(**self._object(key))
            # `with answer["Body"]` would give the raw stream, which compares no checksum.
            with closing(answer["Body"]) as body:
                content: bytes = body.read(max_bytes + 1)
                if len(content) > max_bytes:
                    raise Damaged(
                        f"{self._place(key)} has more than {max_bytes} bytes: it is not what it "
                        "should be"
                    )
                body.read()  # the checksum is compared only by the read that meets the end
        return content, self._etag(key, answer)

    def _put(self, key: str, data: Data) -> None:
        with self._failures(self._place(key)):
            self._upload(lambda: BufferReader(data), self._prefix + key)

    def _upload(self, opened: Callable[[], Any], full_key: str) -> None:
        """Upload what `opened` gives, which is called again where another way has to be taken."""
        try:
            self._upload_once(opened, full_key)
        except ClientError as error:
            if error.operation_name not in IN_PARTS or not not_known(error):
                raise
            log.info("%s takes no upload in parts: objects go in one piece", self._endpoint)
            self._upload_config = IN_ONE_PIECE
            self._upload_once(opened, full_key)

    def _upload_once(self, opened: Callable[[], Any], full_key: str) -> None:
        with closing(opened()) as content:
            transfer(
                lambda: self._client.upload_fileobj(
                    content, self._bucket, full_key, Config=self._upload_config
                )
            )

    def _download(self, key: str, path: Path, alive: Callable[[], None]) -> None:
        transfer(
            lambda: self._client.download_file(
                self._bucket,
                self._prefix + key,
                str(path),
                Config=self._download_config,
                Callback=lambda _: alive(),
            )
        )

    def _copy_through(self, source: dict[str, str], full_key: str) -> None:
        """Copy by way of this machine, in pieces, for a server that makes no copies itself."""
        self._upload(lambda: self._client.get_object(**source)["Body"], full_key)

    def _put_on_condition(self, key: str, content: bytes, condition: dict[str, str]) -> str | None:
        with self._failures(self._place(key)):
            # 409: two conditional writes met, and S3 asks to send this one again.
            for pause in (*self._limits.conflict_pauses, 0):
                try:
                    return self._put_once(key, content, condition)
                except ClientError as error:
                    if http_status(error) in (304, 412):
                        return self._etag_if_ours(key, content) if retried(error) else None
                    if error_code(error) == "NoSuchKey":
                        return None
                    if http_status(error) != 409:
                        raise
                time.sleep(pause)
        return None

    def _put_once(self, key: str, content: bytes, condition: dict[str, str]) -> str:
        headers = condition if self._conditional else {}
        answer = self._client.put_object(**self._object(key), Body=content, **headers)
        return self._etag(key, answer)

    def _etag(self, key: str, answer: dict[str, Any]) -> str:
        etag = answer.get("ETag")
        if not etag:
            raise Unavailable(
                f"{self._place(key)}: {self._endpoint} answered without an ETag, which S3 does "
                "not. Is AWS_ENDPOINT_URL_S3 right?"
            )
        return str(etag)

    def _etag_if_ours(self, key: str, content: bytes) -> str | None:
        """Whether a refused write, which the SDK had sent twice, was refused for its own sake.

        The first request may have arrived without its answer: then it is what the second one met.
        """
        try:
            stored, etag = self._get(key, max(len(content), MAX_GET_BYTES))
        except (NotFound, Damaged):  # Damaged: the object is larger, so somebody else wrote it
            return None
        return etag if stored == content else None

    def _current_etag(self, key: str) -> str | None:
        """Asked by a HEAD, since the object may be large: an index of tokens, or many rows."""
        try:
            with self._head_failures(key):
                return self._etag(key, self._client.head_object(**self._object(key)))
        except NotFound:
            return None

    def _if_match(self, etag: str) -> dict[str, str]:
        return {"IfMatch": etag if self._quotes_etags else etag.strip('"')}

    def _keeps_content(self, key: str) -> bool:
        """Whether the server takes an object at `key`, and returns what it was given."""
        content = secrets.token_bytes(4096)
        self._put(key, [content])
        return self._get(key, MAX_GET_BYTES)[0] == content

    def _keeps_conditions(self, key: str) -> bool:
        """Whether the server honours both conditions on `key`, which exists."""
        with self._failures(self._place(key)):
            return self._refuses(key, {"IfNoneMatch": "*"}) and self._keeps_if_match(key)

    def _keeps_if_match(self, key: str) -> bool:
        """Also finds out whether to send ETags in quotes: Ceph 16 knows them only without."""
        for self._quotes_etags in (True, False):
            if not self._refuses(key, self._if_match('"0123456789abcdef0123456789abcdef"')):
                return False
            if not self._refuses(key, self._if_match(self._get(key, MAX_GET_BYTES)[1])):
                return True
        return False

    def _refuses(self, key: str, condition: dict[str, str]) -> bool:
        try:
            self._put_once(key, b"probe", condition)
        except ClientError as error:
            if http_status(error) in (304, 412):
                return True
            raise
        return False

    def _delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with suppress(NotFound), self._failures(self._place(key)):
                self._client.delete_object(**self._object(key))

    def _removes(self, key: str) -> bool:
        self._delete([key])
        return True

    @contextmanager
    def _housekeeping(self) -> Iterator[None]:
        """For requests that some servers and policies refuse, and that training can do without."""
        try:
            yield
        except (BotoCoreError, ClientError, *NO_SENSE) as error:
            log.info("%s: an unfinished upload may stay: %s", self.uri, redacted(str(error)))
