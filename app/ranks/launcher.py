"""Starts the processes of a run on this machine, hands signals on to them, and ends as they did.

torchrun would do the first two. But whatever its workers end with, it ends with 1, and an
orchestrator needs the code: whether to start again is written there.

The first process is started alone. It looks at settings, store and data, so that what is wrong is
said once and costs seconds. Where there are several nodes, it meets those of the others. Then it
says at which port rank 0 waits, and the others of this node are started.
"""

import logging
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from app.errors import EXIT_INTERRUPTED, EXIT_OK, AppError, LostPeer, Preempted
from app.ranks.awake import AwakeClock
from app.settings.place import JOINING, TRAINING, Place

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_KILL_AFTER = 5.0  # seconds beyond GRACE_SECONDS, in which each process ends itself
_HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_KILLED = 128 + signal.SIGKILL
# What decides, first to last: a refusal, which no other start changes, a bug, a kill by the system
# for want of memory, a stop in order, and a lost peer, which is what the others see of all these.
_DECISIVE = (78, 77, 64, 79, AppError.exit_code, EXIT_INTERRUPTED, _KILLED)
_LAST = (Preempted.exit_code, LostPeer.exit_code, EXIT_OK)


@dataclass(frozen=True)
class Patience:
    """Seconds. `grace` is GRACE_SECONDS, `peer` is PEER_TIMEOUT, `lease` is LEASE_TTL."""

    grace: float
    peer: float
    lease: float = 30.0


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    code: int | None = None  # once it has ended; negative: the signal that killed it
    counts: bool = True  # not where the launcher itself ended it
    out_of_memory: bool = False  # the system killed it
    paused: float = 0.0  # seconds for which it was seen to be, without a break

    def send(self, number: int) -> None:
        if self.code is None:
            self.process.send_signal(number)


def kills_for_memory() -> int:
    """How many processes of our control group the kernel has killed since memory ran out; of the
    machine where the group does not say it."""
    events = [Path("/proc/vmstat")]
    try:
        group = Path("/proc/self/cgroup").read_text("utf-8").rpartition("::")[2].strip()
        events.insert(0, Path(f"/sys/fs/cgroup{group}/memory.events"))
    except OSError:
        pass
    for path in events:
        try:
            counts = dict(line.split() for line in path.read_text("utf-8").splitlines())
        except (OSError, ValueError):
            continue
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0


class Launcher:
    """Runs `command` as `size` processes of this node, which `place` names. `run` returns the exit
    code that says how they ended."""

    def __init__(
        self,
        command: Sequence[str],
        size: int,
        patience: Patience,
        kills_for_memory: Callable[[], int] = kills_for_memory,
        place: Place | None = None,
    ) -> None:
        """`kills_for_memory` counts processes that the system has killed since memory ran out."""
        self._kills_for_memory, self._kills = kills_for_memory, kills_for_memory()
        self._command, self._size, self._patience = command, size, patience
        # A guess, until all nodes have said how many they start.
        place = place or Place()
        self._place = replace(
            place,
            rank=place.node * size,
            world_size=place.nodes * size,
            launcher=os.getpid(),
            neighbours=size if place.nodes > 1 else 0,
        )
        self._workers: list[_Worker] = []
        self._trains = False  # all have joined: from here on they notice what happens to others
        self._asked_at: float | None = None  # since when they are to end
        self._handed_on = False
        self._over_at: float | None = None  # since when one has failed, or rank 0 has ended
        self._clock = AwakeClock(most=1.0)  # the launcher may be paused, and the others with it
        self._now = 0.0

    def run(self) -> int:
        """Only the main thread may call this: from here on signals are handed on."""
        for number in _HANDED_ON:
            # nohup asks to go on without a terminal
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hand_on)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, self._pause)
        reader, writer = os.pipe()
        self._start(0, news=writer)
        os.close(writer)
        unread = b""
        open_pipe = True
        while self._living():
            readers = [reader] if open_pipe else []
            if select.select(readers, [], [], _POLL_SECONDS)[0]:
                text = os.read(reader, 512)
                open_pipe, unread = bool(text), unread + text
                *lines, unread = unread.split(b"\n")
                for line in lines:
                    self._note(line)
            for worker in self._living():
                worker.code = worker.process.poll()
                if worker.code is not None:
                    self._ended(worker)
            self._end_what_hangs()
        os.close(reader)
        return self._code()

    def _start(self, number: int, news: int | None = None) -> None:
        """Process `number` of this node."""
        first = self._place
        place = replace(first, rank=first.rank + number, local_rank=number, news=news)
        # A group of its own: else Ctrl-C would reach it twice, and that ends it at once.
        process = subprocess.Popen(
            self._command,
            env=place.environment(),
            process_group=0,
            pass_fds=[] if news is None else [news],
        )
        worker = _Worker(place.rank, process)
        self._workers.append(worker)
        if self._asked_at is not None:  # the signal came while it was started
            worker.send(signal.SIGTERM)

    def _note(self, line: bytes) -> None:
        if line == TRAINING:
            self._trains = True
        elif line.startswith(JOINING):
            port, *seats = (int(word) for word in line.split()[1:])
            self._place = replace(self._place, port=port)
            if seats:
                self._take_seats(*seats)
            for number in range(1, self._size) if self._asked_at is None else ():
                self._start(number)

    def _take_seats(self, first: int, size: int) -> None:
        """All nodes are there, and our processes are those from rank `first` on."""
        self._place = replace(self._place, rank=first, world_size=size)
        self._workers[0].rank = first
        if self._place.node:
            ours = ", ".join(str(first + number) for number in range(self._size))
            log.info("all nodes are here; of %d ranks these are ours: %s", size, ours)

    def _living(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.code is None]

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._handed_on = True
        self._ask_all_to_end()
        for worker in self._living():
            # A worker that still loads its libraries has no handlers: SIGTERM ends it as asked.
            worker.send(number if self._trains else signal.SIGTERM)

    def _pause(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z. A terminal pauses the launcher alone: the others are groups of their own."""
        for worker in self._living():
            worker.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for worker in self._living():  # it goes on
            worker.send(signal.SIGCONT)

    def _ask_all_to_end(self) -> None:
        if self._asked_at is None:
            self._asked_at = self._now

    def _ended(self, worker: _Worker) -> None:
        """Say how, where it could not, and end those that cannot know."""
        code = worker.code
        others = self._living()
        if code is not None and code < 0 and worker.counts:
            self._say_killed(worker, -code)
        if code == EXIT_OK and worker is not self._workers[0]:
            return
        if self._over_at is None:
            self._over_at = self._now
        if code == EXIT_OK and self._trains:
            return
        preempted = code in (Preempted.exit_code, -signal.SIGTERM)
        if not others or (self._trains and not preempted):
            return  # they notice by themselves, and keep the steps that were made
        for other in others:
            other.counts = preempted and self._trains
            other.send(signal.SIGTERM)
        self._ask_all_to_end()

    def _say_killed(self, worker: _Worker, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGKILL and self._kills_for_memory() > self._kills:
            worker.out_of_memory = True
            log.error(
                "rank %d was killed by the system since memory ran out: give the job more memory, "
                "or set a smaller BATCH_SIZE (exit %d)",
                worker.rank,
                _KILLED,
            )
        elif number != signal.SIGTERM:
            log.error("rank %d was killed by %s", worker.rank, name)

    def _end_what_hangs(self) -> None:
        """SIGKILL for what cannot end by itself: past the grace, paused, or left over."""
        before, self._now = self._now, self._clock()
        now, passed = self._now, self._now - before
        living = self._living()
        if self._asked_at is not None and now - self._asked_at > self._patience.grace + _KILL_AFTER:
            self._kill(living, "it did not end within GRACE_SECONDS")
        for worker in living:
            worker.paused = worker.paused + passed if _is_paused(worker.process.pid) else 0.0
            if worker.paused > self._patience.peer:
                self._kill([worker], "it is paused, and the others do not wait for longer")
        if self._over_at is not None and now - self._over_at > self._longest_end():
            self._kill([worker for worker in living if worker.rank], "it hangs")

    def _longest_end(self) -> float:
        """How long after the first failure a process that does not hang may be at work."""
        patience, rank_0 = self._patience, self._workers[0].code
        if self._place.node:  # it may be the one that commits, where node 0 is gone
            return patience.peer + 2 * patience.grace + 2 * patience.lease
        # Who waits for what rank 0 still commits has ended: what is left of the others hangs.
        return patience.peer + patience.grace if rank_0 is None or rank_0 >= 0 else math.inf

    def _kill(self, workers: Sequence[_Worker], why: str) -> None:
        for worker in workers:
            if worker.code is None and worker.counts:
                worker.counts = False
                log.error("rank %d is killed: %s", worker.rank, why)
            worker.send(signal.SIGKILL)

    def _code(self) -> int:
        """The code that decides, of those that ended by themselves."""
        codes = {_exit_code(worker) for worker in self._workers if worker.counts}
        if self._workers[0].code == EXIT_OK or (self._place.node and EXIT_OK in codes):
            return EXIT_OK  # rank 0 has committed the last step, and said so to the other nodes
        if not codes:  # each had to be killed
            return Preempted.exit_code if self._handed_on else LostPeer.exit_code
        signals = sorted(code for code in codes if code not in (*_DECISIVE, *_LAST))
        return next(code for code in (*_DECISIVE, *signals, *_LAST) if code in codes)


def _exit_code(worker: _Worker) -> int:
    """Of a process that a signal killed: what a start after it may mend, is tried again."""
    code = worker.code
    if worker.out_of_memory:
        return _KILLED
    if code is None or code == -signal.SIGKILL:
        return LostPeer.exit_code
    return 128 - code if code < 0 else code


def _is_paused(pid: int) -> bool:
    """Whether the process got SIGSTOP."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in "Tt"


def command_line(flags: Mapping[str, str]) -> list[str]:
    """The command of a worker: this interpreter's `train`, with the same flags."""
    given = [part for flag in flags.items() for part in flag]
    return [sys.executable, "-m", "app", "train", *given]
