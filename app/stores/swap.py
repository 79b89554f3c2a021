"""Compare and swap: an object is replaced only while it is still the one that was read."""

from collections.abc import Callable

from app.errors import NotFound
from app.stores.contract import MAX_GET_BYTES, Store


def swap(store: Store, key: str, content: bytes, etag: str | None) -> str | None:
    """Replace the object that has `etag`; where `etag` is None, create one that is not there.

    Returns the new etag, or None if somebody else has changed the object. Raises the store's
    errors.
    """
    if etag is None:
        return store.put_if_absent(key, content)
    return store.put_if_match(key, content, etag)


def current_etag(store: Store, key: str, max_bytes: int = MAX_GET_BYTES) -> str | None:
    """The etag of the object as it is now; None if there is no object.

    Raises Damaged for an object of more than `max_bytes`, and the store's errors.
    """
    try:
        return store.get(key, max_bytes)[1]
    except NotFound:
        return None


def update(store: Store, key: str, change: Callable[[bytes], bytes | None]) -> bool:
    """Replace an existing object by what `change` makes of its content.

    Where another process replaces the object in between, `change` is called again with the
    newer content. If `change` returns None, the object stays as it is and the result is False.
    Raises what `change` raises, NotFound, and the store's errors.
    """
    while True:
        content, etag = store.get(key)
        changed = change(content)
        if changed is None:
            return False
        if swap(store, key, changed, etag) is not None:
            return True
