"""What all processes of a run decide together: to stop, to drop a step, to wait for data."""

import contextlib
import math
from collections.abc import Iterator

from app.data.token_stream import OutOfData
from app.errors import LostPeer
from app.heartbeat import beat
from app.ranks.team import Team, Wish
from app.training.preemption import StopRequest

_FAREWELL_SECONDS = 5.0  # what rank 0 waits for the others when all is committed


class Agreement:
    """A signal to one process stops all of them after the same step.

    Each method but `stopping` is called by all at the same place. They raise LostPeer.
    """

    def __init__(self, team: Team, stop: StopRequest) -> None:
        self._team, self._stop = team, stop
        self._by_itself = False  # while the others are at something else

    @property
    def stopping(self) -> bool:
        """Whether to stop after this step: what was agreed on, where there are several."""
        return self._team.stopping if self._team.is_many else self._stop.requested

    def drops_step(self, *, fits: bool) -> bool:
        """Whether the step is not made to its end, since for one of them the rest does not fit."""
        if not self._team.is_many:
            return not fits
        wish = Wish.DROP if not fits else Wish.STOP if self._stop.requested else Wish.GO_ON
        return self._agree(wish) == Wish.DROP

    def waits_and_stops(self) -> bool:
        """To be asked again and again by one that waits for data: whether to stop that."""
        if not self._team.joined or self._by_itself:
            return self._stop.requested
        return self._agree(Wish.STOP if self._stop.requested else Wish.WAIT) >= Wish.STOP

    def all_have_data(self) -> None:
        """Wait for those that wait for data. Raises OutOfData if all are to stop."""
        if not self._team.is_many:
            return
        while (agreed := self._agree(Wish.GO_ON)) == Wish.WAIT:
            beat()
        if agreed >= Wish.STOP:
            raise OutOfData

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[None]:
        """Whoever waits for data in here waits without the others, who have theirs."""
        self._by_itself = True
        try:
            yield
        finally:
            self._by_itself = False

    def committed(self, *, last: bool) -> None:
        """For rank 0: nothing is left to commit. `last` says that the run has reached its target.
        The others may be gone by now."""
        with contextlib.suppress(LostPeer):
            wish = Wish.GO_ON if last else Wish.STOP
            self._team.agree(wish, patience=_FAREWELL_SECONDS)

    def wait_for_the_commit(self) -> bool:
        """For the others, who commit the last step where rank 0 dies in it: whether the run has
        reached its target. Raises LostPeer."""
        if not self._team.is_many:
            return True
        return self._team.agree(Wish.GO_ON, patience=math.inf) == Wish.GO_ON

    def _agree(self, wish: Wish) -> Wish:
        """The grace period of one that was asked to stop is that of all, from now on."""
        agreed = self._team.agree(wish)
        if self._team.stopping:
            self._stop.follow()
        return agreed
