"""The data that a run was begun with: which they are, and what in them has changed.

run.json decides whether they are the same: it holds the fingerprint, and the revision on the hub.
source.json lists what the data were made of, and only serves to explain a difference.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from app.console import redacted
from app.data.sources import PinnedSource, follows_the_hub, pin_source
from app.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from app.run.layout import SOURCE
from app.run.record import load_record
from app.settings.variables import DataSettings
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.documents import decode_document, encode_document
from app.stores.opening import open_store

_FORMAT = 1
_MOST_PARTS = 5_000  # of a source with more parts, only the number is kept
_SAME = "not its files: another version of the job began the run; go on with that one"
_SHOWN = 5

log = logging.getLogger(__name__)


class _SourceRecord(BaseModel):
    """source.json. `parts` maps the name of each part to a short digest; None: too many parts."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format_version: int = _FORMAT
    count: int = Field(ge=0, lt=2**53)
    parts: dict[str, str] | None = Field(max_length=_MOST_PARTS)


def source_of_run(
    data: DataSettings, record: RunRecord | None, alive: Callable[[], None] = lambda: None
) -> PinnedSource:
    """The source of a run, at the revision of the hub dataset that the run was begun with.

    `alive` and what is raised are as in `pin_source`.
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
    one of these names and this DATASET, the newest commit on the hub is taken, with a warning.
    That never happens because a record could not be read: tokens of another commit would be of
    no use to the run. Raises ConfigError where two runs have different revisions, and what
    `load_record`, the store and `pin_source` raise.
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
    """Keep `parts` (name → short digest) of a run's data, unless the store has them already.

    To be called only when the data have the fingerprint of the run. A run that an older version
    began has no source.json until then.
    """
    kept = dict(parts) if len(parts) <= _MOST_PARTS else None
    store.put_if_absent(SOURCE, encode_document(_SourceRecord(count=len(parts), parts=kept)))


def difference(store: Store, parts: Mapping[str, str]) -> str:
    """What in `parts` is not as it was when the run was begun; "" if that is not known."""
    try:
        recorded = decode_document(store.get(SOURCE)[0], _SourceRecord, SOURCE)
    except NotFound:
        return ""
    except Damaged:
        log.warning("%s/%s is not readable: what changed cannot be said", store.uri, SOURCE)
        return ""
    before = recorded.parts
    if before is None or len(parts) > _MOST_PARTS:
        return f"{recorded.count:,} parts before, {len(parts):,} now"
    if before and not set(before) & set(parts):
        return ""  # no part has the same name: this is another source altogether
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
