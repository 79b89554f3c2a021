"""The shards in the bucket, so that a replacement node does not tokenize again.

    <CHECKPOINT_URI>/_tokens/<fingerprint>/train-00000.bin … index.json

The fingerprint is that of source, tokenizer and the way that text becomes shards, so the
bytes of a shard are the same whoever makes it: two nodes that upload at once write the
same objects. Shards go up before the index that names them, and the index is replaced
only by a longer one. `_tokens` cannot be the name of a run, which begins with a letter
or a digit.
"""

import logging
import shutil
import threading
from bisect import bisect
from collections.abc import Callable
from pathlib import Path

from app.data.shard_index import INDEX, NamedShard, ShardIndex, decode_index, encode_index
from app.data.shards import verify
from app.errors import AppError, Damaged, NotFound, Unavailable
from app.stores.contract import Store
from app.stores.opening import open_store

log = logging.getLogger(__name__)

TOKENS = "_tokens"
_MAX_INDEX_BYTES = 64 * 2**20  # 200,000 seals: a terabyte of tokens and more
_SEALS_PER_INDEX = 16  # what a kill may cost, of an upload that has much to do


def open_token_cache(checkpoint_uri: str, fingerprint: str) -> "TokenCache | None":
    """The cache beside the runs of CHECKPOINT_URI; None for a folder on a volume.

    A volume is where DATA_DIR belongs, which then outlives the node by itself.
    """
    if not checkpoint_uri.startswith("s3://"):
        return None
    return TokenCache(open_store(checkpoint_uri, TOKENS), fingerprint)


class TokenCache:
    """The shards of one corpus in a store."""

    def __init__(self, store: Store, fingerprint: str) -> None:
        self._store, self._fingerprint = store, fingerprint
        self._checked = False

    @property
    def uri(self) -> str:
        return f"{self._store.uri}/{self._fingerprint}"

    def read_index(self, source: str, tokenizer: str) -> ShardIndex:
        """The cached index; an empty one where there is none.

        Raises Damaged, AccessDenied, Unavailable.
        """
        return self._read_index(source, tokenizer)[0]

    def fetch(self, named: NamedShard, scratch: Path, directory: Path) -> None:
        """Download a shard into `directory`, where it appears whole and verified.

        Raises Damaged, NotFound, AccessDenied, Unavailable, all of them about the bucket (but a
        folder that was removed meanwhile is Unavailable too); OSError about the folders here.
        """
        fetched, path = self._store.fetch(self._key(named.name), scratch), scratch / named.name
        if fetched != path:  # a store's own file stays where it is
            shutil.copyfile(fetched, path)
        if not named.shard.matches(path.read_bytes()):
            path.unlink()
            raise Damaged(f"{self.uri}/{named.name} is not what was uploaded")
        path.replace(directory / named.name)

    def upload(
        self,
        index: ShardIndex,
        directory: Path,
        goes_on: Callable[[], bool],
        repair: Callable[[ShardIndex, NamedShard], None],
    ) -> None:
        """Bring the cache up to `index`, whose shards are in `directory`.

        A longer index in the cache stays. `repair` makes a shard again that cannot be read, or
        whose bytes are not the recorded ones: what is damaged here must not reach other nodes.
        Raises ConfigError, Damaged, AccessDenied or Unavailable, and what `repair` raises.
        """
        if not self._checked:
            self._store.check()  # which conditions the server knows
            for half in self._store.half_written():  # the parts that kills left
                if half.stale:
                    self._store.discard(half)
            self._checked = True
        while goes_on():
            stored, etag = self._read_index(index.source, index.tokenizer)
            if not index.continues(stored):
                return
            part = index.first(len(stored.seals) + _SEALS_PER_INDEX)
            for shards in part.shards.values():
                for named in shards[bisect(shards, len(stored.seals) - 1, key=_seal_of) :]:
                    try:
                        content = verify(directory, named)
                    except AppError as error:
                        log.warning("%s: made again before it is uploaded", error)
                        repair(index, named)
                        content = verify(directory, named)
                    self._store.put(self._key(named.name), [content])
                    if not goes_on():
                        return
            self._replace_index(part, etag)

    def _replace_index(self, index: ShardIndex, etag: str | None) -> None:
        """Nothing happens if another process has replaced it since `etag`."""
        key, content = self._key(INDEX), encode_index(index)
        if etag is None:
            written = self._store.put_if_absent(key, content)
        else:
            written = self._store.put_if_match(key, content, etag)
        if written is None and self._read_index(index.source, index.tokenizer)[1] == etag:
            raise Unavailable(f"{self.uri}/{INDEX} is refused, though no other process wrote it")

    def _read_index(self, source: str, tokenizer: str) -> tuple[ShardIndex, str | None]:
        try:
            content, etag = self._store.get(self._key(INDEX), _MAX_INDEX_BYTES)
        except NotFound:
            return ShardIndex(source, tokenizer), None
        return decode_index(content, source, tokenizer, f"{self.uri}/{INDEX}"), etag

    def _key(self, name: str) -> str:
        return f"{self._fingerprint}/{name}"


def _seal_of(named: NamedShard) -> int:
    return named.seal


class CacheUploader:
    """Uploads behind the preparation, on a thread of its own. Failing costs one warning."""

    def __init__(
        self,
        cache: TokenCache,
        directory: Path,
        repair: Callable[[ShardIndex, NamedShard], None],
    ) -> None:
        """`repair` is as in `TokenCache.upload`."""
        self._cache, self._directory, self._repair = cache, directory, repair
        self._newest: ShardIndex | None = None
        self._finishing = self._closed = self._warned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="token-uploader", daemon=True)
        self._thread.start()

    def submit(self, index: ShardIndex) -> None:
        """Upload what `index` names; a newer one takes the place of one that waits."""
        with self._changed:
            self._newest = index
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until what was submitted is in the cache, or has failed."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        self._thread.join()

    def close(self) -> None:
        """End without waiting; the next start uploads the rest."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (index := self._take()) is not None:
            try:
                self._cache.upload(index, self._directory, lambda: not self._closed, self._repair)
            except BaseException as error:  # of source and tokenizer too; nobody else sees it
                if not (self._warned or self._closed):
                    log.warning(
                        "tokens could not be uploaded to %s, training goes on without: %s",
                        self._cache.uri,
                        error,
                        exc_info=None if isinstance(error, AppError) else error,
                    )
                self._warned = True

    def _take(self) -> ShardIndex | None:
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._finishing or self._closed)
            index, self._newest = self._newest, None
            return None if self._closed else index
