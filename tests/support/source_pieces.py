"""A dataset as its pieces, and the check that reading can go on after each of them."""

import json
from typing import Any

from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.pieces import Piece, Pieces, Position
from app.data.retries import Sleep
from app.data.sources import pin_source
from app.settings.variables import DataSettings


def source(dataset: object, **more: Any) -> DataSettings:
    return DataSettings(dataset=str(dataset), **more)


def documents(
    data: DataSettings,
    after: Position | None = None,
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
) -> Pieces:
    """The pieces of DATASET as it is now."""
    return pin_source(data, limits=limits, sleep=sleep).pieces(after)


def fingerprint_of(settings: DataSettings) -> str:
    return pin_source(settings).fingerprint


def texts(dataset: object, limits: DataLimits = DEFAULT_LIMITS, **more: Any) -> list[str]:
    return [piece.text for piece in documents(source(dataset, **more), limits=limits)]


def check_every_position(
    settings: DataSettings, limits: DataLimits = DEFAULT_LIMITS
) -> list[Piece]:
    """All pieces; going on after any of them, by way of JSON, gives those that follow."""
    pieces = list(documents(settings, limits=limits))
    going = documents(settings, limits=limits)
    for number in range(len(pieces) + 1):
        position = json.loads(json.dumps(going.position))
        rest = documents(settings, position, limits)
        assert rest.position == position
        assert list(rest) == pieces[number:]
        assert next(going, None) == (pieces[number] if number < len(pieces) else None)
    return pieces
