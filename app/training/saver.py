"""Saving behind the training loop: one checkpoint in flight, one waiting.

The training loop hands over a snapshot and goes on. A newer snapshot replaces the one that
waits. Whatever the store answers, the saver tries again with growing pauses, since the same store
took a start a while ago. It gives up when no checkpoint could be committed for GIVE_UP_SECONDS.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from app.console import duration, size
from app.errors import AccessDenied, ConfigError, Damaged, Unavailable
from app.observe.rows import Beginning
from app.run.checkpoints import Manifest, write_latest
from app.run.committing import commit
from app.run.journal import AttemptJournal
from app.run.layout import CheckpointName
from app.run.lease import Lease
from app.run.retention import prune, remove_unfinished, stopping_no_start
from app.run.view import read_view
from app.settings.variables import CheckpointSettings
from app.state.snapshot import Snapshot
from app.stores.contract import Store

log = logging.getLogger(__name__)

_LONGEST_PAUSE = 30.0  # seconds between two tries
# A key service has its hiccup, a clock is set, a bucket is restored. Fenced is not among them.
_MAY_PASS = (Unavailable, AccessDenied, ConfigError)


@dataclass(frozen=True)
class SaveRequest:
    """A snapshot, and the logs (by key) that go into the store before it.

    `taken_at` is when the snapshot was taken, in seconds of the monotonic clock.
    """

    snapshot: Snapshot
    logs: Mapping[str, Beginning]
    taken_at: float = field(default_factory=time.monotonic)


class CheckpointSaver:
    """Commits snapshots on a thread of its own."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        settings: CheckpointSettings,
        extra_files: Mapping[str, bytes],
        journal: AttemptJournal,
        protected: Sequence[CheckpointName] = (),
        first_pause: float = 1.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`extra_files` go into every checkpoint, and `protected` checkpoints are never pruned.
        `on_commit` is called after each commit, on the saver's thread, and may not wait.

        `first_pause` is how many seconds pass before the second try. `now` is in seconds.
        """
        self.on_commit: Callable[[CheckpointName, Manifest], None] = lambda name, manifest: None
        self.committed_step: int | None = None
        self.committed_at: float | None = None
        self.last_commit_seconds = 0.0
        self.saves_committed = 0
        self.failed_saves = 0  # since the last commit
        self.saving_step: int | None = None
        self.store, self._lease, self._settings = store, lease, settings
        self._extra_files, self._journal, self._protected = extra_files, journal, protected
        self._first_pause, self._now = first_pause, now
        self._prune_failed = False  # as of the newest save
        self._waiting: SaveRequest | None = None
        self._busy = False
        self._closing = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint-saver", daemon=True)
        self._thread.start()

    def submit(self, request: SaveRequest) -> None:
        """Hand over a snapshot. Raises what stopped an earlier save for good."""
        with self._changed:
            self.raise_if_failed()
            if self._waiting is not None:
                skipped = self._waiting.snapshot.step
                log.warning(
                    "checkpoint step %d skipped: step %d is newer", skipped, request.snapshot.step
                )
            self._waiting = request
            self._changed.notify_all()

    def raise_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is in flight or waiting; False if `timeout` seconds were not enough.

        Raises what stopped a save for good.
        """
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._failure is not None or not (self._busy or self._waiting), timeout
            )
            self.raise_if_failed()
            return done

    def close(self) -> None:
        """Let the thread end after the save in flight. A snapshot that still waits is dropped."""
        with self._changed:
            self._closing = True
            self._waiting = None
            self._changed.notify_all()

    def _run(self) -> None:
        while (request := self._take()) is not None:
            try:
                self._save_until_committed(request)
            except BaseException as error:  # noqa: BLE001 - handed to the training loop, which raises it
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._busy, self.saving_step = False, None
                self._changed.notify_all()

    def _take(self) -> SaveRequest | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting is not None)
            request, self._waiting = self._waiting, None
            self._busy = request is not None
            self.saving_step = request.snapshot.step if request else None
            return request

    def _save_until_committed(self, request: SaveRequest) -> None:
        began, pause = self._now(), self._first_pause
        while True:
            try:
                self._save(request)
                return
            except _MAY_PASS as error:
                self.failed_saves += 1
                self._journal.save_failed()
                stale = self._now() - began
                if stale >= self._settings.give_up_seconds:
                    self._clear_up()
                    raise type(error)(
                        f"no checkpoint could be saved for {duration(stale)} "
                        f"(GIVE_UP_SECONDS={self._settings.give_up_seconds:g}): {error}"
                    ) from error
                pause = min(pause, self._settings.give_up_seconds - stale)
                log.warning(
                    "saving step %d failed, again in %.0f s: %s",
                    request.snapshot.step,
                    pause,
                    error,
                )
            with self._changed:
                # A newer snapshot is tried at once: it may be the last one.
                self._changed.wait_for(lambda: self._closing or self._waiting, timeout=pause)
                if self._closing:
                    return
                if self._waiting is not None:
                    request, self._waiting = self._waiting, None
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _save(self, request: SaveRequest) -> None:
        started = self._now()
        snapshot = request.snapshot
        snapshot.bring_to_host()
        self._lease.check()
        for key, rows in request.logs.items():
            self._lease.put(key, rows.content())
        manifest = commit(
            self.store,
            CheckpointName(snapshot.step, self._lease.epoch),
            snapshot.files(self._extra_files),
            snapshot.progress.train_loss,
            self._lease,
        )
        self.last_commit_seconds = self._now() - started
        self.committed_at = self._now()
        self.committed_step = snapshot.step
        self.saves_committed += 1
        self.failed_saves = 0
        self._journal.committed(self.committed_at - request.taken_at)
        self.on_commit(CheckpointName(snapshot.step, self._lease.epoch), manifest)
        log.info(
            "checkpoint step %d saved: %s in %.1f s",
            snapshot.step,
            size(manifest.total_bytes),
            self.last_commit_seconds,
        )
        self._tidy()

    def _clear_up(self) -> None:
        """Remove from a volume what the saves that failed have written of their checkpoints.

        On a full one that is the space that is missing. In a bucket the next start does it: there a
        request that was given up, as that of the manifest, may still be carried out.
        """
        with stopping_no_start("what is left of the saves that failed stays until the next start"):
            if self.store.free_bytes() is not None:
                epoch, lease = self._lease.epoch, self._lease
                for name in remove_unfinished(self.store, read_view(self.store), epoch + 1, lease):
                    log.info("removed what was written of %s", name)

    def _tidy(self) -> None:
        """Write down the commit in the journal, and remove old checkpoints.

        If that fails, training goes on: the next save tries again.
        """
        try:
            for key, buffers in self._journal.objects().items():
                self.store.put(key, buffers)
            view, keep_top = read_view(self.store), self._settings.keep_top
            if view.committed and view.latest != str(view.committed[0]):
                write_latest(view.committed[0], self._lease)  # it was refused at the commit
            pruned = prune(self.store, view, keep_top, self._protected, self._lease)
        except (*_MAY_PASS, Damaged) as error:
            if not self._prune_failed:
                log.warning(
                    "old checkpoints could not be removed, tried again after each save: %s", error
                )
            self._prune_failed = True
            return
        self._prune_failed = False
        if pruned:
            log.info("pruned %s", ", ".join(f"step {name.step}" for name in pruned))
