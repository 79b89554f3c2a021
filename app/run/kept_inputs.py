"""What a run keeps, since the image that continues it may not have it: builtin text and tokenizer.

The builtin ones come from the image's Python, and an image that was built later has others. What
the hub gives changes with a commit, and is converted by the image's libraries. A run that was begun
with one image goes on with the next one, from what it has kept:

    inputs/builtin-text.json.z    the documents of DATASET=builtin, also as a part of a mixture
    inputs/tokenizer.json.z       the files of the tokenizer

Each is one object, so it is there completely or not at all: JSON, compressed as zlib does. It is
data, and its size is bounded, before and after it is decompressed. run.json decides whether it is
the right one: it holds the fingerprints.
"""

import logging
import zlib
from typing import Annotated

from pydantic import Field

from app.data.builtin import BuiltinText, kept_text
from app.data.sources import PinnedSource
from app.data.tokenizer import TokenizerFiles, changes_by_itself, install_tokenizer
from app.errors import Damaged, NotFound
from app.run.layout import INPUTS, TEXT_KEY, TOKENIZER_KEY
from app.settings.variables import DataSettings
from app.state.identity import RunRecord
from app.stores.contract import MAX_GET_BYTES, Store
from app.stores.documents import Document, M, decode_document, encode_document

log = logging.getLogger(__name__)

_FORMAT = 1
_MOST_BYTES = 64 * 2**20  # decompressed; the text of Python 3.11 has 10.8 MB
_MOST_IDS = 1 << 16  # a token id has 16 bits
_LEVEL = 3  # 0.3 s of work for the text, and a tenth larger than at the highest level
_FILES = (".json", ".jinja")  # what a tokenizer is read from; the rest is the same in other forms

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$")]


class _Text(Document):
    format_version: int = _FORMAT
    documents: list[str]


class _Tokenizer(Document):
    """`files` maps names to contents."""

    format_version: int = _FORMAT
    files: Annotated[dict[_FileName, str], Field(max_length=20)]


def keep_inputs(store: Store, source: PinnedSource, tokenizer: TokenizerFiles) -> None:
    """Keep what another image may not have, unless the run has it already.

    To be called by the holder of the lease, when data and tokenizer are those of the run.
    """
    kept = {info.key for info in store.list(INPUTS)}
    if (text := source.builtin) is not None and TEXT_KEY not in kept:
        _keep(store, TEXT_KEY, _Text(documents=list(text.read())))
    if TOKENIZER_KEY not in kept:
        paths = [path for path in sorted(tokenizer.directory.iterdir()) if path.suffix in _FILES]
        files = {path.name: path.read_text("utf-8") for path in paths}
        _keep(store, TOKENIZER_KEY, _Tokenizer(files=files))


def read_text(store: Store) -> BuiltinText | None:
    """The builtin text that the run in `store` was begun with; None if it has kept none.

    Raises Damaged, IncompatibleRun (a newer version kept it), and what the store raises.
    """
    found = _read(store, TEXT_KEY, _Text)
    return kept_text(found.documents) if found else None


def tokenizer_of_run(
    data: DataSettings, record: RunRecord | None, store: Store, ours: TokenizerFiles
) -> TokenizerFiles:
    """The tokenizer that a run was begun with: `ours`, unless it has changed by itself since then.

    A folder in which somebody put another tokenizer stays one: the run is refused. Raises Damaged,
    IncompatibleRun (a newer version kept it), and what the store and `install_tokenizer` raise.
    """
    if record is None or data.tokenizer != record.identity.tokenizer:
        return ours
    begun, setting = record.identity.tokenizer_fingerprint, f"TOKENIZER={data.tokenizer}"
    if ours.fingerprint == begun or not changes_by_itself(data.tokenizer):
        return ours
    found = _read(store, TOKENIZER_KEY, _Tokenizer)
    if found is None:
        log.warning(
            "%s is another one than the run was begun with, and %s has kept none, as runs of older "
            "versions did not: start the run once with the image that began it",
            setting,
            store.uri,
        )
        return ours
    place = f"{store.uri}/{TOKENIZER_KEY}"
    kept = install_tokenizer(found.files, data.data_dir, place)
    if kept.fingerprint != begun or kept.vocab_size > _MOST_IDS:
        raise Damaged(f"{place} is not the tokenizer of the run: {_BACKUP}")
    log.info("%s: the one that the run was begun with, since it is another one by now", setting)
    return kept


_BACKUP = "restore it from a backup, or go on with the image that began the run"


def _keep(store: Store, key: str, document: Document) -> None:
    content = encode_document(document)
    packed = zlib.compress(content, _LEVEL)
    if len(content) > _MOST_BYTES or len(packed) > MAX_GET_BYTES:
        log.warning("%s/%s is not kept: it would be too large to be read again", store.uri, key)
        return
    store.put_if_absent(key, packed)


def _read(store: Store, key: str, model: type[M]) -> M | None:
    place = f"{store.uri}/{key}"
    try:
        packed, _ = store.get(key)
    except NotFound:
        return None
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, _MOST_BYTES)
    except zlib.error as error:
        raise Damaged(f"{place} is damaged ({error}): {_BACKUP}") from error
    if not unpacking.eof:
        raise Damaged(f"{place} is cut short, or too large: {_BACKUP}")
    return decode_document(
        content,
        model,
        place,
        newest_format=_FORMAT,
        damaged=lambda what: f"{place} is damaged ({what}): {_BACKUP}",
    )
