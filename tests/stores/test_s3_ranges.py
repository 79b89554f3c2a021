"""Pieces of an object, from servers that do not do what they were asked for."""

from typing import Any

import pytest

from app.errors import AccessDenied, Unavailable
from app.stores.opening import open_store
from app.stores.s3_ranges import object_blocks
from tests.support.interposed import Answer, Interposed

CONTENT = bytes(range(250)) * 10


@pytest.mark.parametrize("start", [0, 7, 100, 2499])
def test_pieces_arrive_in_their_order_whatever_their_size(
    start: int, bucket: str, s3_client: Any
) -> None:
    s3_client.put_object(Bucket=bucket, Key="a", Body=CONTENT)
    place = {"Bucket": bucket, "Key": "a"}
    blocks = list(object_blocks(s3_client, place, start, len(CONTENT), piece=97))
    assert b"".join(blocks) == CONTENT[start:] and max(map(len, blocks)) <= 97


@pytest.mark.parametrize("start", [0, 1, 2000])
def test_a_server_without_ranges_is_asked_for_the_whole(
    start: int, bucket: str, s3_answers: Interposed
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("a", [CONTENT])

    def whole(environ: dict[str, Any]) -> Answer | None:
        return (200, "the whole") if "HTTP_RANGE" in environ else None

    s3_answers.answering = whole
    assert b"".join(store.blocks("a", start, len(CONTENT))) == CONTENT[start:]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, "<Error><Code>AccessDenied</Code></Error>"), AccessDenied),
        ((503, "<Error><Code>SlowDown</Code></Error>"), Unavailable),
    ],
)
def test_a_refusal_is_told_as_what_it_is(
    answer: Answer, error: type[Exception], bucket: str, s3_answers: Interposed, no_backoff: None
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("a", [CONTENT])
    s3_answers.answering = lambda environ: answer if environ["REQUEST_METHOD"] == "GET" else None
    with pytest.raises(error, match=f"s3://{bucket}/run/a"):
        list(store.blocks("a", 0, len(CONTENT)))
