"""What a run is called in trackers (W&B, MLflow), so that it is one run there over all attempts.

    logs/trackers.json    the id, and how often an operator let the run go on from an earlier step

The id is made up by the run's first attempt with such a tracker, and kept before a tracker hears of
it: whoever is killed in between leaves no second run there.
"""

import secrets
from typing import Annotated

from pydantic import Field

from app.errors import NotFound, Unavailable
from app.run.layout import TRACKERS_KEY
from app.stores.contract import ReadableStore, Store
from app.stores.documents import Document, decode_document, encode_document
from app.stores.swap import swap, update

_Id = Annotated[str, Field(pattern=r"^[0-9a-z-]{1,64}$")]


class TrackedRun(Document):
    """`mlflow_run_id` is the id that an MLflow server has given; None until one has.

    `returns` counts how often an operator set steps aside. A tracker cannot take back what it
    shows, so after that the run has another `name` there, and the former one stays as it was.
    """

    id: _Id
    returns: int = Field(0, ge=0, le=10**6)
    mlflow_run_id: Annotated[str, Field(max_length=200)] | None = None

    @property
    def name(self) -> str:
        return f"{self.id}-{self.returns}" if self.returns else self.id

    def title(self, run_name: str) -> str:
        """What people read."""
        return f"{run_name} (after rollback {self.returns})" if self.returns else run_name


def read_tracked_run(store: ReadableStore) -> TrackedRun | None:
    """None for a run that no tracker knows. Raises Damaged, and the store's errors."""
    try:
        content, _ = store.get(TRACKERS_KEY)
    except NotFound:
        return None
    place = f"{store.uri}/{TRACKERS_KEY}"
    return decode_document(
        content,
        TrackedRun,
        place,
        damaged=lambda what: (
            f"{place} is damaged ({what}): restore it, or remove it, and the run is another one in "
            "its trackers from then on"
        ),
    )


def tracked_run(store: Store) -> TrackedRun:
    """What the run is called; made up now if it has no name yet.

    Raises Damaged, and the store's errors.
    """
    for _ in range(2):
        if (known := read_tracked_run(store)) is not None:
            return known
        made_up = TrackedRun(id=secrets.token_hex(6))
        if swap(store, TRACKERS_KEY, encode_document(made_up), None) is not None:
            return made_up
    raise Unavailable(f"{store.uri}/{TRACKERS_KEY} was written and cannot be read yet")


def remember_mlflow_run(store: Store, tracked: TrackedRun, run_id: str) -> None:
    """Keep the id that an MLflow server has given. Raises the store's errors."""

    def with_id(content: bytes) -> bytes | None:
        now = decode_document(content, TrackedRun, TRACKERS_KEY)
        if now.name != tracked.name or now.mlflow_run_id == run_id:
            return None
        return encode_document(now.model_copy(update={"mlflow_run_id": run_id}))

    update(store, TRACKERS_KEY, with_id)


def begin_anew(store: Store) -> None:
    """Steps were set aside: what comes after them is another run in trackers.

    Nothing happens if no tracker knows the run. Raises Damaged, and the store's errors.
    """

    def next_one(content: bytes) -> bytes:
        now = decode_document(content, TrackedRun, TRACKERS_KEY)
        following = {"returns": now.returns + 1, "mlflow_run_id": None}
        return encode_document(now.model_copy(update=following))

    if read_tracked_run(store) is not None:
        update(store, TRACKERS_KEY, next_one)
