"""How long a process needs for its own part of a step, without what it waits for the others."""

import torch


class OwnPart:
    """On a card the host runs ahead, and its clock says nothing: the card's own events do."""

    def __init__(self, device: torch.device) -> None:
        """Does nothing on a CPU, where the step's clock can tell."""
        self._on_card = device.type == "cuda"
        if self._on_card:
            self._begun = torch.cuda.Event(enable_timing=True)
            self._ended = torch.cuda.Event(enable_timing=True)

    def begins(self) -> None:
        """A step begins."""
        if self._on_card:
            self._begun.record()

    def ends(self) -> None:
        """This process has made its gradients: what follows is done together."""
        if self._on_card:
            self._ended.record()

    def seconds(self, by_clock: float) -> float:
        """Of the step whose reduction is over, so that nothing has to be waited for; `by_clock`
        is what a host that computes itself has measured."""
        if not self._on_card:
            return by_clock
        return self._begun.elapsed_time(self._ended) / 1000
