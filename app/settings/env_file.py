"""`.env` in the working directory, read as docker compose reads it.

What python-dotenv, which does the work, would read in another way than compose is refused.
"""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from app.errors import AccessDenied, ConfigError
from app.settings.variables import variables

ENV_FILE = Path(".env")

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_SINGLE_QUOTED = re.compile(r"\s*(export\s+)?[^=]*=\s*'")
_INTERPOLATED = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^$}]*)?\}")


def read_env_file(path: Path = ENV_FILE) -> dict[str, str]:
    """The variables in the file; none where there is no file.

    Raises ConfigError, with one line for each line of the file that cannot be used, and
    AccessDenied for a file that cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason}): convert it") from error
    except OSError as error:
        raise AccessDenied(f"{path} cannot be read ({error.strerror})") from error
    bindings = list(parse_stream(StringIO(text)))
    problems = [f"{path}, line {_line(b)}: {problem}" for b in bindings for problem in _problems(b)]
    if problems:
        raise ConfigError(*problems)
    values = dotenv_values(stream=StringIO(text))
    # Between single quotes compose takes every sign as it is.
    literal = {
        b.key: b.value for b in bindings if b.key and _SINGLE_QUOTED.match(b.original.string)
    }
    return {name: value for name, value in (values | literal).items() if value}


def _problems(binding: Binding) -> Iterator[str]:
    name, value = binding.key, binding.value or ""
    if binding.error or (name and not _NAME.fullmatch(name)):
        yield "this is not NAME=value, with the value in no quotes or in a pair of them"
    quoted = _SINGLE_QUOTED.match(binding.original.string)
    ours = name in {variable.name for variable in variables()}
    if ours and not quoted and "$" in _INTERPOLATED.sub("", value):
        yield (
            f"the '$' in {name} cannot be replaced: write ${{OTHER_NAME}}, or put the value "
            "between single quotes"
        )


def _line(binding: Binding) -> int:
    """The number of the line, from 1; blank lines before it belong to the binding too."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
