"""Which files a path, folder or pattern names: one notation for a disk and for a bucket.

*            any signs of one name, so not "/"
?            one sign
[ab] [!ab]   one sign of these, or none of these
**           as a whole component: any number of folders, none among them

What exists as it is written is taken as that, whatever signs it holds. A folder stands for
folder/**. A name that begins with a dot is only matched by a pattern that begins with one.
"""

import fnmatch
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.console import counted
from app.data.kinds import ENDINGS, is_plain_json, kind_of
from app.errors import ConfigError, NotFound

log = logging.getLogger(__name__)

_SHOWN = 3
_ANY = "**"
_OF_A_DISK = "lost+found"  # root's, on every ext4 volume; the pieces in it are no text

At = tuple[str, ...]
"""A place in a tree: the names on the way to it. () is the root."""

What = Literal["file", "folder", "dangling link", "special file"]

_REASONS: dict[What, str] = {
    "file": "other endings",
    "folder": "folders, which only ** looks into",
    "dangling link": "links to nothing",
    "special file": "pipes, sockets, devices",
}


class Tree(Protocol):
    """Folders with files in them: a disk's, or those that the keys of a bucket spell."""

    def what(self, at: At) -> What | None:
        """What is at this place; None: nothing."""
        ...

    def entries(self, folder: At) -> Iterable[tuple[str, What]]:
        """Name and kind of all that is in a folder."""
        ...

    def identity(self, folder: At) -> object:
        """The same for one folder by whatever way, so that a link in a circle is noticed."""
        ...

    def place(self, at: At) -> str:
        """The path or URI, for messages."""
        ...


@dataclass
class LeftOut:
    """What is not read, by the reason. It is named relative to the folder `depth` names deep."""

    depth: int
    names: dict[str, set[str]] = field(default_factory=dict)

    def note(self, reason: str, at: At) -> None:
        self.names.setdefault(reason, set()).add("/".join(at[self.depth :]))

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {len(names):,} ({_first_few(sorted(names))})"
            for reason, names in self.names.items()
        )


def choose(tree: Tree, pattern: At, setting: str) -> list[At]:
    """The files that `pattern` names, in the order of their names, component by component.

    One line of the log says what was left out. Raises NotFound (nothing is there, or a link
    leads to nothing) or ConfigError (no file of ours, or not a file at all).
    """
    fixed = _as_written(tree, pattern)
    what = tree.what(fixed)
    if fixed == pattern and what not in ("folder", None):
        if kind_of(fixed[-1]) is None:
            raise ConfigError(f"{setting}: files end with {ENDINGS}")
        return [_checked(tree, fixed, what, setting)]
    if what != "folder":
        raise NotFound(f"{setting} does not exist")
    left = LeftOut(len(fixed))
    chosen = []
    for at, what in dict(_walk(tree, fixed, pattern[len(fixed) :] or (_ANY,), left, ())).items():
        if kind_of(at[-1]) is None or what == "folder":
            left.note(_REASONS[what], at)
        elif is_plain_json(at[-1]) and not _names_json(pattern):
            left.note(".json, which is only read where DATASET says .json", at)
        else:
            chosen.append(_checked(tree, at, what, setting))
    if not chosen and fixed != pattern and not left.names:
        raise NotFound(f"{setting} matches nothing")
    if not chosen:
        also = f"; left out: {left}" if left.names else ""
        raise NotFound(f"{setting} holds no file of {ENDINGS}{also}")
    if left.names:
        files = counted(len(chosen), "file is", "files are")
        log.info("%s: %s read; left out: %s", setting, files, left)
    return sorted(chosen)


def say_empty(setting: str, names: Sequence[str]) -> None:
    """Log which of the files of a source hold no byte."""
    if names:
        many = counted(len(names), "file is empty", "files are empty")
        log.warning("%s: %s (%s)", setting, many, _first_few(names))


def names_in_common_folder(files: Sequence[At]) -> list[str]:
    """The name of each file, relative to the folder that all of them are in."""
    folders = [at[:-1] for at in files]
    first, last = min(folders), max(folders)
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    depth = sum(1 for _ in pairs)
    return ["/".join(at[depth:]) for at in files]


def is_pattern(text: str) -> bool:
    return any(mark in text for mark in "*?[")


def _as_written(tree: Tree, pattern: At) -> At:
    """The components up to the first one that is a pattern, and is no name that exists."""
    for number, component in enumerate(pattern):
        if is_pattern(component) and tree.what(pattern[: number + 1]) is None:
            return pattern[:number]
    return pattern


def _walk(
    tree: Tree, folder: At, pattern: At, left: LeftOut, above: tuple[object, ...]
) -> Iterator[tuple[At, What]]:
    """All that `pattern` matches below `folder`. `above` identifies the folders on the way."""
    first, rest = pattern[0], pattern[1:]
    deep = first == _ANY
    here = tree.identity(folder)
    if here in above:
        left.note("links in a circle", folder)
        return
    if deep and rest:
        yield from _walk(tree, folder, rest, left, above)
    for name, what in sorted(tree.entries(folder)):
        if not fnmatch.fnmatchcase(name, first):
            continue
        at = (*folder, name)
        goes_on = bool(rest) or deep
        if name == _OF_A_DISK != first and what == "folder":
            left.note("the disk's own", at)
        elif name.startswith(".") and not first.startswith("."):
            if not rest or what == "folder":
                left.note("hidden", at)
        elif what == "folder" and goes_on:
            yield from _walk(tree, at, pattern if deep else rest, left, (*above, here))
        elif not rest:
            yield at, what
        elif what == "dangling link" and kind_of(name) is None:  # perhaps to a folder
            left.note(_REASONS[what], at)


def _names_json(pattern: At) -> bool:
    return bool(pattern) and ".json" in pattern[-1].lower().replace(".jsonl", "")


def _checked(tree: Tree, at: At, what: What | None, setting: str) -> At:
    """`at`. Raises NotFound or ConfigError for what is called like a file of ours and is none."""
    if what == "dangling link":
        raise NotFound(
            f"{setting}: {tree.place(at)} is a link to what does not exist: fetch that, or remove "
            "the link"
        )
    if what == "special file":
        raise ConfigError(
            f"{setting}: {tree.place(at)} is a pipe, a socket or a device: name files"
        )
    return at


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
