"""Jobs of different images: the Python of each has another standard library, and so another builtin
text and another builtin tokenizer."""

import sysconfig
from pathlib import Path
from typing import Any
from unittest import mock

from app.data.tokenizer import load_tokenizer


def write_library(folder: Path, words: str) -> Path:
    """A standard library of some small files that are made of `words`."""
    folder.mkdir()
    for number in range(120):
        name, text = f"module_{number:03d}.py", f"# {number}\n" + f"{words} {number} " * 12
        (folder / name).write_text(text)
    return folder


def become_image(library: Path) -> None:
    """From here on, `library` is the standard library of this process, and no tokenizer of an
    image is there."""
    original = sysconfig.get_path

    def get_path(name: str, *arguments: Any, **words: Any) -> str:
        return str(library) if name == "stdlib" else original(name, *arguments, **words)

    mock.patch.object(sysconfig, "get_path", get_path).start()
    assert load_tokenizer.__kwdefaults__ is not None
    load_tokenizer.__kwdefaults__["builtin_directory"] = library / "nowhere"
