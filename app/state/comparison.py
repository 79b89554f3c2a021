"""What differs between two checkpoints, or any two Hugging Face directories: settings, weights.

One tensor of each is in memory at a time.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.errors import Damaged
from app.state.progress import STATE_FILE, Progress, read_progress
from app.state.tensor_files import read_shapes, read_tensors
from app.state.weights import weight_files

CONFIG_FILE = "config.json"

_PART = 1 << 20  # numbers that are computed with at once, in float64

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What a directory says of itself. All are empty but `settings` where it has no state.json.

    `facts` are where the run stands; losses in nats per token.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def describe(directory: Path) -> Description:
    """Raises Damaged, IncompatibleRun for a newer format, and OSError."""
    settings = dict(_config(directory / CONFIG_FILE))
    if not (directory / STATE_FILE).exists():
        return Description(settings=settings)
    progress = read_progress(directory / STATE_FILE)
    names = ("step", "tokens", "train_loss", "validation_loss", "learning_rate")
    facts = {name: getattr(progress, name) for name in names}
    return Description(facts, settings | dict(_settings(progress)), progress.versions)


def _config(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        config = json.loads(path.read_text("utf-8"))
        yield from ((f"config.json: {name}", value) for name, value in config.items())
    except FileNotFoundError:
        return
    except (ValueError, AttributeError) as error:
        raise Damaged(f"{path} is not a JSON object") from error


def _settings(progress: Progress) -> Iterator[tuple[str, Any]]:
    if progress.run is not None:
        identity = progress.run.identity.model_dump(exclude={"shape"})
        yield from ((name.upper(), value) for name, value in identity.items())
        yield "target step", progress.run.target
    yield from ((name.upper(), value) for name, value in progress.optimizer.items())
    yield "DOCUMENT_MASK", progress.document_mask
    yield "TRAINER", progress.trainer
    yield "precision", progress.precision
    yield "device", progress.device


@dataclass(frozen=True)
class TensorChange:
    """How a tensor of the second directory differs from the one of the first.

    `relative` is ||b - a|| / ||a||: infinite where a is 0 and b is not, NaN where one of them holds
    a number that is not finite. `largest` is the largest |b - a|.
    """

    name: str
    shape: Shape
    relative: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """`changes` of the tensors that both have, the largest relative change first, and those that
    cannot be told first of all. `relative` is the change of all these tensors as one.

    `only_first` and `only_second` are shapes by name, and `reshaped` both shapes.
    """

    changes: Sequence[TensorChange]
    relative: float
    only_first: Mapping[str, Shape]
    only_second: Mapping[str, Shape]
    reshaped: Mapping[str, tuple[Shape, Shape]]

    @property
    def equal(self) -> int:
        """How many tensors are the same in both, number by number."""
        return sum(change.largest == 0 for change in self.changes)


def compare_tensors(first: Path, second: Path) -> Comparison:
    """Compare the weights in two directories.

    Raises NotFound for a directory without weights, Damaged for an unreadable one, IncompatibleRun
    for types of tensors that cannot be read, and OSError.
    """
    ours, theirs = _places(first), _places(second)
    shapes = {name: shape for name, (_, shape) in ours.items()}
    other = {name: shape for name, (_, shape) in theirs.items()}
    same = {name for name, shape in shapes.items() if other.get(name) == shape}
    changes, difference, norm = [], 0.0, 0.0
    for path in weight_files(first):
        for name, tensor in read_tensors(path, same):
            _, against = next(read_tensors(theirs[name][0], [name]))
            squares, own, largest = _squares(tensor, against)
            changes.append(TensorChange(name, shapes[name], _ratio(squares, own), largest))
            difference, norm = difference + squares, norm + own
    return Comparison(
        changes=sorted(changes, key=lambda c: (not math.isnan(c.relative), -c.relative, c.name)),
        relative=_ratio(difference, norm),
        only_first={name: shape for name, shape in shapes.items() if name not in other},
        only_second={name: shape for name, shape in other.items() if name not in shapes},
        reshaped={
            name: (shape, other[name])
            for name, shape in shapes.items()
            if name in other and other[name] != shape
        },
    )


def _places(directory: Path) -> dict[str, tuple[Path, Shape]]:
    """The file and the shape of each tensor, by name."""
    return {
        name: (path, tuple(shape))
        for path in weight_files(directory)
        for name, shape in read_shapes(path).items()
    }


def _squares(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """The squares of ||b - a|| and of ||a||, and the largest |b - a|, from a few numbers at once.

    NaN if one of them is not finite.
    """
    difference, norm, largest = 0.0, 0.0, 0.0
    pairs = zip(first.flatten().split(_PART), second.flatten().split(_PART), strict=True)
    for ours, theirs in pairs:
        before = ours.to(torch.float64)
        change = theirs.to(torch.float64) - before
        if not change.isfinite().all():
            return math.nan, math.nan, math.nan
        difference += float(change.square().sum())
        norm += float(before.square().sum())
        largest = max(largest, float(change.abs().max())) if change.numel() else largest
    return difference, norm, largest


def _ratio(difference: float, norm: float) -> float:
    """||b - a|| / ||a|| from their squares."""
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return math.sqrt(difference / norm)
