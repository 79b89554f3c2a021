"""The tokens of a job: found in DATA_DIR, fetched from the bucket, or made, while it trains.

DATA_DIR/tokens/<fingerprint>/ holds shards and their index. A thread adds shards until the job
has what it needs, and the job waits only for the tokens that it is about to read. Of two
processes on one DATA_DIR one makes tokens; the other one reads the index that the first writes,
and trains on the same shards.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from app.console import counted
from app.data.data_dir import DataDir, locked_folder
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import HELD_OUT_ONE_IN, held_out
from app.data.shard_index import (
    NamedShard,
    ShardIndex,
    Split,
    mended_index,
    read_index,
    write_index,
)
from app.data.shards import SHARD_TOKENS, TokenShards, is_missing, verify
from app.data.sources import PinnedSource
from app.data.token_cache import CacheUploader, MissingShards, TokenCache
from app.data.token_need import PrepareProgress, TokenNeed, Waiting
from app.data.tokenization import ShardMaker, tokens_fingerprint
from app.data.tokenizer import TokenizerFiles
from app.errors import AppError, Damaged
from app.failures import disk_failures

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


class _MadeElsewhere(Exception):
    """Another process has made the tokens that this one was waiting to make."""


class _Closed(Exception):
    """`close` was called: this process ends."""


class Preparation:
    """Brings the tokens that a job needs. `run` does so in the caller's thread, `start` in a
    thread of its own."""

    def __init__(
        self,
        source: PinnedSource,
        tokenizer: TokenizerFiles,
        need: TokenNeed,
        *,
        cache: Callable[[str], TokenCache | None] = lambda fingerprint: None,
        report: Callable[[PrepareProgress], None] = lambda progress: None,
        shard_tokens: int = SHARD_TOKENS,
        limits: DataLimits = DEFAULT_LIMITS,
        is_held_out: Callable[[str], bool] = held_out,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`cache` opens the cache of a fingerprint. `report` is called in the thread that works,
        about every `limits.report_seconds`; what it raises ends the work. `is_held_out` decides
        about the texts for which the source has not decided it. `clock` counts seconds."""
        self.tokenizer, self.need = tokenizer, need
        self.fingerprint = tokens_fingerprint(source.fingerprint, tokenizer)
        self._data_dir = DataDir(source.settings.data_dir)
        self.directory = self._data_dir.tokens(self.fingerprint)
        self.index = ShardIndex(source.fingerprint, tokenizer.fingerprint)
        self.progress = PrepareProgress(tokens_total=need.stop)
        self._maker = ShardMaker(
            source, tokenizer, self.directory, shard_tokens, limits, is_held_out
        )
        self._cache = cache(self.fingerprint)
        self._missing = MissingShards(self._data_dir, self.fingerprint, self._maker, self._cache)
        self._uploader = (
            CacheUploader(self._cache, self.directory, self._repair) if self._cache else None
        )
        self._report = report
        self._shard_tokens, self._limits, self._clock = shard_tokens, limits, clock
        self._verified: set[str] = set()
        self._changed = threading.Condition()
        self._done = self._closed = False
        self._failure: BaseException | None = None

    @property
    def train(self) -> TokenShards:
        return TokenShards(self.directory, "train", self.index)

    @property
    def validation(self) -> TokenShards:
        return TokenShards(self.directory, "validation", self.index)

    def start(self) -> None:
        """Work in another thread; the caller then waits for what it reads."""
        threading.Thread(target=self._run_behind, name="preparation", daemon=True).start()

    def run(self) -> None:
        """Work until the need is met, and until what was made is in the cache.

        Raises what `PinnedSource.pieces` raises; ConfigError for a dataset without text; for
        DATA_DIR AccessDenied (not writable) or Unavailable (full); Damaged for a changed cache; and
        what `TokenCache.upload` raises.
        """
        try:
            self._work()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._end()
        if self._uploader:
            self._uploader.finish()

    def close(self) -> None:
        """End the work. The tokens that were made are kept."""
        # The uploader first: else it would report a repair that ends here as damage.
        if self._uploader:
            self._uploader.close()
        self._closed = True
        self._maker.close()

    def wait_for(self, split: Split, n_tokens: int, waiting: Waiting) -> ShardIndex:
        """The index, as soon as it has `n_tokens` tokens of `split`, or is complete.

        Raises what ended the preparation, where that was before.
        """
        # The progress counts training tokens, and they come in whole shards.
        enough = n_tokens * (1 if split == "train" else HELD_OUT_ONE_IN)
        if enough > self._limits.first_shard_tokens:
            enough = -(-enough // self._shard_tokens) * self._shard_tokens

        def there() -> bool:
            return self.index.complete or self.index.n_tokens(split) >= n_tokens

        while not there():
            self._wait(there, lambda progress: waiting(replace(progress, tokens_total=enough)))
        return self.index

    def require(
        self, split: Split, starts: npt.NDArray[np.int64], length: int, waiting: Waiting
    ) -> None:
        """Wait until the shards with tokens [start, start + length) of each start are here.

        Each is compared with its SHA-256 once. A shard that is damaged or cannot be read, or that
        the preparation does not bring, is brought now. Raises what `wait_for` raises, and what
        `MissingShards` raises.
        """
        for named in self.index.shards_with(split, starts, length):
            if named.name not in self._verified:
                self._require(named, waiting)

    def bring_again(
        self, split: Split, starts: npt.NDArray[np.int64], length: int, waiting: Waiting
    ) -> None:
        """As `require`, for tokens that were here before, and could not be read any more."""
        for named in self.index.shards_with(split, starts, length):
            self._bring(named, waiting)

    def _require(self, named: NamedShard, waiting: Waiting) -> None:
        def decided() -> bool:
            return not (is_missing(self.directory, named) and self._is_coming(named))

        while not decided():
            self._wait(decided, waiting)
        self._bring(named, waiting)

    def _bring(self, named: NamedShard, waiting: Waiting) -> None:
        try:
            verify(self.directory, named)
        except AppError:
            self._missing.bring_one(self.index, named, self._go_on, lambda: waiting(self.progress))
        self._verified.add(named.name)

    def _is_coming(self, named: NamedShard) -> bool:
        """Whether the preparation brings this shard, or would have brought it had it not failed."""
        return not (self._done and self._failure is None) and named in self.need.shards(self.index)

    def _wait(self, there: Callable[[], bool], waiting: Waiting) -> None:
        """Wait for a moment, unless what is waited for is `there`. Raises where it never will be.

        `there` is asked again here, under the lock: the preparation may have ended since the
        caller asked, and what it did last may be what the caller waits for.
        """
        with self._changed:
            if there():
                return
            if self._done:
                raise self._failure or AppError(f"{self.need} was too little")
            self._changed.wait(_POLL_SECONDS)
            if not there():
                waiting(self.progress)

    def _run_behind(self) -> None:
        try:
            with suppress(_Closed):
                self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error
            if self.index.seals:  # without a seal, somebody waits for the first one and raises it
                log.warning(
                    "no more tokens come, the %s that are there are used: %s",
                    f"{self.index.n_tokens('train'):,}",
                    error,
                )
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._done = True
            self._changed.notify_all()

    def _work(self) -> None:
        self._reported = self._clock()
        with disk_failures(self._data_dir.setting):
            self._follow_index()
            self._adopt_cached()
            self._fetch_missing()
            while not self.need.met_by(self.index):
                self._extend()
            self._fetch_missing()  # a job that began late reads the first shards in a next epoch
        if self._uploader:
            self._uploader.submit(self.index)

    def _follow_index(self) -> None:
        """Read the index that the writing process has written. A damaged one is left to it."""
        with suppress(Damaged):
            index = read_index(self.directory, self.index.source, self.index.tokenizer)
            if index.continues(self.index):
                self._publish(index)

    def _publish(self, index: ShardIndex) -> None:
        with self._changed:
            self.index = index
            self.progress = replace(
                self.progress,
                documents=index.tally.documents,
                tokens=index.n_tokens("train"),
                tokens_total=self.need.stop,
                complete=self._is_met(),
            )
            self._changed.notify_all()

    def _adopt_cached(self) -> None:
        """Take over the bucket's index where it has all of our seals and more."""
        if self._cache is None or self.need.met_by(self.index):
            return
        try:
            cached = self._cache.read_index(self.index.source, self.index.tokenizer)
        except AppError as error:
            log.warning("the token cache is not used: %s", error)
            return
        if not cached.continues(self.index):
            if not self.index.continues(cached) and cached != self.index:
                log.warning("the token cache %s holds other tokens: not used", self._cache.uri)
            return
        with suppress(_MadeElsewhere), self._locked():
            if cached.continues(mended_index(self.directory, self.index)):
                write_index(self.directory, cached)
                log.info("%s tokens are in %s", f"{cached.n_tokens('train'):,}", self._cache.uri)
            self._follow_index()

    def _fetch_missing(self) -> None:
        """Bring the shards that are not here, in the order in which the job needs them."""
        needed = self.need.shards(self.index)
        missing = [named for named in needed if is_missing(self.directory, named)]
        if not missing:
            return
        with closing(self._missing.bring(self.index, missing, self._advance)) as coming:
            for number, named in enumerate(coming, start=1):
                self._verified.add(named.name)
                self._advance(shards_fetched=number, shards_total=len(missing))
        log.info("%s of tokens fetched", counted(len(missing), "shard"))
        self.progress = replace(self.progress, shards_fetched=0, shards_total=0)

    def _extend(self) -> None:
        """Make the tokens that are missing, unless another process does so."""
        with suppress(_MadeElsewhere), self._locked():
            self._publish(mended_index(self.directory, self.index))
            if self._is_met():
                return
            began = self._clock()

            def count(documents: int, tokens: int, made: int) -> None:
                self._advance(
                    documents=documents,
                    tokens=tokens,
                    tokens_made=made,
                    seconds=self._clock() - began,
                )

            for index in self._maker.extend(self.index, count):
                newest = len(index.seals) - 1
                for shards in index.shards.values():
                    self._verified.update(n.name for n in shards[-1:] if n.seal == newest)
                with self._changed:  # so that nobody who waits logs a line between these two
                    if self.need.met_by(index):
                        whole = (
                            "data complete" if index.complete else "all tokens of the run are there"
                        )
                        log.info("%s: %s tokens", whole, f"{index.n_tokens('train'):,}")
                    self._publish(index)
                if self._uploader:
                    self._uploader.submit(index)
                if self._is_met():
                    return

    def _is_met(self) -> bool:
        return self.need.met_by(self.index)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the one process that writes. While another one holds it, follow the
        index that it writes; raises _MadeElsewhere once that is enough."""

        def follow() -> None:
            self._follow_index()
            if self._is_met():
                raise _MadeElsewhere
            self._advance()

        self.directory.mkdir(parents=True, exist_ok=True)
        with locked_folder(self.directory, follow):
            yield

    def _repair(self, index: ShardIndex, named: NamedShard) -> None:
        with suppress(_Closed):
            self._missing.restore(index, named, self._go_on)

    def _advance(self, **changes: Any) -> None:
        """Note the progress, and report it when it is time. Raises _Closed if the process ends."""
        self._go_on()
        self.progress = replace(self.progress, **changes)
        now = self._clock()
        if now - self._reported >= self._limits.report_seconds:
            self._reported = now
            self._report(self.progress)

    def _go_on(self) -> None:
        if self._closed:
            raise _Closed
