"""`python -m app` over small windows and shards, whose tokens come as late as they can.

A shard is made only when the job can do nothing but wait for it. LATE_TOKENS=fail stops
the source after some shards as a full disk would, LATE_TOKENS=never has it hang there.
"""

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from app.cli import parser as cli
from app.data import sample_order as sampler
from app.data.limits import DataLimits
from app.data.preparation import Preparation
from app.data.shard_index import ShardIndex, Split
from app.data.token_need import PrepareProgress, Waiting
from app.data.tokenization import ShardMaker
from tests.support.prepared import change_defaults

WINDOW = 16
SHARD_TOKENS = 500
_SHARDS_BEFORE_TROUBLE = 3

wanted = threading.Event()
wait_for, require, extend = Preparation.wait_for, Preparation.require, ShardMaker.extend


def say_that_it_is_wanted(waiting: Waiting, progress: PrepareProgress) -> None:
    wanted.set()
    waiting(progress)


def wait_for_and_say_so(
    self: Preparation, split: Split, n_tokens: int, waiting: Waiting
) -> ShardIndex:
    return wait_for(self, split, n_tokens, partial(say_that_it_is_wanted, waiting))


def require_and_say_so(
    self: Preparation, split: Split, starts: npt.NDArray[np.int64], length: int, waiting: Waiting
) -> None:
    require(self, split, starts, length, partial(say_that_it_is_wanted, waiting))


def extend_when_wanted(self: ShardMaker, index: ShardIndex, done: Any) -> Iterator[ShardIndex]:
    trouble = os.environ.get("LATE_TOKENS")
    made = extend(self, index, done)
    while True:
        wanted.wait()
        wanted.clear()
        if trouble and len(index.seals) >= _SHARDS_BEFORE_TROUBLE:
            if trouble == "fail":
                raise OSError(28, "No space left on device")
            print("the source hangs", flush=True)
            threading.Event().wait()
        found = next(made, None)
        if found is None:
            return
        index = found
        yield index


def main() -> int:
    Preparation.wait_for = wait_for_and_say_so  # type: ignore[method-assign]
    Preparation.require = require_and_say_so  # type: ignore[method-assign]
    ShardMaker.extend = extend_when_wanted  # type: ignore[method-assign]
    limits = DataLimits(batch_characters=600)
    change_defaults(shard_tokens=SHARD_TOKENS, limits=limits)
    sampler.SampleOrder.__init__.__defaults__ = (WINDOW,)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
