"""Where the nodes of a run meet before it begins: each says what it brings, and node 0 decides.

They meet at a store of keys and values, in rank 0's process. The first process of each other node
comes there as soon as it lives, and shows that it lives for as long as it prepares. It may find
the store of an attempt that is ending, whose nodes are complete already: then it comes again.
"""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from app.errors import AppError, ConfigError, LostPeer, Preempted
from app.failures import first_line
from app.heartbeat import beat

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

_ASSEMBLY, _OVER, _PROBE = "assembly", "over", "probe"


class NodeEnded(AppError):
    """Node 0, which decides, has ended with this code: so does every node."""

    def __init__(self, exit_code: int, *lines: str) -> None:
        super().__init__(*lines)
        self.exit_code = exit_code


class NotThisMeeting(Exception):
    """The store is that of another attempt, or is gone."""


@dataclass(frozen=True)
class MeetingLimits:
    """Seconds. A node is lost after `patience` without a sign of it, node 0 if it does not answer
    for `answer`."""

    patience: float = 300.0
    answer: float = 60.0
    poll: float = 0.2
    farewell: float = 5.0  # until the others have heard why it is over
    waiting_is_said: float = 5.0


class Arrival(BaseModel):
    """What a node brings. `agreed` has to be the same on all, `folders` are for its processes."""

    model_config = ConfigDict(frozen=True)

    node: int
    processes: int
    agreed: Mapping[str, str]
    folders: Mapping[str, str]
    start: str = ""  # which start of the node this is


class Assembly(BaseModel):
    """All nodes, in their order."""

    model_config = ConfigDict(frozen=True)

    arrivals: Sequence[Arrival]

    @property
    def world_size(self) -> int:
        return sum(arrival.processes for arrival in self.arrivals)

    def first_rank(self, node: int) -> int:
        return sum(arrival.processes for arrival in self.arrivals[:node])


class _Over(BaseModel):
    code: int
    lines: Sequence[str]


class Meeting:
    """The store, as one node uses it. Each method raises LostPeer where node 0 does not answer."""

    def __init__(
        self, store: "Store", node: int, nodes: int, limits: MeetingLimits, *, speaks: bool = True
    ) -> None:
        """`speaks` for the process of a node that says why it ends."""
        self.store, self.node, self.nodes, self.limits = store, node, nodes, limits
        self._speaks = speaks
        self._start, self._closed = secrets.token_hex(8), threading.Event()

    def show_presence(self) -> None:
        """From here on show in the background that this node lives, until it has arrived."""
        if self._read(_ASSEMBLY) is not None:
            raise NotThisMeeting("an attempt that is ending")
        self._bounded(lambda: self.store.delete_key(f"left/{self.node}"))
        threading.Thread(target=self._keep_showing, name="presence", daemon=True).start()

    def _keep_showing(self) -> None:
        number = 0
        with suppress(RuntimeError):
            while not self._closed.is_set():
                self.store.set(f"present/{self.node}", str(number := number + 1))
                self._closed.wait(self.limits.patience / 60)

    def forget(self) -> None:
        """This node does not live for this meeting any more."""
        self._closed.set()

    def assemble(self, own: Arrival, write: Callable[[str], None]) -> Assembly:
        """For node 0: wait for all nodes, and let them begin.

        `write` puts a word into the run's store, for the others to look whether it is there.
        Raises LostPeer with the nodes that did not come, ConfigError for what differs.
        """
        others = range(1, self.nodes)
        self._wait_for({node: f"arrival/{node}" for node in others}, "come")
        self._compare(own)
        write(self._start)
        self._write(_PROBE, self._start)
        self._wait_for({node: f"sees/{node}" for node in others}, "look at the store")
        answers = {node: self._text(f"sees/{node}") for node in others}
        if problems := [f"node {node}: {answer}" for node, answer in answers.items() if answer]:
            raise ConfigError(*problems)
        assembly = self._compare(own)  # again: one may have been started anew meanwhile
        self._write(_ASSEMBLY, assembly.model_dump_json())
        return assembly

    def arrive(self, own: Arrival, sees: Callable[[str], str]) -> Assembly:
        """For the other nodes: say what this one brings, and wait until all are there.

        `sees` is asked for what is wrong if the word is not in the run's store; "" if it is.
        Raises NotThisMeeting, and `ended` for node 0.
        """
        own = own.model_copy(update={"start": self._start})
        self._write(f"arrival/{self.node}", own.model_dump_json())
        answered = False
        while (content := self._read(_ASSEMBLY)) is None:
            self.raise_if_over()
            if not answered and (word := self._read(_PROBE)) is not None:
                self._write(f"sees/{self.node}", sees(word.decode()))
                answered = True
            self._pause()
        self.forget()
        assembly = Assembly.model_validate_json(content)
        if assembly.arrivals[self.node].start != self._start:
            raise NotThisMeeting("another start of this node has come there")
        return assembly

    def end(self, code: int, lines: Sequence[str]) -> None:
        """For node 0: it is over with this exit code. Waits a moment until the others know."""
        came = [n for n in range(1, self.nodes) if self._read(f"present/{n}") is not None]
        self._write(_OVER, _Over(code=code, lines=lines).model_dump_json())
        until = time.monotonic() + self.limits.farewell
        while any(self._read(f"heard/{node}") is None for node in came):
            if time.monotonic() > until:
                return
            self._pause()

    def leave(self, code: int) -> None:
        """For the other nodes: this one has ended with this exit code before the run began. One
        that will be started again says nothing: it is waited for."""
        self.forget()
        if code == LostPeer.exit_code:
            return
        with suppress(LostPeer, NotThisMeeting):
            self._write(f"left/{self.node}", str(code))

    def raise_if_over(self) -> None:
        """Raises what node 0 has ended with, if it has."""
        if (content := self._read(_OVER)) is None:
            return
        if self._speaks:
            self._write(f"heard/{self.node}", "")
        over = _Over.model_validate_json(content)
        lines = [f"node 0 has ended: {line}" for line in over.lines if self._speaks]
        if over.code == Preempted.exit_code:
            raise Preempted(*lines)
        raise NodeEnded(over.code, *lines)

    def raise_if_one_left(self) -> None:
        """For node 0. Raises Preempted where another node was asked to stop, LostPeer where it
        ended by itself."""
        for node in range(1, self.nodes):
            if (code := self._read(f"left/{node}")) is None:
                continue
            if int(code) == Preempted.exit_code:
                raise Preempted(f"node {node} was asked to stop before training began")
            raise LostPeer(f"node {node} has ended with exit {int(code)}: its own log says why")

    def _compare(self, own: Arrival) -> Assembly:
        """All that have arrived. Raises ConfigError for what differs between them."""
        texts = [self._text(f"arrival/{node}") for node in range(1, self.nodes)]
        arrivals = [own, *(Arrival.model_validate_json(text) for text in texts)]
        if problems := list(_differences(arrivals)):
            raise ConfigError(*problems)
        return Assembly(arrivals=arrivals)

    def _wait_for(self, keys: Mapping[int, str], what: str) -> None:
        """Until each node has written its key. Raises LostPeer for those that are silent."""
        began = time.monotonic()
        since, shown = dict.fromkeys(keys, began), dict[int, bytes | None]()
        said = False
        while missing := [node for node, key in keys.items() if self._read(key) is None]:
            self.raise_if_one_left()
            now = time.monotonic()
            for node in missing:
                if (sign := self._read(f"present/{node}")) != shown.get(node):
                    if node not in shown:
                        log.info("node %d is here, and prepares", node)
                    since[node], shown[node] = now, sign
            if silent := [node for node in missing if now - since[node] > self.limits.patience]:
                raise LostPeer(
                    f"{_names(silent)} of {self.nodes} did not {what} within "
                    f"{self.limits.patience:g} s; {_names(sorted({0, *keys} - {*missing}))} did: "
                    "start all of them, with the same MASTER_ADDR and MASTER_PORT"
                )
            if not said and now - began > self.limits.waiting_is_said:
                said = True
                log.info("waiting for %s of %d to %s", _names(missing), self.nodes, what)
            self._pause()

    def _pause(self) -> None:
        beat()
        time.sleep(self.limits.poll)

    def _text(self, key: str) -> str:
        return (self._read(key) or b"").decode()

    def _write(self, key: str, text: str) -> None:
        self._bounded(lambda: self.store.set(key, text))

    def _read(self, key: str) -> bytes | None:
        return self._bounded(lambda: self.store.get(key) if self.store.check([key]) else None)

    def _bounded(self, ask: Callable[[], T]) -> T:
        if self.node == 0:  # the store is in this process
            return ask()
        try:
            return answer_within(self.limits.answer, ask)
        except TimeoutError as error:
            raise LostPeer(f"node 0: {error}") from error
        except RuntimeError as error:
            raise NotThisMeeting(first_line(error)) from error


def answer_within(seconds: float, ask: Callable[[], T]) -> T:
    """What a store on another node says. Raises what `ask` does, or TimeoutError.

    Asked in the thread that needs it, it would wait for ever for a node that has vanished, and
    Python would hear no signal meanwhile.
    """
    answers = queue.SimpleQueue[tuple[T | None, Exception | None]]()

    def put_answer() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            answers.put((None, error))

    threading.Thread(target=put_answer, name="meeting", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty as empty:
        raise TimeoutError(f"no answer for {seconds:g} s") from empty
    if error is not None:
        raise error
    return cast(T, answer)


def _differences(arrivals: Sequence[Arrival]) -> Iterator[str]:
    first = arrivals[0].agreed
    for arrival in arrivals[1:]:
        for name in sorted({*first, *arrival.agreed}):
            here, there = first.get(name), arrival.agreed.get(name)
            if here != there:
                yield (
                    f"{name} is {there} on node {arrival.node}, but {here} on node 0: it has to be "
                    "the same on all nodes"
                )


def _names(nodes: Sequence[int]) -> str:
    return f"node{'s' * (len(nodes) > 1)} {' and '.join(map(str, nodes))}"
