"""Text of any size for the benches: the builtin documents again and again, in other orders."""

import json
import random
from itertools import count
from pathlib import Path

from app.data.builtin import builtin_documents


def write_text(path: Path, n_bytes: int) -> None:
    """At least `n_bytes` of JSON Lines at `path`, the same each time; kept where it is there.

    Each document begins with the number of its round, so that it is another one in each.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    documents, order = list(builtin_documents()), random.Random(0)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        for number in count():
            order.shuffle(documents)
            for text in documents:
                file.write(json.dumps({"text": f"# {number}\n{text}"}).encode() + b"\n")
                if file.tell() >= n_bytes:
                    part.rename(path)
                    return
