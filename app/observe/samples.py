"""Samples: short texts of the model on its way, as lines of logs/samples.jsonl.

They go into the store with the next checkpoint, as the rows of metrics do. Only the newest are
kept, so the object stays small.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import Damaged, NotFound, Unserved
from app.observe.rows import Beginning
from app.run.layout import SAMPLES_KEY
from app.state.identity import HIGHEST_STEP
from app.stores.contract import ReadableStore

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
_MOST_SAMPLES = 20
_LONGEST = 4_000  # characters


class Sample(BaseModel):
    """One line of samples.jsonl. `time` is in Unix seconds, `attempt` the epoch of its lease."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    step: Annotated[int, Field(ge=0, le=HIGHEST_STEP)]
    attempt: Annotated[int, Field(ge=0, lt=2**53)]
    time: Annotated[float, Field(ge=-1e12, le=1e12)]
    text: Annotated[str, Field(max_length=_LONGEST)]


class SampleLog:
    """The newest samples of the run so far, the oldest first."""

    def __init__(self, earlier: Sequence[Sample] = (), most: int = _MOST_SAMPLES) -> None:
        """`earlier` are those of the steps up to the one that is resumed from."""
        self._samples = deque(earlier, maxlen=most)

    def add(self, step: int, attempt: int, time: float, text: str) -> None:
        self._samples.append(Sample(step=step, attempt=attempt, time=time, text=text[:_LONGEST]))

    def objects(self) -> dict[str, Beginning]:
        """What a checkpoint takes along into the store, by key."""
        lines = [sample.model_dump_json().encode() + b"\n" for sample in self._samples]
        return {SAMPLES_KEY: Beginning(lines, len(lines))} if lines else {}


def stored_samples(store: ReadableStore) -> list[Sample]:
    """As `read_samples`; nobody depends on samples, so none are read where that cannot be."""
    try:
        return read_samples(store)
    except (Damaged, Unserved) as error:
        log.warning("the samples are left out: %s", error)
        return []


def read_samples(store: ReadableStore) -> list[Sample]:
    """The samples in the store, the oldest first; a line that is none is left out.

    Raises Damaged for an object that is far too large, and the store's errors.
    """
    try:
        content, _ = store.get(SAMPLES_KEY, max_bytes=_MOST_BYTES)
    except NotFound:
        return []
    found = []
    for line in content.splitlines()[-_MOST_SAMPLES:]:
        try:
            found.append(Sample.model_validate_json(line))
        except ValidationError:
            log.warning("%s/%s: a sample cannot be read", store.uri, SAMPLES_KEY)
    return found
