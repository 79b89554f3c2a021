"""The corpus of DATASET=builtin: Python's standard library, its source and its manual.

It is in every image, so it needs no network and no download. Images differ in it, so a run keeps
the text that it was begun with (see `app.run.kept_inputs`).
"""

import ast
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from app.errors import NotFound

BUILTIN = "builtin"

# `encodings` is 1.4 MB of character tables; pydoc_data is the manual, which is read below.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
# These files differ by platform: an arm64 node could not carry on an amd64 node's run.
_PLATFORM_ONLY = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class BuiltinText:
    """The documents of the builtin corpus, and their fingerprint. `read` begins anew each time."""

    fingerprint: str
    read: Callable[[], Iterable[str]]


def image_text() -> BuiltinText:
    """What this Python gives. Raises NotFound as `builtin_documents`."""
    return BuiltinText(builtin_fingerprint(), builtin_documents)


def kept_text(documents: Sequence[str]) -> BuiltinText:
    """What another image gave, and a run has kept."""
    return BuiltinText(_fingerprint(documents), partial(iter, documents))


def builtin_documents(library: Path | None = None) -> Iterator[str]:
    """The source files in order of their names, then the topics of Python's help().

    `library` is the folder of a standard library; None means that of this Python. Nothing is
    imported or executed. Raises NotFound if the folder holds no source files.
    """
    root = library or Path(sysconfig.get_path("stdlib"))
    paths = list(_library_files(root))
    if not paths:
        raise NotFound(f"DATASET=builtin: {root} holds no source files; name another dataset")
    for path in sorted(paths, key=lambda path: path.relative_to(root).parts):
        # A few old files are in another encoding than UTF-8; what is no UTF-8 is replaced.
        yield path.read_text("utf-8", errors="replace")
    yield from _manual(root / "pydoc_data" / "topics.py")


@cache
def builtin_fingerprint(library: Path | None = None) -> str:
    """SHA-256 (hex) of the documents and of the borders between them."""
    return _fingerprint(builtin_documents(library))


def _fingerprint(documents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in documents:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _library_files(root: Path) -> Iterator[Path]:
    for place, subfolders, names in os.walk(root):
        # These folders are not even walked: installed packages can be a hundred times as large.
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        if Path(place) == root:
            subfolders[:] = [name for name in subfolders if not name.startswith(_PLATFORM_ONLY)]
        for name in names:
            left_out = Path(place) == root and name.startswith(_PLATFORM_ONLY)
            if name.endswith(".py") and not left_out:
                yield Path(place, name)


def _manual(path: Path) -> Iterator[str]:
    """The values of `topics = {name: text, ...}`, in order of the names."""
    if not path.is_file():
        return
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from (topics[name] for name in sorted(topics))
