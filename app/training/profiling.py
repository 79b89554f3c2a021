"""PROFILE_STEPS: what a few steps spend their time on, as a trace beside the attempt's record.

torch's profiler notes every operation, so it holds some megabytes for each micro-step, and takes
seconds to put them together. That is why their number is bounded. The trace is written and
sent by a thread of its own, and an attempt that is asked to stop waits for neither.
"""

import gzip
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from app.console import size
from app.data.data_dir import own_folder
from app.failures import disk_failures, first_line
from app.heartbeat import beat
from app.process import in_background
from app.run.layout import profile_key
from app.stores.contract import Store

log = logging.getLogger(__name__)

_OPEN = (
    "open it at https://ui.perfetto.dev (it stays in the browser), or in TensorBoard with "
    "torch-tb-profiler"
)


@dataclass(frozen=True)
class ProfileLimits:
    """`micro_steps` of one profile, and `bytes` of a trace as it is stored. A trace is waited for
    in pauses of `poll_seconds`."""

    micro_steps: int = 32
    bytes: int = 256 << 20
    poll_seconds: float = 0.1


@dataclass(frozen=True)
class TraceKeeper:
    """Where a trace goes: into the store that `opened` gives, as that of this attempt and rank.
    Until it is there it lies in `scratch`."""

    opened: Callable[[], Store]
    scratch: Path
    epoch: int
    rank: int
    limits: ProfileLimits = ProfileLimits()

    def keep(self, profiler: profile, steps: range) -> None:
        """Write the trace of these steps, and put it into the store. What fails is said."""
        try:
            with disk_failures(f"DATA_DIR: {self.scratch}"), own_folder(self.scratch) as folder:
                plain, packed = folder / "trace.json", folder / "trace.json.gz"
                profiler.export_chrome_trace(str(plain))
                with plain.open("rb") as whole, gzip.open(packed, "wb", compresslevel=6) as file:
                    shutil.copyfileobj(whole, file, 1 << 20)
                content = packed.read_bytes()
            where = f"the profile of steps {steps[0]} to {steps[-1]}, rank {self.rank}"
            if len(content) > self.limits.bytes:
                log.warning("%s is not kept: it has %s", where, size(len(content)))
                return
            store, key = self.opened(), profile_key(self.epoch, self.rank, steps[0], steps[-1])
            store.put(key, [content])
            log.info("%s: %s/%s (%s): %s", where, store.uri, key, size(len(content)), _OPEN)
        except Exception as error:  # noqa: BLE001 - it is for people alone: it ends no run
            log.warning("a profile was not kept: %s", first_line(error))


class StepProfiler:
    """Profiles the steps `wanted` of an attempt; does nothing where that is None.

    Only the thread that trains calls it.
    """

    def __init__(self, wanted: range | None, keeper: TraceKeeper, device: torch.device) -> None:
        self._wanted, self._keeper, self._device = wanted, keeper, device
        self._profiler: profile | None = None
        self._step: record_function | None = None  # the one that is made, for its name in the trace
        self._first = self._micro_steps = 0
        self._kept: Future[None] | None = None

    def begin(self, step: int, target: int) -> None:
        """Training goes on after `step`. Says whether there is nothing to profile."""
        if self._wanted is None:
            return
        first, last = self._wanted[0], self._wanted[-1]
        if step >= last:
            log.info("PROFILE_STEPS=%d-%d: these steps are past, nothing is profiled", first, last)
            self._wanted = None
        elif first > target:
            log.info(
                "PROFILE_STEPS=%d-%d: the run ends at step %d, nothing is profiled",
                first,
                last,
                target,
            )
            self._wanted = None
        else:
            self._wanted = range(max(first, step + 1), min(last, target) + 1)

    def step_begins(self, step: int) -> None:
        if self._wanted is None or step not in self._wanted:
            return
        if self._profiler is None:
            log.info("profiling steps %d to %d: they are slower", step, self._wanted[-1])
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profiler, self._first = profile(activities=activities), step
            self._profiler.start()
        self._step = record_function(f"step {step}")
        self._step.__enter__()

    def micro_step_done(self) -> None:
        if self._profiler is not None:
            self._micro_steps += 1

    def step_done(self, step: int) -> None:
        """`step` is over. The last one of a profile hands its trace to another thread."""
        profiler = self._profiler
        if profiler is None or self._wanted is None:
            return
        self._end_step()
        full = self._micro_steps >= self._keeper.limits.micro_steps
        if step < self._wanted[-1] and not full:
            return
        if step < self._wanted[-1]:
            log.info(
                "the profile ends after step %d: more than %d micro-steps make it too large",
                step,
                self._keeper.limits.micro_steps,
            )
        steps, self._profiler, self._wanted = range(self._first, step + 1), None, None
        profiler.stop()
        beat()
        self._kept = in_background(lambda: self._keeper.keep(profiler, steps), "profile")

    def close(self, fits: Callable[[], bool]) -> None:
        """The attempt ends: wait for a trace that is on its way, for as long as time `fits`."""
        if self._profiler is not None:
            log.warning("the attempt ends before the profiled steps do: nothing of them is kept")
            self._end_step()
            if fits():
                self._profiler.stop()
            self._profiler = None
        kept = self._kept
        while kept is not None:
            try:
                kept.result(self._keeper.limits.poll_seconds)
                return
            except TimeoutError:
                beat()
                if not fits():
                    log.warning("the profile is not in the store: there is no time left for it")
                    return

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
