"""source.json: what the data of a run were made of, to say what changed when they did.

It only explains; whether the data are the same is decided by the fingerprint in run.json.
"""

import json
import logging
from collections.abc import Mapping, Sequence

from app.errors import Damaged, NotFound
from app.stores import Store

SOURCE = "source.json"

_FORMAT = 1
_MOST_PARTS = 5_000  # beyond, only their number is kept
_SHOWN = 5

log = logging.getLogger(__name__)


def remember_parts(store: Store, parts: Mapping[str, str]) -> None:
    """Keep `parts` (name → short digest) of a run's data, unless some are kept already.

    Called when the fingerprint is that of the run. Runs of older versions have none until then.
    """
    kept = dict(parts) if len(parts) <= _MOST_PARTS else None
    content = {"format_version": _FORMAT, "count": len(parts), "parts": kept}
    store.put_if_absent(SOURCE, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def difference(store: Store, parts: Mapping[str, str]) -> str:
    """What in `parts` is not as it was when the run was begun: "" if that is not known."""
    try:
        content = json.loads(store.get(SOURCE)[0])
        count, before = content["count"], content["parts"]
        assert isinstance(count, int)
        assert before is None or all(isinstance(value, str) for value in before.values())
    except NotFound:
        return ""
    except (Damaged, ValueError, TypeError, KeyError, AttributeError, AssertionError):
        log.warning("%s/%s is not readable: what changed cannot be said", store.uri, SOURCE)
        return ""
    if before is None or len(parts) > _MOST_PARTS:
        return f"{count:,} parts before, {len(parts):,} now"
    if before and not set(before) & set(parts):
        return ""  # another source altogether
    changes = [
        ("changed", [name for name in parts if name in before and parts[name] != before[name]]),
        ("added", [name for name in parts if name not in before]),
        ("removed", [name for name in before if name not in parts]),
    ]
    return "; ".join(f"{what}: {_first_few(sorted(names))}" for what, names in changes if names)


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
