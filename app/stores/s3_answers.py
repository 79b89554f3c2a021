"""What an S3 server answers, and what the SDK raises, as errors of ours.

S3's codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore import exceptions as aws
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError as TransferRetriesExceededError
from urllib3.exceptions import HTTPError

from app.console import redacted
from app.errors import (
    AccessDenied,
    AppError,
    ConfigError,
    Damaged,
    NoBucket,
    NoCredentials,
    NotFound,
    Unavailable,
    Unserved,
)

_NO_CREDENTIALS = (
    aws.NoCredentialsError,
    aws.CredentialRetrievalError,
    aws.NoAuthTokenError,
    aws.TokenRetrievalError,
    aws.SSOError,
    aws.LoginError,
    aws.MetadataRetrievalError,
)
_NO_ANSWER = (aws.HTTPClientError, aws.ConnectionError)
# An answer began, and its body ended early. SeaweedFS does so, each time at the same byte, for an
# object of which a part has rotted; the network does so too.
_BROKE_OFF = (aws.IncompleteReadError, aws.ResponseStreamingError, HTTPError)
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
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedAccess",
}
_TOO_MANY = {
    "RequestLimitExceeded",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_NOT_NOW = _TOO_MANY | {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeTooSkewed",
    "RequestTimeout",
    "ServiceUnavailable",
    "XAmzContentSHA256Mismatch",
}
# Alibaba OSS and Tencent COS: the bucket belongs into the host's name, not into the path.
PATH_FORBIDDEN = {"SecondLevelDomainForbidden", "PathStyleDomainForbidden"}
# What the SDK raises where an answer lacks a field, or holds one that cannot be read.
NO_SENSE = (KeyError, ValueError, ResponseParserError)
# Of STS and SSO. What they answer is no word of the store's.
_GIVES_CREDENTIALS = ("AssumeRole", "GetRoleCredentials", "CreateToken", "GetSessionToken")
_NO_SPACE = {"InsufficientCapacity", "QuotaExceeded", "XMinioStorageFull"}

_NOT_KNOWN = ("NotImplemented", "MethodNotAllowed", "XNotImplemented", "UnsupportedOperation")
# The HTTP status of a server that does not know a header. Some miss a length (411) where the SDK
# sends the checksum behind the content.
_UNKNOWN_HEADER = (405, 411, 501)
_SAYS_UNKNOWN = re.compile("not.?implemented|unsupported|not.?supported", re.IGNORECASE)


@contextmanager
def s3_failures(place: str, endpoint: str) -> Iterator[None]:
    """For boto3 calls on `place`, like "DATASET=s3://…", at `endpoint` (URL).

    Raises AccessDenied, NoCredentials, NotFound, Unavailable, ConfigError or Damaged. What is done
    with the fields of an answer belongs inside too: where one is missing, that is Unavailable.
    """
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, TransferRetriesExceededError) as error:
        raise _from_sdk_error(error, place, endpoint) from error
    except NO_SENSE as error:
        raise Unavailable(
            f"{place}: {endpoint} gave an answer that makes no sense "
            f"({type(error).__name__}: {redacted(str(error))})"
        ) from error
    except (HTTPError, ConnectionError) as error:  # which the SDK does not always translate
        raise Unserved(f"{place}: the answer broke off ({error})") from error


def error_code(error: ClientError) -> str:
    """S3's own word, such as NoSuchKey; the HTTP status as text if the answer has no such word."""
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: ClientError) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def retried(error: ClientError) -> bool:
    """Whether the SDK had sent the request before, without learning what became of it."""
    return int(_metadata(error).get("RetryAttempts", 0)) > 0


def knows(probe: Callable[[], bool], unknown: Callable[[AppError], bool], pause: float) -> bool:
    """The result of `probe`; False if the server says that it does not know what is asked for.

    `unknown` judges what `probe` raised. It is believed only if the server says the same twice,
    with `pause` seconds between: what it is believed to lack is switched off for a whole attempt.
    Raises what `probe` does; Unavailable where the server says one thing and then another, or
    refuses without a reason that `unknown` takes.
    """
    try:
        return probe()
    except AppError as error:
        before = _words(error)
        if before is None or not (unknown(error) or before[0] == 400):
            raise
    time.sleep(pause)
    try:
        return probe()
    except AppError as error:
        if unknown(error) and _words(error) == before:
            return False
        if isinstance(error, ConfigError) and _words(error) is not None:
            raise Unavailable(str(error)) from error.__cause__
        raise


def no_checksums(error: AppError) -> bool:
    """Some servers take a checksum for a part of the signature, or refuse it with any word."""
    status, code = _words(error) or (0, "")
    return status in (400, *_UNKNOWN_HEADER) or code == "SignatureDoesNotMatch"


def no_conditions(error: AppError) -> bool:
    """A 400 may be about anything, as a key service that fails: it has to say what it means."""
    answer = error.__cause__
    if not isinstance(answer, ClientError):
        return False
    said = f"{error_code(answer)} {answer.response.get('Error', {}).get('Message', '')}"
    status = http_status(answer)
    return status in _UNKNOWN_HEADER or (status == 400 and bool(_SAYS_UNKNOWN.search(said)))


def refused(error: AppError) -> bool:
    """Whether the server answered that this may not be done."""
    words = _words(error)
    return isinstance(error, (AccessDenied, ConfigError)) and words is not None and words[0] != 404


def not_known(error: ClientError) -> bool:
    """Whether the server does not know the request at all."""
    return error_code(error) in _NOT_KNOWN or http_status(error) in (405, 501)


def unusable(place: str, text: str) -> ConfigError:
    return ConfigError(
        f"{place}: {text}. Check AWS_ENDPOINT_URL_S3 (http://… or https://…), "
        "AWS_DEFAULT_REGION and AWS_PROFILE"
    )


def _from_sdk_error(error: Exception, place: str, endpoint: str) -> AppError:
    """The error to raise from `error`; `place` and `endpoint` are those of `s3_failures`."""
    if isinstance(error, ClientError):
        return _from_answer(error, place, endpoint)
    if isinstance(error, (RetriesExceededError, TransferRetriesExceededError)):
        reason = getattr(error, "last_exception", error)
        said = str(reason).rstrip(".")
        kind = Unserved if isinstance(reason, _BROKE_OFF) else Unavailable
        return kind(redacted(f"{place}: the transfer broke off: {said}"))
    text = redacted(str(error))
    if isinstance(error, _BROKE_OFF):
        return Unserved(f"{place}: the answer broke off: {text.rstrip('.')}")
    if isinstance(error, _NO_CREDENTIALS):
        return _no_credentials(place, text)
    if isinstance(error, aws.HTTPClientError) and "header value" in text:
        # The text quotes the header, which may be the session token.
        return unusable(
            place,
            "a header of the request cannot be sent, as its value has a sign "
            "that headers cannot have: look at AWS_SESSION_TOKEN and the credentials file",
        )
    if isinstance(error, _NO_ANSWER):
        return Unavailable(f"{place}: {text}. Is {endpoint} up, and AWS_ENDPOINT_URL_S3 right?")
    if isinstance(error, (aws.FlexibleChecksumError, aws.ChecksumError)):
        return Damaged(f"{place} does not match its checksum: {text}")
    return unusable(place, text)


def _from_answer(error: ClientError, place: str, endpoint: str) -> AppError:
    code, status = error_code(error), http_status(error)
    message = error.response.get("Error", {}).get("Message", "")
    said = redacted(f"{error.operation_name} was answered {status} {code}: {message}".rstrip(": "))
    if code in _NO_SPACE or status == 507:
        return Unavailable(f"{place}: no space left in the store at {endpoint} ({said})")
    if code in _NOT_NOW or (status >= 500 and status != 501) or status == 429:
        clock = ": set this machine's clock" if code == "RequestTimeTooSkewed" else ""
        # Whoever asks too much is told so at any object: that says nothing about this one.
        failed = status >= 500 and code not in _TOO_MANY
        kind = Unserved if failed else Unavailable
        return kind(f"{place}: {endpoint} does not serve now ({said}){clock}")
    if code in PATH_FORBIDDEN:
        return ConfigError(
            f"{place}: {endpoint} wants the bucket in the host's name, and an IP address takes "
            f"none ({said}): set AWS_ENDPOINT_URL_S3 to the name of the server, or "
            "addressing_style = virtual in the file that AWS_CONFIG_FILE names"
        )
    if code in _DENIED or status in (401, 403):
        return AccessDenied(
            f"{place}: access denied ({said}): check the AWS key and what it may do there"
        )
    if error.operation_name.startswith(_GIVES_CREDENTIALS):
        return _no_credentials(place, said)
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


def _no_credentials(place: str, text: str) -> NoCredentials:
    return NoCredentials(
        f"{place}: no AWS credentials yet: {text}. Set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
    )


def _words(error: AppError) -> tuple[int, str] | None:
    """HTTP status and code of the answer from which `error` was made; None if there was none."""
    answer = error.__cause__
    return (http_status(answer), error_code(answer)) if isinstance(answer, ClientError) else None


def _metadata(error: ClientError) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return metadata
