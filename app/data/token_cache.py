"""The shards in the bucket: uploaded behind the preparation, and fetched where DATA_DIR lacks them.

    <CHECKPOINT_URI>/_tokens/<fingerprint>/train-00000.bin … index.json

So a node that replaces another one does not tokenize the corpus again. The fingerprint is that of
the source, of the tokenizer and of the way that text becomes shards: the bytes of a shard are the
same whoever makes it, and two nodes that upload at once write the same objects. Shards are
uploaded before the index that names them, and an index is replaced only by a longer one.
`_tokens` cannot be the name of a run, which begins with a letter or a digit.

DATA_DIR and the bucket are both caches. A shard that one of them lacks, or holds damaged or
unreadable, is taken from the other one, and made again from the source where neither has it.
"""

import logging
import shutil
import threading
from bisect import bisect
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

from app.data.data_dir import DataDir, locked_folder, own_folder
from app.data.retries import Backoff
from app.data.shard_index import INDEX, NamedShard, ShardIndex, decode_index, encode_index
from app.data.shards import is_missing, verify
from app.data.tokenization import ShardMaker
from app.errors import AccessDenied, AppError, Damaged, NotFound, Unavailable
from app.failures import disk_failures
from app.process import in_background
from app.stores.contract import Store
from app.stores.opening import open_store
from app.stores.swap import swap

log = logging.getLogger(__name__)

TOKENS = "_tokens"
_MAX_INDEX_BYTES = 64 * 2**20  # 200,000 seals: a terabyte of tokens and more
_SEALS_PER_INDEX = 16  # uploaded before the index: so much of a long upload may a kill cost
_DOWNLOADS = 8  # at once
_POLL_SECONDS = 0.2


def open_token_cache(checkpoint_uri: str, fingerprint: str) -> "TokenCache | None":
    """The cache, which lies beside the runs of CHECKPOINT_URI; None where that is no bucket.

    A folder is on a volume that outlives the node. DATA_DIR belongs there too, and needs no cache.
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
        """Download a shard to `scratch`, compare it with its SHA-256, and move it to `directory`.

        Raises Damaged, NotFound, AccessDenied or Unavailable about the bucket (and Unavailable if
        a folder was removed meanwhile); OSError about the folders here.
        """
        fetched, path = self._store.fetch(self._key(named.name), scratch), scratch / named.name
        if fetched != path:  # the store gave its own file, which must stay
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
        """Upload what `index` names and the cache lacks, from `directory`.

        Nothing happens if the cache has a longer index already, and the upload ends where `goes_on`
        says no. `repair` makes a shard again that cannot be read, or whose bytes are not the
        recorded ones: what is damaged here must not reach other nodes.
        Raises ConfigError, Damaged, AccessDenied or Unavailable, and what `repair` raises.
        """
        if not self._checked:
            self._store.check()  # finds out which conditional writes the server knows
            for half in self._store.half_written():  # uploads that a kill broke off
                if half.stale:
                    self._store.discard(half)
            self._checked = True
        while goes_on():
            stored, etag = self._index_to_extend(index.source, index.tokenizer)
            if not index.continues(stored):
                return
            n_stored = len(stored.seals)
            part = index.first(n_stored + _SEALS_PER_INDEX)
            for shards in part.shards.values():
                for named in shards[bisect(shards, n_stored - 1, key=attrgetter("seal")) :]:
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
        """Replace the index that has this `etag`. One that was written meanwhile stays."""
        key, content = self._key(INDEX), encode_index(index)
        written = swap(self._store, key, content, etag)
        if written is None and self._read_index(index.source, index.tokenizer)[1] == etag:
            raise Unavailable(f"{self.uri}/{INDEX} is refused, though no other process wrote it")

    def _read_index(self, source: str, tokenizer: str) -> tuple[ShardIndex, str | None]:
        try:
            content, etag = self._store.get(self._key(INDEX), _MAX_INDEX_BYTES)
        except NotFound:
            return ShardIndex(source, tokenizer), None
        return decode_index(content, source, tokenizer, f"{self.uri}/{INDEX}"), etag

    def _index_to_extend(self, source: str, tokenizer: str) -> tuple[ShardIndex, str | None]:
        """As `_read_index`, with an empty index in the place of a damaged one: that is replaced.

        What it named is uploaded again. Nobody could use it, and no node would ever mend it.
        """
        try:
            return self._read_index(source, tokenizer)
        except Damaged as error:
            etag = self._store.etag(self._key(INDEX))
            log.warning("%s: replaced by the index of what is uploaded again", error)
            return ShardIndex(source, tokenizer), etag

    def _key(self, name: str) -> str:
        return f"{self._fingerprint}/{name}"


class CacheUploader:
    """Uploads in a thread of its own. What fails there costs one warning: training goes on."""

    def __init__(
        self, cache: TokenCache, directory: Path, repair: Callable[[ShardIndex, NamedShard], None]
    ) -> None:
        """`repair` is as in `TokenCache.upload`."""
        self._cache, self._directory, self._repair = cache, directory, repair
        self._newest: ShardIndex | None = None
        self._finishing = self._closed = False
        self._failure: BaseException | None = None  # of the newest upload
        self._warned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="token-uploader", daemon=True)
        self._thread.start()

    def submit(self, index: ShardIndex) -> None:
        """Upload what `index` names, instead of an earlier index that is still waiting."""
        with self._changed:
            self._newest = index
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until what was submitted is uploaded. Raises what `TokenCache.upload` raised."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End without waiting for the upload. The next start uploads the rest."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (index := self._take()) is not None:
            try:
                self._cache.upload(index, self._directory, lambda: not self._closed, self._repair)
                self._failure = None
            except BaseException as error:  # source and tokenizer may raise too
                self._failure = error
                if not (self._warned or self._closed):
                    log.warning(
                        "tokens could not be uploaded to %s, other nodes make them again: %s",
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


class MissingShards:
    """Brings shards that an index names and DATA_DIR lacks, or holds damaged or unreadable.

    Several processes may do so at the same time.
    """

    def __init__(
        self, data_dir: DataDir, fingerprint: str, maker: ShardMaker, cache: TokenCache | None
    ) -> None:
        self._data_dir, self._fingerprint = data_dir, fingerprint
        self._directory = data_dir.tokens(fingerprint)
        self._maker, self._cache = maker, cache
        self._refused = False

    def bring(
        self, index: ShardIndex, wanted: Sequence[NamedShard], goes_on: Callable[[], None]
    ) -> Generator[NamedShard, None, None]:
        """Yield each of `wanted`, in that order, as soon as it is here and verified.

        A shard that the bucket refuses or does not have is made again. A bucket that does not
        answer is waited for, two minutes in all, before the shard is made again. `goes_on` is
        called while a shard is made; what it raises ends the work. Raises what `restore` raises,
        and the same where the disk here refuses a download: it would refuse the made shard too.
        """
        incoming = self._data_dir.incoming(self._fingerprint)
        with disk_failures(f"DATA_DIR: {incoming}"), own_folder(incoming) as scratch:
            pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="token-download")
            backoff = Backoff()

            def fetch(named: NamedShard, again: bool = False) -> Future[None]:
                return pool.submit(self._fetch, named, scratch, again)

            try:
                for named, download in [(named, fetch(named)) for named in wanted]:
                    try:
                        _await(download, partial(fetch, named, again=True), backoff)
                    except (AccessDenied, Damaged, NotFound, Unavailable) as error:
                        self._say_made_again(error)
                        self.restore(index, named, goes_on)
                    yield named
            finally:
                # An interrupt ends the work at once, even while the bucket does not answer.
                pool.shutdown(wait=False, cancel_futures=True)

    def bring_one(
        self,
        index: ShardIndex,
        named: NamedShard,
        goes_on: Callable[[], None],
        waiting: Callable[[], None],
    ) -> None:
        """As `bring`, in another thread. `waiting` is called here; what it raises ends the wait."""

        def work() -> None:
            for _ in self.bring(index, [named], goes_on):
                log.info("%s was needed and is here now", named.name)

        outcome = in_background(work, "missing-shard")
        while not outcome.done():
            waiting()
            wait([outcome], _POLL_SECONDS)
        outcome.result()

    def restore(self, index: ShardIndex, named: NamedShard, goes_on: Callable[[], None]) -> None:
        """Make a shard again from the source. `goes_on` is called meanwhile; what it raises ends
        the work.

        Raises what `ShardMaker.restore` raises. A failure of the disk is an AppError that
        names the shard's file.
        """
        # This has a lock of its own, since a process that makes new shards holds the other lock
        # for hours.
        folder = self._data_dir.restoring(self._fingerprint)
        with disk_failures(f"DATA_DIR: {self._directory / named.name}"):
            folder.mkdir(exist_ok=True)
            with locked_folder(folder, goes_on):
                with suppress(AppError):
                    verify(self._directory, named)
                    return  # another process has made it
                try:
                    self._maker.restore(index, named.seal, goes_on)
                except Damaged as error:
                    origin = self._cache and f" (and {self._cache.uri}, if they come from there)"
                    raise Damaged(f"{error}{origin or ''}") from error

    def _fetch(self, named: NamedShard, scratch: Path, again: bool) -> None:
        try:
            verify(self._directory, named)
        except AppError as error:
            if self._cache is None:
                raise Damaged(str(error)) from error  # `bring` makes it again, whatever is wrong
            if not (again or is_missing(self._directory, named)):
                log.warning("%s: fetched again", error)
            self._cache.fetch(named, scratch, self._directory)

    def _say_made_again(self, error: AppError) -> None:
        if not isinstance(error, AccessDenied):
            log.warning("%s: made again from the source", error)
        elif not self._refused:  # once: a policy refuses all shards of a prefix
            self._refused = True
            log.error(
                "NO ACCESS TO CACHED TOKENS: what is refused is made again from the source: %s",
                error,
            )


def _await(download: Future[None], again: Callable[[], Future[None]], backoff: Backoff) -> None:
    """Wait for a download, and begin it `again` each time that the bucket did not answer."""
    while True:
        try:
            download.result()
        except Unavailable as error:
            backoff.failed(error)
            download = again()
        else:
            backoff.worked()
            return
