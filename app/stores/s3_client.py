"""S3 through boto3: the client, and what its exceptions mean as errors of ours.

Credentials, region and endpoint are boto3's own: AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_DEFAULT_REGION, AWS_ENDPOINT_URL_S3 and so on.
S3's codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from boto3.exceptions import Boto3Error, RetriesExceededError
from boto3.session import Session
from botocore import exceptions as aws
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import RetriesExceededError as TransferRetriesExceededError
from urllib3.exceptions import HTTPError

from app.console import redacted
from app.errors import (
    AccessDenied,
    AppError,
    ConfigError,
    Damaged,
    NoBucket,
    NotFound,
    Unavailable,
)
from app.stores.limits import DEFAULT_LIMITS, StoreLimits

_TRIES = 3

_NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.PartialCredentialsError,
    aws.CredentialRetrievalError,
    aws.NoAuthTokenError,
    aws.TokenRetrievalError,
    aws.SSOError,
    aws.LoginError,
)
_NO_ANSWER = (
    aws.HTTPClientError,
    aws.ConnectionError,
    aws.IncompleteReadError,
    aws.MetadataRetrievalError,
)
_DENIED = {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NotSignedUp",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedAccess",
}
_NOT_NOW = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
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
_NO_SPACE = {"InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull"}

T = TypeVar("T")

log = logging.getLogger(__name__)


def open_client(
    place: str, *, upload_checksums: bool = True, limits: StoreLimits = DEFAULT_LIMITS
) -> tuple[Any, str]:
    """An S3 client that several threads may use, and its endpoint (URL). Contacts nobody yet.

    Raises ConfigError for AWS settings that boto3 cannot use; `place` begins its message.
    """
    config = Config(
        connect_timeout=10,  # seconds; three tries on a dead endpoint take half a minute
        read_timeout=limits.read_timeout,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=40,
        user_agent_extra="smollm2-spot-trainer",
        request_checksum_calculation=None if upload_checksums else "when_required",
    )
    try:
        # boto3's default session is shared, and not safe to use from several threads.
        client: Any = Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise _unusable(place, redacted(str(error))) from error
    client.meta.events.register("before-send.s3", _without_expect)
    client.meta.events.register("before-parse.s3", _whole)
    client.meta.events.register("needs-retry.s3", _say_silence)
    return client, redacted(str(client.meta.endpoint_url))


@contextmanager
def s3_failures(place: str, endpoint: str) -> Iterator[None]:
    """For boto3 calls on `place`, like "DATASET=s3://…", at `endpoint` (URL).

    Raises AccessDenied, NotFound, Unavailable, ConfigError or Damaged.
    """
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, TransferRetriesExceededError) as error:
        raise _from_sdk_error(error, place, endpoint) from error
    except (HTTPError, ConnectionError) as error:
        # An answer that breaks off in its body, which the SDK does not always translate.
        raise Unavailable(f"{place}: the answer broke off ({error})") from error


def transfer(work: Callable[[], T]) -> T:
    """Do `work`, which is a managed transfer of the SDK, in another thread.

    The SDK's transfer manager holds back every exception, also one that a signal raised, until
    its requests are answered. In the caller's thread, a server that went silent would keep an
    interrupted process alive for minutes.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="s3-transfer")
    try:
        return pool.submit(work).result()
    finally:
        pool.shutdown(wait=False)


@contextmanager
def explained_head(client: Any, **place: str) -> Iterator[None]:
    """Ask again with a GET where a HEAD fails: the answer to a HEAD has no body for a reason."""
    try:
        yield
    except ClientError as error:
        if error.operation_name == "HeadObject":
            client.get_object(**place, Range="bytes=0-0")["Body"].close()
        raise


def _from_sdk_error(error: Exception, place: str, endpoint: str) -> AppError:
    """The error to raise from `error`; `place` and `endpoint` are those of `s3_failures`."""
    if isinstance(error, ClientError):
        return _from_answer(error, place, endpoint)
    if isinstance(error, (RetriesExceededError, TransferRetriesExceededError)):
        reason = getattr(error, "last_exception", error)
        return Unavailable(redacted(f"{place}: the transfer broke off: {reason}"))
    text = redacted(str(error))
    if isinstance(error, _NO_CREDENTIALS):
        return AccessDenied(
            f"{place}: {text}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, _NO_ANSWER):
        return Unavailable(f"{place}: {text}. Is {endpoint} up, and AWS_ENDPOINT_URL_S3 right?")
    if isinstance(error, (aws.FlexibleChecksumError, aws.ChecksumError)):
        return Damaged(f"{place} does not match its checksum: {text}")
    return _unusable(place, text)


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
    answer any request with a page of its own, which the SDK would read as an empty listing.
    """
    headers, body = response_dict["headers"], response_dict["body"]
    announced = headers.get("content-length", "")
    whole = announced.isdigit() or "transfer-encoding" in headers
    if operation_model.name in _ANSWERED_WITH_ETAG:
        whole = whole and bool(headers.get("etag"))
    if isinstance(body, bytes) and b"<Error" not in body:
        whole = whole and _ALWAYS_HOLDS.get(operation_model.name, b"") in body
    if announced.isdigit() and isinstance(body, bytes) and operation_model.http["method"] != "HEAD":
        whole = whole and len(body) == int(announced)
    if response_dict["status_code"] in (200, 206) and not whole:
        raise aws.ConnectionClosedError(endpoint_url=f"S3, in an answer to {operation_model.name}")


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


def error_code(error: ClientError) -> str:
    """S3's own word, such as NoSuchKey; the HTTP status as text if the answer has no such word."""
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: ClientError) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def retried(error: ClientError) -> bool:
    """Whether the SDK had sent the request before, without learning what became of it."""
    return int(_metadata(error).get("RetryAttempts", 0)) > 0


def _unusable(place: str, text: str) -> ConfigError:
    return ConfigError(
        f"{place}: {text}. Check AWS_ENDPOINT_URL_S3 (http://… or https://…), "
        "AWS_DEFAULT_REGION and AWS_PROFILE"
    )


def _metadata(error: ClientError) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return metadata


def _from_answer(error: ClientError, place: str, endpoint: str) -> AppError:
    code, status = error_code(error), http_status(error)
    message = error.response.get("Error", {}).get("Message", "")
    said = redacted(f"{error.operation_name} was answered {status} {code}: {message}".rstrip(": "))
    if code in _NO_SPACE or status == 507:
        return Unavailable(f"{place}: no space left in the store at {endpoint} ({said})")
    if code in _NOT_NOW or status >= 500 or status == 429:
        return Unavailable(f"{place}: {endpoint} does not serve now ({said})")
    if code in _DENIED or status in (401, 403):
        hint = "set this machine's clock" if code == "RequestTimeTooSkewed" else "check the AWS key"
        return AccessDenied(f"{place}: access denied ({said}): {hint} and what it may do there")
    if code == "NoSuchBucket":
        return NoBucket(f"{place}: {endpoint} has no such bucket: create it, or correct its name")
    if code in ("NoSuchKey", "NoSuchVersion"):
        return NotFound(f"{place} does not exist")
    if status == 404:
        # S3 names what it does not find. Without a name, something in front of it answered.
        return Unavailable(
            f"{place}: {said}, which S3 does not say. Is AWS_ENDPOINT_URL_S3={endpoint} right?"
        )
    return ConfigError(
        f"{place}: the request was refused ({said}). Check the URI, AWS_ENDPOINT_URL_S3 and "
        "AWS_DEFAULT_REGION"
    )
