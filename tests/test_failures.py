import errno
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from app.errors import AccessDenied, ConfigError, NoBucket, Unavailable
from app.failures import disk_failures, hub_failures
from app.model.huggingface import model_directory
from app.stores.s3_client import s3_failures
from tests.support.hubserver import hub


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EIO, Unavailable),
        (errno.ENOTDIR, ConfigError),
    ],
)
def test_a_disks_failures_are_told_apart(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"^DATA_DIR=/d ") as caught, disk_failures("DATA_DIR=/d"):
        raise OSError(number, "reason")
    assert caught.type is expected


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EBADF, "x"), KeyError(1)])
def test_what_only_a_bug_can_cause_passes_the_disk(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_failures("DATA_DIR=/d"):
        raise error
    assert caught.value is error


def client_error(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (client_error(403, "AccessDenied"), AccessDenied),
        (client_error(401, "Unauthorized"), AccessDenied),
        (client_error(404, "NoSuchBucket"), NoBucket),
        (client_error(503, "SlowDown"), Unavailable),
        (NoCredentialsError(), AccessDenied),
        (EndpointConnectionError(endpoint_url="http://x"), Unavailable),
    ],
    ids=str,
)
def test_a_buckets_failures_are_told_apart(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"^DATASET=s3://b/k: ") as caught:  # noqa: SIM117
        with s3_failures("DATASET=s3://b/k", "http://x"):
            raise error
    assert caught.type is expected


def test_a_hub_that_refuses_a_model_without_a_word_denies_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, {}):
        with pytest.raises(AccessDenied, match=r"^INIT_FROM=o/forbidden: .*HF_TOKEN"):
            model_directory("o/forbidden", "INIT_FROM")
        with pytest.raises(Unavailable, match=r"^INIT_FROM=o/busy: "):
            model_directory("o/busy", "INIT_FROM")


def test_the_cause_below_a_wrapped_error_decides() -> None:
    with pytest.raises(Unavailable, match="cannot be reached \\(no route\\)"):  # noqa: SIM117
        with hub_failures("TOKENIZER=o/n"):
            try:
                raise ConnectionError("no route")
            except ConnectionError as error:
                raise OSError("cannot load it") from error


def test_a_bug_is_not_taken_for_a_failure_of_the_hub() -> None:
    with pytest.raises(ZeroDivisionError), hub_failures("TOKENIZER=o/n"):
        raise ZeroDivisionError


def test_errors_that_have_a_name_already_keep_it() -> None:
    error = ConfigError("mine")
    with pytest.raises(ConfigError) as caught, hub_failures("TOKENIZER=o/n"):
        raise error from ConnectionError()
    assert caught.value is error
