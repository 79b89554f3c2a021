"""What a bucket says, as one of our errors."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from app.errors import AccessDenied, NoBucket, NoCredentials, Unavailable
from app.stores.s3_answers import s3_failures


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
        (NoCredentialsError(), NoCredentials),
        (KeyError("ETag"), Unavailable),
        (client_error(403, "RequestTimeTooSkewed"), Unavailable),
        (EndpointConnectionError(endpoint_url="http://x"), Unavailable),
    ],
    ids=str,
)
def test_a_buckets_failures_are_told_apart(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"^DATASET=s3://b/k: ") as caught:  # noqa: SIM117
        with s3_failures("DATASET=s3://b/k", "http://x"):
            raise error
    assert caught.type is expected
