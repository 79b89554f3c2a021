"""Compare and swap: an object is replaced only while it is still the one that was read."""

import time
from collections.abc import Callable

from app.errors import Unavailable
from app.stores.contract import Store

SWAP_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 0.0)
"""Seconds to wait after each swap in which somebody else was faster; then it is given up."""


def swap(store: Store, key: str, content: bytes, etag: str | None) -> str | None:
    """Replace the object that has `etag`; where `etag` is None, create one that is not there.

    Returns the new etag, or None if somebody else has changed the object. Raises the store's
    errors.
    """
    if etag is None:
        return store.put_if_absent(key, content)
    return store.put_if_match(key, content, etag)


def update(
    store: Store,
    key: str,
    change: Callable[[bytes], bytes | None],
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Replace an existing object by what `change` makes of its content.

    Where another process replaces the object in between, `change` is called again with the
    newer content. If `change` returns None, the object stays as it is and the result is False.
    Raises what `change` raises, NotFound, Unavailable where every try is refused, and the
    store's errors.
    """
    for pause in SWAP_PAUSES:
        content, etag = store.get(key)
        changed = change(content)
        if changed is None:
            return False
        if swap(store, key, changed, etag) is not None:
            return True
        sleep(pause)
    raise swap_refused(store, key, len(SWAP_PAUSES))


def swap_refused(store: Store, key: str, times: int) -> Unavailable:
    """What to raise where a store refuses each swap: another writer, or a broken condition."""
    return Unavailable(
        f"{store.uri}/{key}: the store refused {times} writes in a row as if another "
        "process had been faster each time: stop what else writes there, and start again"
    )
