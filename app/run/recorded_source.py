"""The data that a run was begun with: which they are, and what of them changed.

run.json decides: it names the hub's revision and the fingerprint. source.json only explains,
by what the data were made of.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence

from app.console import redacted
from app.data.sources import PinnedSource, follows_the_hub, pin_source
from app.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from app.run.record import RunRecord, load_record
from app.settings.variables import DataSettings
from app.stores.contract import Store
from app.stores.opening import open_store

SOURCE = "source.json"

_FORMAT = 1
_MOST_PARTS = 5_000  # beyond, only their number is kept
_SAME = "not its files: another version of the job began the run; go on with that one"
_SHOWN = 5

log = logging.getLogger(__name__)


def source_of_run(
    data: DataSettings, record: RunRecord | None, alive: Callable[[], None] = lambda: None
) -> PinnedSource:
    """A run goes on with the revision of the hub dataset that it was begun with.

    `alive` is as in `pin_source`, which says what is raised.
    """
    begun = record is not None and names_recorded_data(data, record)
    return pin_source(data, record.identity.dataset_revision if record and begun else None, alive)


def names_recorded_data(data: DataSettings, record: RunRecord) -> bool:
    """Whether DATASET is written as it was when the run was begun."""
    return record.identity.dataset == redacted(data.dataset)


def source_of_named_run(
    data: DataSettings,
    checkpoint_uri: str,
    run_names: Sequence[str],
    alive: Callable[[], None] = lambda: None,
) -> PinnedSource:
    """The source that `train` would read, for a command that looks no further at the run.

    The store is asked only about a dataset that changes with the hub. If it holds no run with
    one of these names and this DATASET, a warning says that the hub's newest commit is taken:
    never because a record could not be read, since tokens of another commit serve no run.
    Raises ConfigError where two runs have different revisions, what `load_record` and the store
    raise, and as `pin_source`.
    """
    record = _record_of(data, checkpoint_uri, run_names) if follows_the_hub(data) else None
    return source_of_run(data, record, alive)


def _record_of(data: DataSettings, uri: str, run_names: Sequence[str]) -> RunRecord | None:
    dataset = f"DATASET={redacted(data.dataset)}"
    try:
        found = [load_record(open_store(uri, name)) for name in run_names]
    except (AccessDenied, Unavailable) as error:
        raise type(error)(
            f"{dataset} has to be at the commit that the run was begun with, which the store does "
            f"not say (write owner/name@COMMIT to do without it): {error}"
        ) from error
    records = [
        stored.record for stored in found if stored and names_recorded_data(data, stored.record)
    ]
    if len({record.identity.dataset_revision for record in records}) > 1:
        names = " and ".join(record.run_name for record in records)
        raise ConfigError(
            f"{uri} holds the runs {names} with different commits of {dataset}: set RUN_NAME"
        )
    if not records:
        names = " or ".join(run_names)
        log.warning(
            "%s is taken at its newest commit on the hub, since %s holds no run %s that was begun "
            "with one",
            dataset,
            uri,
            names,
        )
        return None
    return records[0]


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
    if before == parts:
        return _SAME
    changes = [
        ("changed", [name for name in parts if name in before and parts[name] != before[name]]),
        ("added", [name for name in parts if name not in before]),
        ("removed", [name for name in before if name not in parts]),
    ]
    return "; ".join(f"{what}: {_first_few(sorted(names))}" for what, names in changes if names)


def _first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
