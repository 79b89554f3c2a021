"""A part of an object: in pieces that are fetched side by side, and handed out in their order."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

from botocore.exceptions import ClientError

from app.stores.s3_answers import http_status
from app.stores.s3_client import RangeIgnored

_PIECE_BYTES = 8 * 2**20
_AT_ONCE = 8  # pieces, which are in memory


def object_blocks(
    client: Any, place: Mapping[str, str], start: int, end: int, piece: int = _PIECE_BYTES
) -> Iterator[bytes]:
    """The bytes from `start` to `end` of the object at `place`; fewer where it ends before.

    `piece` is how many bytes a request asks for. To be used inside `s3_failures`. A server that
    knows no ranges is asked for the whole object, of which the beginning is passed over.
    """
    pool = ThreadPoolExecutor(_AT_ONCE, "s3-range")
    begins = iter(range(start, end, piece))
    asked: deque[Future[bytes]] = deque()
    try:
        while True:
            while len(asked) < _AT_ONCE and (begin := next(begins, None)) is not None:
                stop = min(begin + piece, end)
                asked.append(pool.submit(_range, client, place, begin, stop))
            if not asked:
                return
            block = asked.popleft().result()
            wanted, start = min(piece, end - start), start + len(block)
            yield block
            if len(block) < wanted:
                return
    except RangeIgnored:
        yield from _rest(client, place, start, end)
    finally:  # an interrupted process waits for nothing that is still on its way
        pool.shutdown(wait=False, cancel_futures=True)


def _range(client: Any, place: Mapping[str, str], start: int, end: int) -> bytes:
    try:
        answer = client.get_object(**place, Range=f"bytes={start}-{end - 1}")
    except ClientError as error:
        if http_status(error) == 416:  # the object ends before `start`
            return b""
        raise
    with closing(answer["Body"]) as body:
        content: bytes = body.read()
    return content


def _rest(client: Any, place: Mapping[str, str], start: int, end: int) -> Iterator[bytes]:
    at = 0
    with closing(client.get_object(**place)["Body"]) as body:
        while at < end and (block := body.read(min(_PIECE_BYTES, end - at))):
            at += len(block)
            if at > start:
                yield block[max(0, len(block) - (at - start)) :]
