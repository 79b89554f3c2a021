"""How a user names a file or folder of this machine: one notation, for every variable and flag.

    data, /data         a path
    ~/data, ~name/data  below a home directory
    file:///a%20b       a path as a URI writes it

What a shell would have replaced, and here nobody has, is refused instead of taken as a name.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


def local_path(text: str) -> Path:
    """The path that `text` means. Raises ValueError, with what to write instead."""
    if text != text.strip() or not text:
        raise ValueError("spaces or line ends stand around the path: leave them out")
    if found := _SCHEME.match(text):
        if found["scheme"].lower() != "file":
            raise ValueError(f"a path is needed here, and {found[0]} is no place on this machine")
        return Path(path_of_file_uri(text))
    if re.match(r"\$[A-Za-z_({]", text):
        raise ValueError("nothing puts a value in the place of '$' here: write the path in full")
    return _from_home(text) if text.startswith("~") else Path(text)


def path_of_file_uri(uri: str) -> str:
    """The absolute path in file:///absolute/path, decoded. Raises ValueError."""
    rest = uri.split("://", 1)[1].removeprefix("localhost")
    if not rest.startswith("/"):
        raise ValueError("a file URI has three slashes: file:///absolute/folder")
    if rest.startswith("/~"):
        raise ValueError("'~' has no meaning in a URI: write the path in full")
    if re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        raise ValueError("a percent sign in a file URI is written %25")
    try:
        path = unquote_to_bytes(rest).decode()
    except UnicodeDecodeError as error:
        raise ValueError("the path is not UTF-8: rename the file or folder") from error
    if "\0" in path:
        raise ValueError("a path holds no byte 0")
    return path


def _from_home(text: str) -> Path:
    whose = text.split("/", 1)[0]
    try:
        if whose == "~" and os.environ.get("HOME") == "":  # else "~/data" would become "/data"
            raise RuntimeError("HOME is empty")
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"no home directory is known for {whose}: write the path in full"
        ) from error
