"""One process of several that share a run: `python -m tests.support.ranks PLAN RANK`.

The job itself runs one process. This program takes its real parts (loader, geometry, loss,
optimizer, state), and does what data-parallel training adds to them: an average of the
gradients over all processes. Loopback only.
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from app.data.loader import training_loader
from app.data.sample_order import BatchGeometry, SampleOrder
from app.data.shard_index import ShardIndex, Tally, read_index
from app.data.shards import ShardWriter, TokenShards
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.progress import Progress
from app.state.random_state import RandomState
from app.state.snapshot import capture, restore
from app.training.optimizer import build_optimizer

SEQ_LEN = 16
N_SEQUENCES = 50
GLOBAL_BATCH_SIZE = 8
CONFIG = dataclasses.replace(
    PRESETS["tiny"], vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2
)
ORDER = SampleOrder(N_SEQUENCES, seed=11, window=16)


@dataclass(frozen=True)
class Plan:
    """Steps [start, stop) with `world_size` processes, from `state` where there is one."""

    folder: str
    world_size: int
    start: int
    stop: int
    state: str | None = None
    num_workers: int = 0


def write_tokens(folder: Path) -> None:
    """A corpus whose sequence number k begins with the token k."""
    tokens = np.random.default_rng(3).integers(0, 256, N_SEQUENCES * SEQ_LEN + 1)
    tokens[:-1:SEQ_LEN] = np.arange(N_SEQUENCES)
    writer = ShardWriter(folder, ShardIndex(source="s", tokenizer="t"))
    for half in np.array_split(tokens.astype(np.uint16), 2):  # sequences over a shard border too
        writer.append("train", half)
        writer.seal(Tally(position=None, pieces=1, documents=1))


def open_tokens(folder: Path) -> TokenShards:
    return TokenShards(folder, "train", read_index(folder, "s", "t"))


def main(plan: Plan, rank: int) -> None:
    """Train, and write what this process saw to `folder`/rank-R.json."""
    torch.set_num_threads(1)
    folder = Path(plan.folder)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=plan.world_size
    )
    geometry = BatchGeometry(1, GLOBAL_BATCH_SIZE, SEQ_LEN, plan.world_size, rank)
    model = SmolLM2(CONFIG)
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    if plan.state:
        assert restore(Path(plan.state), model, optimizer).step == plan.start
    else:
        model.initialize(5)
    loss_function = LossFunction(model, compile_model=False)
    batches = iter(
        training_loader(
            open_tokens(folder),
            ORDER.sequences,
            geometry,
            plan.start,
            plan.stop,
            num_workers=plan.num_workers,
            pin_memory=False,
        )
    )
    seen, losses = [], []
    for _ in range(plan.start, plan.stop):
        optimizer.zero_grad()
        step_loss, sequences = torch.zeros(()), []
        for _ in range(geometry.accumulation):
            tokens = next(batches)
            sequences.append(tokens[:, 0].tolist())
            loss = loss_function(tokens) / (geometry.accumulation * plan.world_size)
            loss.backward()
            step_loss += loss.detach()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        dist.all_reduce(step_loss)
        optimizer.step()
        seen.append(sequences)
        losses.append(float(step_loss))
    if rank == 0:
        _save(model, optimizer, plan, folder / "state")
    (folder / f"rank-{rank}.json").write_text(json.dumps({"seen": seen, "losses": losses}))
    dist.destroy_process_group()


def _save(model: SmolLM2, optimizer: torch.optim.Optimizer, plan: Plan, folder: Path) -> None:
    progress = Progress(
        step=plan.stop,
        tokens=plan.stop * GLOBAL_BATCH_SIZE * SEQ_LEN,
        train_loss=None,
        saved_at=0.0,
        trainer="torch",
        optimizer={"learning_rate": 1e-3},
        versions={},
        random=RandomState.capture(),
    )
    folder.mkdir()
    for name, data in capture(model, optimizer, progress).files({}).items():
        (folder / name).write_bytes(b"".join(bytes(part) for part in data))


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])), int(sys.argv[2]))
