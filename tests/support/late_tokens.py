"""`python -m app` over small windows and shards, whose tokens come as late as they can.

A shard is made only when the job can do nothing but wait for it. LATE_TOKENS=fail stops
the source after some shards as a full disk would, LATE_TOKENS=never has it hang there.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from app.cli import parser as cli
from app.data import preparation
from app.data import sample_order as sampler
from app.data import tokenization as prepare
from app.data.shards import ShardIndex

WINDOW = 16
SHARD_TOKENS = 500
_SHARDS_BEFORE_TROUBLE = 3

wanted = threading.Event()
wait, extend = preparation.Preparation._wait, prepare.ShardMaker.extend


def wait_and_say_so(
    self: preparation.Preparation, there: Callable[[], bool], waiting: preparation.Waiting
) -> None:
    wanted.set()
    wait(self, there, waiting)


def extend_when_wanted(
    self: prepare.ShardMaker, index: ShardIndex, done: Any
) -> Iterator[ShardIndex]:
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
    preparation.Preparation._wait = wait_and_say_so  # type: ignore[method-assign]
    prepare.ShardMaker.extend = extend_when_wanted  # type: ignore[method-assign]
    assert preparation.Preparation.__init__.__kwdefaults__ is not None
    preparation.Preparation.__init__.__kwdefaults__["shard_tokens"] = SHARD_TOKENS
    prepare._BATCH_CHARACTERS = 600
    sampler.SampleOrder.__init__.__defaults__ = (WINDOW,)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
