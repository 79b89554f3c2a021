"""The trainer at work: from its first step to why it ended."""

import gc

from app.data.token_stream import OutOfData
from app.errors import Fenced, Preempted
from app.model.attention import AttentionShape, fastest_attention
from app.settings.combined import Settings
from app.training.out_of_memory import memory_failures
from app.training.steps import Steps, Trainer


def train_until_stopped(
    trainer: Trainer, attempt: Steps, settings: Settings
) -> BaseException | None:
    """Train. If it ended before its time, return why: the steps that were made come first."""
    gc.collect()
    gc.freeze()  # so that no collection in the loop walks through all imported modules
    try:
        with (
            memory_failures(settings),
            fastest_attention(
                attempt.compute.device,
                AttentionShape(
                    attempt.model.config,
                    attempt.geometry.batch_size,
                    attempt.geometry.seq_len,
                    attempt.compute.dtype,
                ),
                masked=attempt.sections.data.document_mask,
            ),
        ):
            trainer(attempt)
    except OutOfData as end:
        return end.__cause__
    except (Preempted, Fenced):
        raise
    except Exception as failure:  # noqa: BLE001 - even a bug: the attempt raises it again
        return failure
    except SystemExit as end:  # with its code, 0 perhaps, it would look like the end of the run
        ended = RuntimeError(f"a library ended the training with SystemExit({end.code!r})")
        ended.__cause__ = end
        return ended
    finally:
        gc.unfreeze()
    return None


def trainer_named(name: str) -> Trainer:
    """TRAINER's; its libraries are loaded now."""
    if name == "torch":
        from app.training.train_torch import train as train_torch

        return train_torch
    from app.training.train_lightning import train as train_lightning

    return train_lightning
