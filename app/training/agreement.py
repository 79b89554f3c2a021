"""What all processes of a run decide together: to stop, to drop a step, to wait for data."""

from app.data.token_stream import OutOfData
from app.heartbeat import beat
from app.ranks.team import Team, Wish
from app.training.preemption import StopRequest


class Agreement:
    """A signal to one process stops all of them after the same step.

    Each method but `stopping` is called by all at the same place. They raise LostPeer.
    """

    def __init__(self, team: Team, stop: StopRequest) -> None:
        self._team, self._stop = team, stop

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
        if not self._team.joined:
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

    def _agree(self, wish: Wish) -> Wish:
        """The grace period of one that was asked to stop is that of all, from now on."""
        agreed = self._team.agree(wish)
        if self._team.stopping:
            self._stop.follow()
        return agreed
