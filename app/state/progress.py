"""state.json: where a run stands, and what it was made with."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.errors import Damaged
from app.state.random_state import RandomState
from app.stores.documents import decode_document

STATE_FORMAT = 1
STATE_FILE = "state.json"
_MAX_STATE_BYTES = 16 * 2**20


class Progress(BaseModel):
    """state.json: where the run stands, and what it was made with.

    Losses in nats per token; `saved_at` in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = STATE_FORMAT
    step: int
    tokens: int
    train_loss: float | None
    validation_loss: float | None = None
    validation_perplexity: float | None = None
    learning_rate: float | None = None
    saved_at: float
    trainer: str
    optimizer: dict[str, Any]
    document_mask: bool = False
    versions: dict[str, str]
    random: RandomState


def read_progress(path: Path) -> Progress:
    """Raises Damaged if the file is no state.json, IncompatibleRun if it is of a newer version."""
    if path.stat().st_size > _MAX_STATE_BYTES:
        raise Damaged(f"{path.name} has {path.stat().st_size} bytes: it is no training state")
    return decode_document(
        path.read_bytes(),
        Progress,
        path.name,
        newest_format=STATE_FORMAT,
        damaged=lambda what: f"{path.name} is not a training state: {what}",
    )
