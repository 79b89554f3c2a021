"""Rows of metrics, and what TensorBoard reads of them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.observe.rows import Row


def row(step: int, loss: float | None = None) -> Row:
    return Row(
        step=step,
        tokens=step * 100,
        loss=10.0 - step if loss is None else loss,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens_per_second=5.0,
        mfu=None,
        validation_loss=None,
        attempt=1,
        time=1_700_000_000.0 + step,
    )


def scalars(directory: Path, name: str = "loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]
