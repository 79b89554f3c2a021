"""The data that a run was begun with: which they are, and what in them has changed.

run.json decides whether they are the same: it holds the fingerprint, and the revision on the hub.
source.json lists what the data were made of, and only serves to explain a difference.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from pydantic import Field

from app.console import redacted
from app.data.sources import PinnedSource, follows_the_hub, follows_the_image, pin_source
from app.data.tokenizer import TokenizerFiles, changes_by_itself
from app.errors import AccessDenied, ConfigError, Damaged, NotFound, Unavailable
from app.run.kept_inputs import read_text, tokenizer_of_run
from app.run.layout import SOURCE
from app.run.record import load_record
from app.settings.variables import DataSettings
from app.state.identity import RunRecord
from app.stores.contract import Store
from app.stores.documents import Document, decode_document, encode_document
from app.stores.opening import open_store

_FORMAT = 1
_MOST_PARTS = 5_000  # of a source with more parts, only the number is kept
_SAME = "not its files: another version of the job began the run; go on with that one"
_SHOWN = 5

log = logging.getLogger(__name__)


class _SourceRecord(Document):
    """source.json. `parts` maps the name of each part to a short digest; None: too many parts."""

    format_version: int = _FORMAT
    count: int = Field(ge=0, lt=2**53)
    parts: dict[str, str] | None = Field(max_length=_MOST_PARTS)


def source_of_run(
    data: DataSettings,
    record: RunRecord | None,
    store: Store,
    alive: Callable[[], None] = lambda: None,
) -> PinnedSource:
    """The source of a run in `store`, as the run was begun with it: at the same revision of a hub
    dataset, and with the same builtin text, which the run has kept.

    `alive` and what is raised are as in `pin_source`. Raises also what `read_text` raises.
    """
    if record is None or not names_recorded_data(data, record):
        return pin_source(data, None, alive)
    identity = record.identity
    source = pin_source(data, identity.dataset_revision, alive)
    if source.builtin is None or source.fingerprint == identity.dataset_fingerprint:
        return source
    kept = read_text(store)
    if kept is None:
        log.warning(
            "DATASET=%s: %s has kept no builtin text, as runs of older versions did not: where the "
            "text of this image is another one, start the run once with the image that began it",
            data.dataset,
            store.uri,
        )
        return source
    if kept.fingerprint == source.builtin.fingerprint:
        return source
    log.info("DATASET=%s: the builtin text that the run was begun with", data.dataset)
    return pin_source(data, identity.dataset_revision, alive, builtin=kept)


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

    The store is asked only about a dataset that changes with the hub or with the image. If it
    holds no run with one of these names and this DATASET, the newest commit on the hub is taken,
    with a warning. That never happens because a record could not be read: tokens of another commit
    would be of no use to the run. Raises ConfigError where two runs have different data, and what
    `load_record`, the store and `source_of_run` raise.
    """
    if follows_the_hub(data) or follows_the_image(data):
        for store, record in _begun_with(data, checkpoint_uri, run_names):
            return source_of_run(data, record, store, alive)
    return pin_source(data, None, alive)


def tokenizer_of_named_run(
    data: DataSettings, checkpoint_uri: str, run_names: Sequence[str], ours: TokenizerFiles
) -> TokenizerFiles:
    """The tokenizer that `train` would use, where `ours` is the one that TOKENIZER names now.

    The store is asked only about one that may have changed by itself. Raises ConfigError where two
    runs have different ones, and what `load_record`, the store and `tokenizer_of_run` raise.
    """
    if not changes_by_itself(data.tokenizer):
        return ours
    runs = [
        (store, record)
        for store, record in _runs(checkpoint_uri, run_names)
        if record.identity.tokenizer == data.tokenizer
    ]
    fingerprints = {record.identity.tokenizer_fingerprint for _, record in runs}
    _check_one(fingerprints, f"TOKENIZER={data.tokenizer}", checkpoint_uri, runs)
    for store, record in runs:
        return tokenizer_of_run(data, record, store, ours)
    return ours


_Run = tuple[Store, RunRecord]


def _runs(uri: str, names: Sequence[str]) -> list[_Run]:
    stores = [open_store(uri, name) for name in names]
    found = [(store, load_record(store)) for store in stores]
    return [(store, stored.record) for store, stored in found if stored]


def _begun_with(data: DataSettings, uri: str, names: Sequence[str]) -> list[_Run]:
    """The runs with one of these names and this DATASET, which have the same text."""
    dataset, on_hub = f"DATASET={redacted(data.dataset)}", follows_the_hub(data)
    try:
        found = _runs(uri, names)
    except (AccessDenied, Unavailable) as error:
        way = " (write owner/name@COMMIT to do without it)" if on_hub else ""
        what = "at the commit" if on_hub else "the text"
        raise type(error)(
            f"{dataset} has to be {what} that the run was begun with, which the store does not say"
            f"{way}: {error}"
        ) from error
    runs = [(store, record) for store, record in found if names_recorded_data(data, record)]
    revisions = {record.identity.dataset_revision for _, record in runs}
    _check_one(revisions, f"commits of {dataset}", uri, runs)
    fingerprints = {record.identity.dataset_fingerprint for _, record in runs}
    _check_one(fingerprints, f"text of {dataset}", uri, runs)
    if on_hub and not runs:
        log.warning(
            "%s is taken at its newest commit on the hub, since %s holds no run %s that was begun "
            "with one",
            dataset,
            uri,
            " or ".join(names),
        )
    return runs


def _check_one(values: Collection[str | None], what: str, uri: str, runs: Sequence[_Run]) -> None:
    if len(values) > 1:
        names = " and ".join(record.run_name for _, record in runs)
        raise ConfigError(f"{uri} holds the runs {names} with different {what}: set RUN_NAME")


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
