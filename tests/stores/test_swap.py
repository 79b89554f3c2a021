"""Compare and swap on every store: who comes second changes nothing, and is told."""

from collections.abc import Callable

import pytest

from app.errors import NotFound, Unavailable
from app.stores.contract import Store
from app.stores.swap import SWAP_PAUSES, swap, update
from tests.support.store_contents import keys


def test_an_object_is_created_once_and_replaced_by_who_knows_it(store: Store) -> None:
    first = swap(store, "a", b"1", None)
    assert first == store.etag("a")
    assert swap(store, "a", b"2", None) is None
    second = swap(store, "a", b"3", first)
    assert second == store.etag("a") != first
    assert swap(store, "a", b"4", first) is None
    assert store.get("a")[0] == b"3"


def test_what_is_not_there_has_no_etag_and_is_not_replaced(store: Store) -> None:
    etag = swap(store, "a", b"1", None)
    store.delete(["a"])
    assert store.etag("a") is None
    assert swap(store, "a", b"2", etag) is None
    assert keys(store) == []


def test_an_update_changes_what_it_read(store: Store) -> None:
    store.put("a", [b"1"])
    assert update(store, "a", lambda content: content + b"2")
    assert store.get("a")[0] == b"12"


def test_an_update_that_is_overtaken_each_time_is_given_up_after_growing_pauses(
    store: Store,
) -> None:
    store.put("a", [b"1"])
    pauses: list[float] = []

    def overtaken(content: bytes) -> bytes:
        store.put("a", [content + b"+"])
        return b"ours"

    with pytest.raises(Unavailable, match="/a: the store refused 8 writes in a row"):
        update(store, "a", overtaken, pauses.append)
    assert pauses == list(SWAP_PAUSES)
    assert store.get("a")[0] == b"1" + 8 * b"+"


def test_an_update_that_is_overtaken_is_made_again_from_the_newer_content(store: Store) -> None:
    store.put("a", [b"1"])
    seen: list[bytes] = []

    def overtaken(content: bytes) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            store.put("a", [b"other's"])
        return content + b" and ours"

    assert update(store, "a", overtaken)
    assert seen == [b"1", b"other's"]
    assert store.get("a")[0] == b"other's and ours"


@pytest.mark.parametrize(
    ("change", "error"), [(lambda content: None, None), (lambda content: 1 / 0, ZeroDivisionError)]
)
def test_an_update_that_is_given_up_leaves_the_object(
    change: Callable[[bytes], bytes | None], error: type[Exception] | None, store: Store
) -> None:
    store.put("a", [b"1"])
    before = store.get("a")
    if error:
        with pytest.raises(error):
            update(store, "a", change)
    else:
        assert not update(store, "a", change)
    assert store.get("a") == before


def test_an_update_creates_nothing(store: Store) -> None:
    with pytest.raises(NotFound):
        update(store, "a", lambda content: content)
    assert keys(store) == []
