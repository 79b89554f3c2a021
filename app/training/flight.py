"""Where a process of the run is lost, the others' flight recorders go into the store.

The record of each says which collective it waited in. That they differ tells who was late.
"""

import logging
from collections.abc import Callable

from app.errors import AppError
from app.failures import first_line
from app.process import in_background
from app.ranks.flight import flight_record
from app.run.layout import flight_key
from app.stores.contract import Store

log = logging.getLogger(__name__)

_MOST_BYTES = 1_000_000
_PATIENCE_SECONDS = 10.0  # it is worth less than the end of the process


def keep_flight_record(
    opened: Callable[[], Store],
    epoch: int,
    rank: int,
    record: Callable[[], bytes] = flight_record,
    most_bytes: int = _MOST_BYTES,
    patience: float = _PATIENCE_SECONDS,
) -> None:
    """Put the record beside that of the attempt: its last `most_bytes`, where the newest is.

    `opened` gives the store. The record is for people alone: what fails here is said, and not
    raised.
    """
    try:
        if content := record()[-most_bytes:]:
            store, key = opened(), flight_key(epoch, rank)
            in_background(lambda: store.put(key, [content]), "flight record").result(patience)
            log.info("what rank %d did last with the others: %s/%s", rank, store.uri, key)
    except TimeoutError:
        log.warning("the flight record of rank %d was not stored within %g s", rank, patience)
    except (AppError, RuntimeError) as error:
        log.warning("the flight record of rank %d was not stored: %s", rank, first_line(error))
