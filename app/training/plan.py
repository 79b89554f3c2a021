"""What rank 0 tells the other processes of the run: from which step they go on, with what."""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from app.errors import ConfigError
from app.model.smollm2 import SmolLM2
from app.ranks.checksum import check_same_weights
from app.ranks.team import Team
from app.settings.combined import Settings
from app.settings.variables import variables
from app.state.identity import RunRecord
from app.state.random_state import RandomState
from app.state.snapshot import shared_tensors

# Each process reads its settings itself. Where these differ, the steps would.
_THE_SAME = (
    "TRAINER",
    "SEED",
    "BATCH_SIZE",
    "GLOBAL_BATCH_SIZE",
    "PRECISION",
    "DOCUMENT_MASK",
    "VAL_EVERY_STEPS",
    "VAL_TOKENS",
    "CHECKPOINT_EVERY_STEPS",
    "CHECKPOINT_URI",
)


class NodeFolders(BaseModel):
    """Where the processes of one node find the shards and the tokenizer."""

    model_config = ConfigDict(frozen=True)

    tokens: Path
    tokenizer: Path


class Plan(BaseModel):
    """`step` is finished; with `resumed` its moments are sent too. `validation_loss` in nats.

    `tokens` is the folder of the shards, with an index of the fingerprint `source`. `holder` is who
    holds the lease, under `epoch`.
    """

    model_config = ConfigDict(frozen=True)

    settings: dict[str, str]
    record: RunRecord
    step: int
    resumed: bool
    validation_loss: float | None
    random: RandomState
    seq_len: int
    tokens: Path
    source: str
    tokenizer: Path
    holder: str
    epoch: int
    nodes: list[NodeFolders] = []

    def on_node(self, node: int) -> "Plan":
        """With the folders of that node, where there are several."""
        return self.model_copy(update=dict(self.nodes[node])) if self.nodes else self


NOTHING_TO_DO = b"nothing to do"  # in place of a plan


def settings_in_common(settings: Settings) -> dict[str, str]:
    """The variables that have to be the same for all processes, with their values."""
    return {
        variable.name: settings.shown(variable)
        for variable in variables()
        if variable.name in _THE_SAME or variable.section == "optimizer"
    }


def check_settings(plan: Plan, settings: Settings, rank: int) -> None:
    """Raises ConfigError where this process would make other steps than rank 0."""
    if problems := list(_differences(plan.settings, settings_in_common(settings), rank)):
        raise ConfigError(*problems)


def _differences(of_rank_0: dict[str, str], own: dict[str, str], rank: int) -> Iterator[str]:
    for name, value in of_rank_0.items():
        if own.get(name) != value:
            yield f"{name}={own.get(name)} for rank {rank}, but {value} for rank 0: set one value"


def send_plan(team: Team, plan: Plan, model: SmolLM2, optimizer: torch.optim.Optimizer) -> None:
    """For rank 0: let the others begin where this process does. Raises LostPeer."""
    team.document(plan.model_dump_json().encode())
    share_state(team, plan, model, optimizer)


def share_state(team: Team, plan: Plan, model: SmolLM2, optimizer: torch.optim.Optimizer) -> None:
    """The weights and moments of rank 0 on all processes, and a look whether they are."""
    state = shared_tensors(model, optimizer)
    team.copy_from_rank_0(list(state.values()))
    check_same_weights(team, state, plan.step)
