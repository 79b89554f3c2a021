"""Shards that an index names and DATA_DIR lacks or holds damaged: fetched, or made again.

A file that cannot be read is worth no more than a damaged one: DATA_DIR is a cache.
"""

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from app.data.locks import locked_folder, own_folder
from app.data.retries import Backoff
from app.data.shards import NamedShard, ShardIndex, is_missing, verify
from app.data.token_cache import TokenCache
from app.data.tokenization import ShardMaker
from app.errors import AccessDenied, AppError, Damaged, NotFound, Unavailable
from app.failures import disk_failures

log = logging.getLogger(__name__)

_DOWNLOADS = 8  # at once
_POLL_SECONDS = 0.2


class MissingShards:
    """Brings them to `directory`, whoever else does so at the same time."""

    def __init__(self, directory: Path, corpus: ShardMaker, cache: TokenCache | None) -> None:
        self._directory, self._corpus, self._cache = directory, corpus, cache
        self._refused = False

    def bring(
        self, index: ShardIndex, wanted: Sequence[NamedShard], goes_on: Callable[[], None]
    ) -> Generator[NamedShard, None, None]:
        """Each of `wanted`, in that order, as soon as it is here and verified.

        What the bucket cannot give is made again: it is a cache, and whether the run may be kept
        there is found out elsewhere. One that does not answer is waited for, two minutes in all.
        `goes_on` is called while a shard is made; what it raises ends the work. Raises as
        `restore`; a disk here that refuses a download would refuse a shard that is made again.
        """
        incoming = self._directory / "incoming"
        with disk_failures(f"DATA_DIR: {incoming}"), own_folder(incoming) as scratch:
            pool = ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="token-download")
            backoff = Backoff()

            def fetch(named: NamedShard, again: bool = False) -> Future[None]:
                return pool.submit(self._fetch, named, scratch, again)

            try:
                for named, download in [(named, fetch(named)) for named in wanted]:
                    try:
                        _await(download, partial(fetch, named, again=True), backoff)
                    except (Damaged, NotFound, Unavailable) as error:
                        log.warning("%s: made again from the source", error)
                        self.restore(index, named, goes_on)
                    except AccessDenied as error:
                        self._say_once(error)
                        self.restore(index, named, goes_on)
                    yield named
            finally:
                # Who is interrupted does not wait for a bucket that is silent.
                pool.shutdown(wait=False, cancel_futures=True)

    def bring_one(
        self,
        index: ShardIndex,
        named: NamedShard,
        goes_on: Callable[[], None],
        waiting: Callable[[], None],
    ) -> None:
        """As `bring`, behind the caller, who calls `waiting`: what that raises ends the wait."""
        outcome: Future[None] = Future()

        def work() -> None:
            try:
                for _ in self.bring(index, [named], goes_on):
                    log.info("%s was needed and is here now", named.name)
                outcome.set_result(None)
            except BaseException as error:  # noqa: BLE001 - raised again by `result`
                outcome.set_exception(error)

        threading.Thread(target=work, name="missing-shard", daemon=True).start()
        while not outcome.done():
            waiting()
            wait([outcome], _POLL_SECONDS)
        outcome.result()

    def restore(self, index: ShardIndex, named: NamedShard, goes_on: Callable[[], None]) -> None:
        """Make a shard again from the source. Raises what `ShardMaker.restore` raises; what
        the disk says of the shard's file as an AppError that names it.

        `goes_on` is called meanwhile; what it raises ends the work.
        """
        # A lock of its own: who goes on after the index holds the other one for hours.
        folder = self._directory / "restoring"
        with disk_failures(f"DATA_DIR: {self._directory / named.name}"):
            folder.mkdir(exist_ok=True)
            with locked_folder(folder, goes_on):
                if self._is_whole(named):  # another process made it
                    return
                try:
                    self._corpus.restore(index, named.seal, goes_on)
                except Damaged as error:
                    origin = self._cache and f" (and {self._cache.uri}, if they come from there)"
                    raise Damaged(f"{error}{origin or ''}") from error

    def _fetch(self, named: NamedShard, scratch: Path, again: bool) -> None:
        try:
            verify(self._directory, named)
        except AppError as error:
            if self._cache is None:
                raise Damaged(str(error)) from error  # to be made again, whatever is wrong with it
            if not (again or is_missing(self._directory, named)):
                log.warning("%s: fetched again", error)
            self._cache.fetch(named, scratch, self._directory)

    def _say_once(self, refusal: AccessDenied) -> None:
        """A policy refuses a whole prefix: one loud line, and not one for each shard."""
        if not self._refused:
            log.error(
                "NO ACCESS TO CACHED TOKENS: what is refused is made again from the source: %s",
                refusal,
            )
        self._refused = True

    def _is_whole(self, named: NamedShard) -> bool:
        try:
            verify(self._directory, named)
        except AppError:
            return False
        return True


def _await(download: Future[None], again: Callable[[], Future[None]], backoff: Backoff) -> None:
    while True:
        try:
            download.result()
        except Unavailable as error:
            backoff.failed(error)
            download = again()
        else:
            backoff.worked()
            return
