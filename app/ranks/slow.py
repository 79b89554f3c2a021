"""Which process all others wait for: the slowest one sets the pace of every step."""

import statistics
from collections.abc import Sequence

TOLD_EVERY = 10  # steps: a longer message costs a millisecond or two, where a step may take 50
LOOKS = 5  # at what was told, so at 50 steps: a few disturbed ones say nothing
RATIO = 1.2


class SlowRanks:
    """Looks at what each rank needs for its own part of a step, without waiting for others."""

    def __init__(self, looks: int = LOOKS, ratio: float = RATIO) -> None:
        self._looks, self._ratio = looks, ratio
        self._seen: list[Sequence[float]] = []
        self._named: list[int] = []

    def news(self, seconds: Sequence[float]) -> str | None:
        """A line for the log where others are slow now than before; `seconds` are by rank, the
        median of TOLD_EVERY steps each.

        A rank is slow if it needs `ratio` times what the median of the others does, by its own
        median over so many `looks`.
        """
        self._seen.append(seconds)
        if len(self._seen) < self._looks:
            return None
        usual = [statistics.median(of_rank) for of_rank in zip(*self._seen, strict=True)]
        self._seen = []
        others = [statistics.median(usual[:rank] + usual[rank + 1 :]) for rank in range(len(usual))]
        slow = [r for r, own in enumerate(usual) if own > 0 and own >= self._ratio * others[r]]
        if slow == self._named:
            return None
        self._named = slow
        if not slow:
            return "no rank is slow any more"
        parts = (f"rank {r}: {usual[r]:.3g} s, and the others {others[r]:.3g} s" for r in slow)
        return (
            f"slow for {self._looks * TOLD_EVERY} steps, so that all wait for it: "
            f"{'; '.join(parts)}, for their own part of a step. Look at its device: clock, heat, "
            "and who else uses it"
        )
