"""A run as it lies in a store, made without training."""

from app.run.committing import commit
from app.run.journal import AttemptRecord, read_attempts
from app.run.layout import AttemptName, CheckpointName
from app.run.view import read_view
from app.state.identity import Identity
from app.stores.contract import Data, Store

IDENTITY = Identity(
    model="tiny",
    shape={"hidden_size": 64},
    dataset="builtin",
    dataset_fingerprint="d1",
    tokenizer="builtin",
    tokenizer_fingerprint="t1",
    seq_len=256,
    global_batch_size=16,
    seed=1337,
    init_from=None,
)
FILES: dict[str, Data] = {
    "model.safetensors": [b"weights", memoryview(b"more")],
    "state.json": [b"{}"],
}


class FreeLease:
    """The right to write to a run that nobody else wants."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self) -> None: ...

    def put(self, key: str, content: bytes) -> None:
        self.check()
        self._store.put(key, [content])


def commit_step(
    store: Store, step: int, loss: float | None = None, epoch: int = 1
) -> CheckpointName:
    """Commit a checkpoint of FILES. Without `loss`, a later step has a lower one."""
    name = CheckpointName(step, epoch)
    commit(store, name, FILES, loss if loss is not None else 10.0 - step / 100, FreeLease(store))
    return name


def committed_steps(store: Store) -> list[int]:
    return [stored.name.step for stored in read_view(store).checkpoints if stored.committed]


def stored_attempts(store: Store, newest: int) -> list[AttemptRecord]:
    """The records of the last `newest` attempts, oldest first."""
    return read_attempts(store, read_view(store).newest_attempts(newest))


def go_on_from(store: Store, step: int, epoch: int) -> None:
    """Do what an attempt of this epoch does before it commits anything."""
    store.put(AttemptName(epoch, step).key, [b"{}"])


def attempt_record(epoch: int = 1, start_step: int = 0) -> AttemptRecord:
    """The record of an attempt that has made no step yet."""
    return AttemptRecord(
        epoch=epoch,
        holder="host:1:abc",
        trainer="torch",
        started_at="2026-01-01T00:00:00+00:00",
        resumed_from=None,
        start_step=start_step,
        step=start_step,
    )
