"""The processes that make a run's steps, as one of them sees the others.

Each method is called by all of them, in the same order. A team of one does nothing, and has no
process group. Numbers that decide something go over gloo, between the hosts: that is torch's
default group here. What lies on cards goes over NCCL, in a group of its own. So a decision waits
for no card, and its failure is an exception.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from app.errors import ConfigError, LostPeer, Unavailable
from app.failures import first_line
from app.heartbeat import beat
from app.ranks.awake import AwakeClock
from app.ranks.meeting import (
    Assembly,
    Meeting,
    MeetingLimits,
    NotThisMeeting,
    answer_within,
)
from app.settings.network import talk_over_interface_to
from app.settings.place import JOINING, TRAINING, Place

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

log = logging.getLogger(__name__)

_FIRST_SECONDS = 300.0  # until the first step is done, which may be compiled
_SLICE_SECONDS = 0.5  # of a wait: between two of them Python hears signals
_MEETING_SECONDS = 0.2
_CONNECTING_SECONDS = 5.0
_SAID_AFTER = 5.0  # seconds of waiting for node 0
_SHORTEST_ANSWER = 10.0
_POLL_SECONDS = 0.0005  # for what is on a card


class Wish(IntEnum):
    """What one process wants; the greatest wish of all counts for all."""

    GO_ON = 0
    WAIT = 1  # for data
    STOP = 2  # after this step
    DROP = 3  # this step, which does not fit into the grace period any more


class Team:
    """`stopping` says that the team has agreed to stop. `cards` is the group of what lies on cards;
    None on a CPU.
    """

    def __init__(self, place: Place, peer_timeout: float) -> None:
        """A process is lost if it is silent for `peer_timeout` seconds.

        Raises ConfigError for several processes where torch was built for one.
        """
        if place.world_size > 1 and not dist.is_available():
            raise ConfigError(
                f"this build of torch ({torch.__version__}) has no torch.distributed, and several "
                "processes need it: set DEVICES=1, or install another build"
            )
        self.place, self.rank, self.size = place, place.rank, place.world_size
        self.stopping = self.joined = False
        self._timeout, self._patience = peer_timeout, max(_FIRST_SECONDS, peer_timeout)
        self._answer_seconds = max(peer_timeout, _SHORTEST_ANSWER)
        self.meeting: Meeting | None = None  # of the nodes, where there are several
        self.assembly: Assembly | None = None  # of them, once all are there
        self._meeting: Store | None = None
        self.cards: dist.ProcessGroup | None = None
        self._waited = 0.0
        self._told: int | None = None  # microseconds, until an agreement has taken it along
        self._heard: list[float] | None = None

    @property
    def is_many(self) -> bool:
        return self.size > 1

    def call(self) -> None:
        """Rank 0 has found nothing wrong: the others may come. They find the port in its news."""
        if not self.is_many or self.meeting is not None:
            return
        if self.place.under_torchrun:
            self._meeting = self._meet()
            return
        # Bound by ourselves: TCPStore would listen on every address of the machine.
        listening = socket.create_server((self.place.address, self.place.port))
        port = int(listening.getsockname()[1])
        self._meeting = self._meet(port, listening.detach())
        self._tell(JOINING + b" %d" % port)

    def host_nodes(self) -> None:
        """For rank 0 with several nodes: let the others come, who wait while it looks at the data.

        Raises Unavailable if the port is taken.
        """
        if self.place.under_torchrun:
            self._meeting = self._meet()
        else:
            address, port = self.place.address, self.place.port
            try:
                listening = _listening_for_nodes(address, port)
            except OSError as error:
                raise Unavailable(
                    f"MASTER_PORT={port} of this machine is taken ({error.strerror}): another "
                    "attempt is ending here, or another program has it; start again, or set another"
                ) from error
            self._meeting = self._meet(port, listening.detach())
        self.meeting = self._meeting_at(self._meeting)

    def find_nodes(self, patience: float | None = None) -> Meeting:
        """For the first process of another node: the meeting, as soon as node 0 holds it.

        Raises LostPeer if it does not within `patience` seconds, which are 300 by default.
        """
        patience = self._patience if patience is None else patience
        until = time.monotonic() + patience
        said = time.monotonic() + _SAID_AFTER
        while True:
            try:
                if not self.place.under_torchrun:
                    address = self.place.address, self.place.port
                    socket.create_connection(address, _CONNECTING_SECONDS).close()
                self._meeting = self._meet(self.place.port)
                self.meeting = self._meeting_at(self._meeting)
                self.meeting.show_presence()
            except (OSError, RuntimeError, NotThisMeeting) as error:
                why = f"MASTER_ADDR={self.place.address}, port {self.place.port}: {error}"
                if time.monotonic() > until:
                    raise LostPeer(f"node 0 was not found in {patience:g} s ({why})") from error
                if time.monotonic() > said:
                    said = float("inf")
                    log.warning("waiting for node 0 (%s)", why)
                beat()
                time.sleep(_SLICE_SECONDS)
            else:
                return self.meeting

    def take_seats(self, assembly: Assembly) -> None:
        """All nodes are there: which rank this process has follows from how many each brings."""
        self.assembly, node = assembly, self.place.node
        first, size = assembly.first_rank(node), assembly.world_size
        place = replace(self.place, rank=first + self.place.local_rank, world_size=size)
        if place.under_torchrun and place != self.place:
            raise LostPeer("torchrun has given the nodes other numbers of processes: start again")
        self.place, self.rank, self.size = place, place.rank, size
        self._tell(JOINING + b" %d %d %d" % (place.port, first, size))

    def join(self, device: torch.device) -> None:
        """Wait until all processes are there. Raises LostPeer if they do not come."""
        cuda = device.type == "cuda"
        timeout = timedelta(seconds=self._patience)
        if self.place.nodes > 1:
            talk_over_interface_to(self.place.address)
        try:
            meeting = self._meeting or self._meet(self.place.port)
            if self.meeting is None and self.place.nodes > 1:
                self.meeting = self._meeting_at(meeting)
            self._gather_at(meeting)
            dist.init_process_group(
                "gloo", store=meeting, rank=self.rank, world_size=self.size, timeout=timeout
            )
            # A group of its own, so that it can be aborted while the hosts still talk.
            self.cards = dist.new_group(backend="nccl", timeout=timeout) if cuda else None
        except (RuntimeError, ValueError, TimeoutError, NotThisMeeting) as error:
            raise LostPeer(
                f"rank {self.rank} of {self.size} did not find the others at "
                f"{self.place.address}:{self.place.port}: {first_line(error)}"
            ) from error
        self.joined = True
        self.agree(Wish.GO_ON)
        self._tell(TRAINING)

    def _gather_at(self, meeting: "Store") -> None:
        """Wait for each other in Python, which hears signals. The others wait for as long as
        rank 0 loads a checkpoint."""
        meeting.set(f"here/{self.rank}", "")
        everyone = range(self.size) if self.rank == 0 else ()
        waited = AwakeClock(most=1.0)
        while not self._has(meeting, [f"here/{rank}" for rank in everyone] or ["go"]):
            if self.meeting is not None and self.rank:
                self.meeting.raise_if_over()
            if self.meeting is not None and self.rank == 0:
                self.meeting.raise_if_one_left()
            if self.rank == 0 and waited() > self._patience:
                missing = [rank for rank in everyone if not meeting.check([f"here/{rank}"])]
                raise LostPeer(
                    f"not all {self.size} processes came within {self._patience:g} s; missing: "
                    f"rank {' and '.join(map(str, missing))}"
                )
            beat()
            time.sleep(_MEETING_SECONDS)
        if self.rank == 0:
            meeting.set("go", "")

    def _has(self, meeting: "Store", keys: list[str]) -> bool:
        def ask() -> bool:
            return bool(meeting.check(keys))

        return answer_within(self._answer_seconds, ask) if self.place.node else ask()

    def _tell(self, line: bytes) -> None:
        """News for the launcher. One that has ended needs none."""
        if self.place.news is not None:
            with contextlib.suppress(OSError):
                os.write(self.place.news, line + b"\n")

    def settled(self) -> None:
        """The first steps are done: from here on nobody may be silent for long."""
        self._patience = self._timeout

    def tell(self, seconds: float) -> None:
        """How long this process needs for its own part of a step. All tell it after the same step:
        the next agreement takes it along, so it costs no message of its own."""
        self._told = max(0, round(1e6 * seconds))

    def take_told(self) -> list[float] | None:
        """What each rank has told, once; None where nothing is new."""
        heard, self._heard = self._heard, None
        return heard

    def take_waited(self) -> float:
        """Seconds spent waiting for the others, since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def agree(self, wish: Wish, patience: float | None = None) -> Wish:
        """The greatest wish of all, for which `patience` seconds are waited, if that is given.

        Raises LostPeer.
        """
        if not self.is_many:
            return wish
        numbers = torch.zeros(1 if self._told is None else 1 + self.size, dtype=torch.int64)
        numbers[0] = wish
        if self._told is not None:
            # Only one rank has anything but 0 in its place: the greatest is what it has told.
            numbers[1 + self.rank] = self._told
        self._wait(dist.all_reduce(numbers, dist.ReduceOp.MAX, async_op=True), patience)
        greatest, *told = numbers.tolist()
        if told:
            self._told, self._heard = None, [micros / 1e6 for micros in told]
        agreed = Wish(greatest)
        self.stopping = self.stopping or agreed >= Wish.STOP
        return agreed

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all, in float64. Raises LostPeer."""
        summed = torch.tensor(numbers, dtype=torch.float64)
        if self.is_many:
            self._wait(dist.all_reduce(summed, async_op=True))
        return [float(number) for number in summed]

    def gather(self, numbers: Tensor) -> Tensor:
        """(N,) of each: (ranks, N), on the host. Raises LostPeer."""
        if not self.is_many:
            return numbers[None]
        rows = list(torch.empty((self.size, *numbers.shape), dtype=numbers.dtype))
        self._wait(dist.all_gather(rows, numbers, async_op=True))
        return torch.stack(rows)

    def all_have(self, number: int) -> bool:
        """Whether `number` (63 bits) is the same everywhere. Raises LostPeer."""
        if not self.is_many:
            return True
        both = torch.tensor([number, -number], dtype=torch.int64)
        self._wait(dist.all_reduce(both, dist.ReduceOp.MAX, async_op=True))
        return int(both[0]) == -int(both[1])

    def document(self, content: bytes = b"") -> bytes:
        """The `content` that rank 0 has. Raises LostPeer."""
        length = torch.tensor([len(content)], dtype=torch.int64)
        self._wait(dist.broadcast(length, 0, async_op=True))
        text = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._wait(dist.broadcast(text, 0, async_op=True))
        return text.numpy().tobytes()

    def copy_from_rank_0(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with that of rank 0. Raises LostPeer."""
        for tensor in tensors:
            with torch.no_grad():
                group = self.cards if tensor.is_cuda else None
                self._wait(dist.broadcast(tensor.detach(), 0, group=group, async_op=True))

    def begin_sum(self, flat: Tensor) -> "dist.Work":
        """Begin to add up a tensor over all, in place; `end_sum` waits for it."""
        work = dist.all_reduce(flat, group=self.cards if flat.is_cuda else None, async_op=True)
        assert work is not None
        return work

    def end_sum(self, work: "dist.Work", flat: Tensor) -> None:
        """Raises LostPeer."""
        if not flat.is_cuda:
            self._wait(work)
            return
        # `wait` would let the card's stream wait, for ever if a peer is gone, and with it every
        # copy of the weights.
        waited = AwakeClock(most=1.0)
        while not work.is_completed():
            if waited() > self._patience:
                self._abort()
                raise self._lost(self._patience)
            time.sleep(_POLL_SECONDS)
        self._waited += waited()
        if work.exception() is not None:  # NCCL has noticed it, and given its kernels up
            self._abort()
            raise self._lost()
        self._wait(work)

    def _meeting_at(self, store: "Store") -> Meeting:
        limits = MeetingLimits(self._patience, self._answer_seconds)
        place, speaks = self.place, self.place.local_rank == 0
        return Meeting(store, place.node, place.nodes, limits, speaks=speaks)

    def _abort(self) -> None:
        """Let no kernel of the cards wait for a peer any more: the weights have to be copied."""
        if self.cards is not None:
            self.cards.abort()

    def _meet(self, port: int = 0, listening: int | None = None) -> "Store":
        timeout = timedelta(seconds=self._patience)
        if self.place.under_torchrun:
            meeting: Store = next(
                dist.rendezvous("env://", timeout=timeout)  # type: ignore[attr-defined]
            )[0]
            return meeting
        # Node 0 reaches itself whatever the others call it.
        at_home = self.place.nodes > 1 and self.place.node == 0
        there: Store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1" if at_home else self.place.address,
            port,
            self.size,
            is_master=listening is not None,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listening,
        )
        return there

    def _wait(self, work: "dist.Work | None", patience: float | None = None) -> None:
        assert work is not None
        waited = AwakeClock(most=2 * _SLICE_SECONDS)
        patience = self._patience if patience is None else patience
        while True:
            beat()  # it ends by itself, so it is nothing for the watchdog
            try:
                work.wait(timedelta(seconds=_SLICE_SECONDS))
            except RuntimeError as error:
                if work.is_completed():  # and failed
                    raise self._lost() from error
                if waited() > patience:
                    raise self._lost(patience) from error
            else:
                self._waited += waited()
                return

    def _lost(self, seconds: float | None = None) -> LostPeer:
        how = "is gone" if seconds is None else f"was silent for {seconds:g} s (PEER_TIMEOUT)"
        return LostPeer(f"another process of the run {how}: start again to go on")


def _listening_for_nodes(address: str, port: int) -> socket.socket:
    """At every address of this machine: it may have another one than the nodes know it by. Where
    they are nodes of one machine, at that one. Raises OSError."""
    if address in ("127.0.0.1", "localhost"):
        return socket.create_server(("127.0.0.1", port))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
