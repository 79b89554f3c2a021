"""state.json: where a run stands, and what it was made with.

Whatever is read from it is bounded and checked, so that a wrong file is damage and never a wrong
training.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from app.errors import Damaged
from app.settings.variables import OptimizerSettings
from app.state.identity import HIGHEST_STEP, RunRecord, differences
from app.state.random_state import RandomState
from app.stores.documents import Document, decode_document

STATE_FORMAT = 1
STATE_FILE = "state.json"
MAX_STATE_BYTES = 16 * 2**20

_LARGEST_FLOAT32 = 3.5e38

Trainer = Literal["lightning", "torch"]

_Text = Annotated[str, Field(max_length=500)]
_Loss = Annotated[float, Field(ge=-0.5, le=_LARGEST_FLOAT32)]  # rounding can bring it below 0


class Progress(Document):
    """state.json: where the run stands, and what it was made with.

    Losses in nats per token; `saved_at` in seconds since 1970. `run`, `precision` and `device` are
    None in checkpoints of versions that did not know them yet.
    """

    format_version: int = Field(STATE_FORMAT, ge=1)
    run: RunRecord | None = None
    step: int = Field(ge=1, le=HIGHEST_STEP)
    tokens: int = Field(ge=1, lt=2**62)
    train_loss: _Loss | None
    validation_loss: _Loss | None = None
    validation_perplexity: float | None = Field(None, ge=0)
    learning_rate: float | None = Field(None, ge=0, le=2)
    saved_at: float = Field(ge=-1e12, le=1e12)
    trainer: Trainer
    optimizer: Annotated[dict[_Text, bool | int | float | str], Field(min_length=1, max_length=100)]
    document_mask: bool = False
    versions: Annotated[dict[_Text, _Text], Field(max_length=100)]
    precision: _Text | None = None
    device: _Text | None = None
    random: RandomState

    def check(self, step: int, record: RunRecord | None) -> None:
        """Raises Damaged unless this is the state after `step` of the run that `record` is of.

        Without a record, or a run that the checkpoint carries, that much is not compared.
        """
        if self.step != step:
            raise Damaged(f"{STATE_FILE} is of step {self.step}, its checkpoint of step {step}")
        # run.json may be an older one, from a backup: an extension is in the checkpoints too.
        if (run := self.run or record) and step > run.target:
            raise Damaged(f"{STATE_FILE} is of step {step}, beyond the run's target {run.target}")
        if "learning_rate" not in self.optimizer:
            raise Damaged(f"{STATE_FILE} is no training state: it names no LEARNING_RATE")
        for name, info in OptimizerSettings.model_fields.items():
            if name in self.optimizer:
                kind: Any = Annotated[info.annotation, info]
                try:
                    TypeAdapter(kind).validate_python(self.optimizer[name], strict=True)
                except ValidationError as error:
                    what = error.errors()[0]["msg"]
                    raise Damaged(f"{STATE_FILE} is no training state: {name}: {what}") from error
        if self.run is not None:
            self._check_run(self.run, record)

    def _check_run(self, run: RunRecord, record: RunRecord | None) -> None:
        identity = run.identity
        made = self.step * identity.seq_len * identity.global_batch_size
        if self.tokens != made:
            raise Damaged(f"{STATE_FILE} counts {self.tokens} tokens, its steps have {made}")
        if self.optimizer.get("optimizer", identity.optimizer) != identity.optimizer:
            raise Damaged(f"{STATE_FILE} names another optimizer than its run has")
        if record is None:
            return
        others = list(differences(record.identity, identity))
        if run.total_steps != record.total_steps:
            others.append(f"TOTAL_STEPS was {record.total_steps}, is {run.total_steps}")
        if others:
            raise Damaged(f"it is of another run: {'; '.join(others)}")


def decode_progress(content: bytes) -> Progress:
    """Raises Damaged if this is no state.json, IncompatibleRun if it is of a newer version."""
    return decode_document(
        content,
        Progress,
        STATE_FILE,
        newest_format=STATE_FORMAT,
        damaged=lambda what: f"{STATE_FILE} is not a training state: {what}",
    )


def read_progress(path: Path) -> Progress:
    """As `decode_progress`, of a file. Raises OSError too."""
    if path.stat().st_size > MAX_STATE_BYTES:
        raise Damaged(f"{path.name} has {path.stat().st_size} bytes: it is no training state")
    return decode_progress(path.read_bytes())
