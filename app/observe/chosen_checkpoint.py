"""The checkpoint that a command was told to take: a step, a name, `latest` or `best`."""

import math

from app.errors import NotFound
from app.observe.rows import stored_rows
from app.run.layout import CheckpointName
from app.run.view import RunView
from app.stores.contract import ReadableStore

BEST = "best"


def chosen_checkpoint(store: ReadableStore, view: RunView, text: str) -> CheckpointName:
    """The committed checkpoint that `text` names, as `RunView.find` reads it, or the best one.

    Raises NotFound where there is none, and the store's errors.
    """
    return best_checkpoint(store, view) if text == BEST else view.find(text)


def best_checkpoint(store: ReadableStore, view: RunView) -> CheckpointName:
    """The committed checkpoint with the lowest validation loss; the newest of those that tie.

    What counts is the loss that was measured of its own weights: the row in metrics.jsonl of its
    step and of the attempt that wrote it. (state.json says the last loss that was measured before
    the checkpoint was saved, which may be that of other weights.) Raises NotFound where there is
    none, and the store's errors.
    """
    if not view.committed:
        raise NotFound(f"{view.uri} holds no checkpoint yet")
    measured = {
        CheckpointName(row.step, row.attempt): row.validation_loss
        for row in stored_rows(store)
        if row.validation_loss is not None and math.isfinite(row.validation_loss)
    }
    ranked = [(measured[name], name) for name in view.committed if name in measured]
    if not ranked:
        raise NotFound(
            f"{view.uri}: no checkpoint has a validation loss of its own step, so none is the "
            "best one. Name a step, or let VAL_EVERY_STEPS be CHECKPOINT_EVERY_STEPS when you "
            "train"
        )
    return min(ranked, key=lambda found: found[0])[1]  # of those that tie, the newest comes first
