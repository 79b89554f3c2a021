"""S3 through boto3: a client that has credentials, and that believes only whole answers.

Credentials, region and endpoint are boto3's own: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3 and so on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.exceptions import ClientError

from app.console import redacted
from app.errors import NoCredentials, Unavailable
from app.process import in_background
from app.stores.limits import DEFAULT_LIMITS, StoreLimits
from app.stores.s3_answers import NO_SENSE, PATH_FORBIDDEN, s3_failures, unusable

_TRIES = 3

_DELETES = {"DeleteObject", "AbortMultipartUpload"}  # answered 204, or 200 by some servers
_ANSWERED_WITH_ETAG = {"GetObject", "HeadObject", "PutObject", "UploadPart"}
# What an answer to an operation always holds: API reference, "Response Syntax" of each.
_ALWAYS_HOLDS = {
    "ListObjectsV2": b"ListBucketResult",
    "ListMultipartUploads": b"ListMultipartUploadsResult",
    "CreateMultipartUpload": b"UploadId",
    "CompleteMultipartUpload": b"ETag",
    "CopyObject": b"ETag",
    "UploadPartCopy": b"ETag",
}
T = TypeVar("T")

log = logging.getLogger(__name__)

_MIB = 2**20
# At most about 150 MiB of parts are in memory, however large the object is.
TRANSFER = TransferConfig(
    multipart_threshold=8 * _MIB,
    multipart_chunksize=8 * _MIB,
    max_concurrency=8,
    preferred_transfer_client="classic",
)
# The server copies by itself. It copies large objects in parts, so that one request stays below
# the read timeout and below S3's limit of 5 GB.
COPY = TransferConfig(multipart_threshold=256 * _MIB, multipart_chunksize=256 * _MIB)
IN_ONE_PIECE = TransferConfig(multipart_threshold=2**40, preferred_transfer_client="classic")
IN_PARTS = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload")


def open_client(
    place: str, *, upload_checksums: bool = True, limits: StoreLimits = DEFAULT_LIMITS
) -> tuple[Any, str]:
    """An S3 client that several threads may use, and its endpoint (URL).

    Contacts nobody but the source of the credentials, for which it waits a while. Raises
    NoCredentials, AccessDenied where they are refused outright, and ConfigError for AWS settings
    that boto3 cannot use; `place` begins the message.
    """
    config = Config(
        connect_timeout=10,  # seconds; three tries on a dead endpoint take half a minute
        read_timeout=limits.read_timeout,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=40,
        user_agent_extra="smollm2-spot-trainer",
        request_checksum_calculation=None if upload_checksums else "when_required",
    )
    session = _with_credentials(place, limits)
    with s3_failures(place, ""):
        try:
            client: Any = session.client("s3", config=config)
        except ValueError as error:
            raise unusable(place, redacted(str(error))) from error
        credentials = session.get_credentials()
    events, addressing = client.meta.events, _Addressing()
    events.register("before-send.s3", _without_expect)
    events.register("before-parse.s3", _whole)
    events.register("before-sign.s3", lambda **_: _look_at(credentials))
    events.register("before-sign.s3", addressing.apply)
    events.register("needs-retry.s3.GetObject", _in_range)
    events.register("needs-retry.s3", _say_silence)
    events.register("needs-retry.s3", addressing.learn)
    return client, redacted(str(client.meta.endpoint_url))


def is_amazons(endpoint: str) -> bool:
    """Whether `endpoint` (URL) is one of Amazon's, behind all of which a bucket is the same."""
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _with_credentials(place: str, limits: StoreLimits) -> Session:
    """A session that has credentials, which can come later than the process.

    A metadata server boots as long as the machine does, and a new role takes a while to spread.
    boto3's default session is shared, and not safe to use from several threads.
    """
    deadline, said = time.monotonic() + limits.credentials_wait, False
    while True:
        try:
            with s3_failures(place, "the source of credentials"):
                session = Session()
                credentials = session.get_credentials()
                if credentials is None:
                    raise aws.NoCredentialsError
                _look_at(credentials)
                return session
        except NoCredentials as error:
            if time.monotonic() >= deadline:
                raise
            if not said:
                log.warning("%s (looked for again for %g s)", error, limits.credentials_wait)
            said = True
        time.sleep(limits.credentials_pause)


def listing(
    client: Any, bucket: str, prefix: str, page_size: int = 1000, *, flat: bool = False
) -> Iterator[Any]:
    """What a listing tells of each object below `prefix`, in the server's order, from all pages.

    A `flat` one tells of a folder by one key, which ends with its slash, and not of what is in it.
    To be used inside `s3_failures`. Raises KeyError where the server tells that there is more, and
    not how to ask for it: the SDK's own pages would just end there.
    """
    following: dict[str, str] = {}
    way = {"Delimiter": "/"} if flat else {}
    while True:
        page = client.list_objects_v2(
            Bucket=bucket, Prefix=prefix, MaxKeys=page_size, **way, **following
        )
        folders = ({"Key": folder["Prefix"]} for folder in page.get("CommonPrefixes", ()))
        entries = [*page.get("Contents", ()), *folders]
        # Some servers leave the prefix out of account.
        yield from (entry for entry in entries if entry["Key"].startswith(prefix))
        cut = len(entries) >= page_size or "NextContinuationToken" in page
        if not page.get("IsTruncated", cut):
            return
        token = page["NextContinuationToken"]
        if following.get("ContinuationToken") == token:
            raise ValueError("the pages of a listing do not end")
        following = {"ContinuationToken": token}


def _look_at(credentials: Any) -> None:
    """Fetch credentials that come from elsewhere, now: some sources raise bare OSErrors.

    The error then says what it is about, before it mixes with those of the request's own files.
    """
    try:
        credentials.get_frozen_credentials()
    except (OSError, *NO_SENSE) as error:
        raise aws.CredentialRetrievalError(
            provider=credentials.method, error_msg=str(error)
        ) from error


class _Addressing:
    """Puts the bucket into the host's name for a server that forbids it in the path."""

    def __init__(self) -> None:
        self._virtual = False

    def learn(self, response: Any, attempts: int, endpoint: Any, **_: Any) -> int | None:
        """Send the first request that is refused for this reason again, at once."""
        code = response[1].get("Error", {}).get("Code") if response else None
        if code not in PATH_FORBIDDEN or attempts > 1 or _is_address(endpoint.host):
            return None
        if not self._virtual:
            log.info("%s wants the bucket in the host's name", redacted(endpoint.host))
        self._virtual = True
        return 0

    def apply(self, request: Any, **_: Any) -> None:
        if self._virtual:
            parts = urlsplit(request.url)
            bucket, _, key = parts.path.removeprefix("/").partition("/")
            request.url = parts._replace(netloc=f"{bucket}.{parts.netloc}", path=f"/{key}").geturl()


def _is_address(url: str) -> bool:
    """Whether the host of `url` is an IP address, in front of which no bucket can stand."""
    try:
        ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def transfer(work: Callable[[], T]) -> T:
    """Do `work`, which is a managed transfer of the SDK, in another thread.

    The SDK's transfer manager holds back every exception, also one that a signal raised, until
    its requests are answered. In the caller's thread, a server that went silent would keep an
    interrupted process alive for minutes.
    """
    return in_background(work, "s3-transfer").result()


@contextmanager
def explained_head(client: Any, **place: str) -> Iterator[None]:
    """Ask again with a GET where a HEAD fails: the answer to a HEAD has no body for a reason."""
    try:
        yield
    except ClientError as error:
        if error.operation_name == "HeadObject":
            client.get_object(**place)["Body"].close()
        raise


def _without_expect(request: Any, **_: Any) -> None:
    """Send uploads without `Expect: 100-continue`. The signature does not cover that header.

    With it, botocore loops endlessly on a connection that ends within the interim answer, and a
    connection on which an upload was refused stalls at its next request:
    https://github.com/boto/botocore/issues/3755
    """
    request.headers.pop("Expect", None)


def _whole(operation_model: Any, response_dict: Mapping[str, Any], **_: Any) -> None:
    """Raise for a successful answer that broke off, or that is no answer of S3's.

    Python accepts headers that just stop, and botocore compares only the length of streamed
    bodies. Without this check an object would look damaged, and a listing empty. S3 announces the
    length of every successful answer, or sends it in chunks: RFC 9112, section 6.3. A proxy may
    answer any request with a page of its own, which the SDK would read as an empty listing, or as
    a deletion that was done.
    """
    name, status = operation_model.name, response_dict["status_code"]
    headers, body = response_dict["headers"], response_dict["body"]
    announced = headers.get("content-length", "")
    whole = announced.isdigit() or "transfer-encoding" in headers
    if name in _DELETES:
        whole = status == 204 or (status == 200 and whole and _says_nothing_else(body))
    if name in _ANSWERED_WITH_ETAG:
        whole = whole and bool(headers.get("etag"))
    if isinstance(body, bytes) and b"<Error" not in body:
        whole = whole and _ALWAYS_HOLDS.get(name, b"") in body
    if announced.isdigit() and isinstance(body, bytes) and operation_model.http["method"] != "HEAD":
        whole = whole and len(body) == int(announced)
    if 200 <= status < 300 and not whole:
        raise aws.ConnectionClosedError(endpoint_url=f"S3, in an answer to {name}")


def _says_nothing_else(body: bytes) -> bool:
    """Whether an answer to a deletion is empty, or XML and no page."""
    text = body.strip().lower()
    return not text or (text.startswith(b"<?xml") and b"<html" not in text)


class RangeIgnored(aws.BotoCoreError):
    """A whole object came where a part was asked for. As a part, it would damage the whole."""

    fmt = "the server sent a whole object, although a part of it was asked for"


def _in_range(response: Any, request_dict: Mapping[str, Any], **_: Any) -> None:
    if response and response[0].status_code == 200 and "Range" in request_dict["headers"]:
        raise RangeIgnored


def _say_silence(
    endpoint: Any, operation: Any, attempts: int, caught_exception: Exception | None, **_: Any
) -> None:
    """Log each try that timed out: until the last one, the process would look hung for minutes."""
    if isinstance(caught_exception, (aws.ConnectTimeoutError, aws.ReadTimeoutError)):
        log.warning(
            "%s does not answer (%s, try %d of %d)",
            redacted(endpoint.host),
            operation.name,
            attempts,
            _TRIES,
        )


def until_it_answers(ask: Callable[[], None], limits: StoreLimits) -> None:
    """Make a first request. A server that starts while the job does must not cost a start of it.

    Raises what `ask` does: Unavailable only once `limits.restart_wait` is over.
    """
    deadline = time.monotonic() + limits.restart_wait
    while True:
        try:
            return ask()
        except NoCredentials:
            raise  # they were waited for
        except Unavailable as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            log.warning("%s (tried again for %.0f s)", error, left)
        time.sleep(limits.restart_pause)
