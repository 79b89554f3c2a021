"""The optimizer: AdamW for all weights, or Muon for the matrices inside the layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from app.settings.variables import OptimizerSettings
from app.state.snapshot import matrices_of_layers


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, device: torch.device
) -> Optimizer:
    """The optimizer that OPTIMIZER names, over all parameters of `model`."""
    parameters = list(model.parameters())
    if settings.optimizer == "adamw":
        return _adamw(parameters, settings, device)
    inside = list(matrices_of_layers(model).values())
    muon = Muon(
        inside,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    chosen = set(inside)
    rest = [parameter for parameter in parameters if parameter not in chosen]
    return MuonWithAdamW(muon, _adamw(rest, settings, device))


class MuonWithAdamW(Optimizer):
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces the
    momentum of a matrix by the nearest semi-orthogonal one. PyTorch's own scales that update
    by 0.2 · sqrt(larger side), the root mean square of AdamW's (Liu et al., 2025,
    arXiv:2502.16982): one learning rate and one weight decay serve both.

    To a trainer the two are one optimizer, with one list of groups and one state.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self._muon, self._adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], defaults={})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter once. Lightning passes a `closure`, which is called first."""
        loss = None if closure is None else closure()
        self._muon.step()
        self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Give both parts this optimizer's groups and state. Loading replaces these, so again."""
        of_muon = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:of_muon]
        self._adamw.param_groups = self.param_groups[of_muon:]
        self._muon.state = self._adamw.state = self.state


def _adamw(
    parameters: Sequence[nn.Parameter], settings: OptimizerSettings, device: torch.device
) -> AdamW:
    """AdamW (Loshchilov & Hutter, 2019), fused; matrices decay, norms do not."""
    groups = [
        {
            "params": [p for p in parameters if p.dim() >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=device.type in ("cuda", "cpu", "mps"),
    )
