"""Compare and swap: an object is replaced only while it is the one that was looked at."""

from collections.abc import Callable

from app.errors import NotFound
from app.stores.contract import MAX_GET_BYTES, Store


def swap(store: Store, key: str, content: bytes, etag: str | None) -> str | None:
    """Replace the object of `etag`, or create it where `etag` is None.

    Returns the new etag; None if the object is another one by now. Raises the store's errors.
    """
    if etag is None:
        return store.put_if_absent(key, content)
    return store.put_if_match(key, content, etag)


def current_etag(store: Store, key: str, max_bytes: int = MAX_GET_BYTES) -> str | None:
    """The etag of the object as it is now; None if there is none."""
    try:
        return store.get(key, max_bytes)[1]
    except NotFound:
        return None


def update(store: Store, key: str, change: Callable[[bytes], bytes | None]) -> bool:
    """Replace an existing object by what `change` makes of it, whoever else does so too.

    `change` may be called several times; False if it returns None, which leaves the object as it
    is. Raises what `change` raises, NotFound, and the store's errors.
    """
    while True:
        content, etag = store.get(key)
        changed = change(content)
        if changed is None:
            return False
        if swap(store, key, changed, etag) is not None:
            return True
