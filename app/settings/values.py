"""What a single value may be, for the variables whose type and bounds do not say it all.

Each check gives the value back, and raises ValueError, which pydantic reports with the variable.
"""

import re
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from app.settings.local_paths import local_path, path_of_file_uri

MOST_DEVICES = 64  # of one machine
CREDENTIALS = "credentials do not belong in a URI"

# Python would also take 1_000, the digits of other scripts, and for a whole number 5.0.
_WRITTEN = {
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


MOST_PROFILED = 20  # steps


def path_safe(signs: str, longest: int) -> AfterValidator:
    """Letters, digits and `signs`: safe as a part of a path and of a key."""
    allowed = re.compile(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(signs)}]{{0,{longest - 1}}}")

    def check(value: str) -> str:
        if not allowed.fullmatch(value):
            raise ValueError(
                f"allowed: up to {longest} letters, digits and {' '.join(signs)}, "
                "of which the first is a letter or a digit"
            )
        return value

    return AfterValidator(check)


def host_name(value: str) -> str:
    """A name or a number of a machine, as 127.0.0.1, :: or localhost."""
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,255}", value):
        raise ValueError("it is no address: name one without a port, as 127.0.0.1, :: or localhost")
    return value


def steps_to_profile(value: str) -> str:
    """One step, or two with a dash between them: `step_range` reads them."""
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", value):
        raise ValueError("name a step or two, as 10 or 10-12, counted from 1 as the log does")
    steps = step_range(value)
    if not 1 <= steps.start < steps.stop:
        raise ValueError("the first step is 1 or more, and the last one is not before it")
    if len(steps) > MOST_PROFILED:
        raise ValueError(f"{len(steps)} steps make a trace too large: name {MOST_PROFILED} at most")
    return value


def step_range(value: str) -> range:
    """The steps that `10-12` names, both of them included."""
    first, _, last = value.partition("-")
    return range(int(first), int(last or first) + 1)


def as_meant(value: str) -> str:
    """A value as it was typed. Raises ValueError for what a shell or a file left around it."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise ValueError("the quotes are a part of the value here: leave them out")
    if any(sign < " " or sign == "\x7f" for sign in value):
        raise ValueError("it holds a line end or another control character: leave it out")
    if any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ValueError("it is not UTF-8: rename the file or folder")
    return value


def number_as_written(value: str, info: FieldInfo) -> str:
    """`value`. Raises ValueError if it is for a number, and is not written as one is."""
    if (kind := _kind(info)) not in _WRITTEN:
        return value
    if value != value.strip():
        raise ValueError("white space stands around it: leave it out")
    if not _WRITTEN[kind].fullmatch(value):
        digits = "digits only" if kind is int else "digits, with a point or an exponent"
        raise ValueError(f"it is not written in {digits}")
    return value


def allowed(info: FieldInfo) -> str:
    """What a variable with a number, or with true or false, may be; "" for every other one."""
    kind = _kind(info)
    if kind is bool:
        return "true or false"
    if kind not in _WRITTEN:
        return ""
    number = "a whole number" if kind is int else "a number"
    bounds = [
        f"{word} {as_typed(bound)}"
        for name, word in _BOUNDS.items()
        for rule in info.metadata
        if (bound := getattr(rule, name, None)) is not None
    ]
    return f"{number}, {' and '.join(bounds)}" if bounds else number


def _kind(info: FieldInfo) -> object:
    """The type of its values, where that is one; None beside it is for an unset variable."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else info.annotation


def folder(path: str | Path) -> Path:
    """The absolute path of a folder on this machine."""
    return local_path(str(path)).absolute()


def directory_or_hub_id(spec: str) -> str:
    """`spec`, whose path can be read as `local_path` does."""
    local_path(without_credentials(spec))
    return spec


def data_source(spec: str) -> str:
    """`spec`: a local path as `local_path` reads it, or the address of files elsewhere."""
    without_credentials(spec)
    if "://" not in spec or spec.lower().startswith("file://"):
        local_path(spec)
    elif spec != spec.strip():
        raise ValueError("spaces or line ends stand around the address: leave them out")
    return spec


def without_credentials(spec: str) -> str:
    """`spec`. Raises ValueError, without any of its text, for a URI that names a user.

    A password with a slash in it looks like a port that is no number.
    """
    if "://" not in spec:
        return spec
    try:
        parts = urlsplit(spec)
        plain = "@" not in parts.netloc and (parts.port is None or parts.port >= 0)
    except ValueError:
        plain = False
    if not plain:
        raise ValueError(
            f"{CREDENTIALS}, and a port is a number; give a web file a signed address, and set "
            "AWS_ACCESS_KEY_ID for a bucket"
        )
    return spec


def store_uri(text: str) -> str:
    """A file:// or s3:// URI, without a slash at its end. A folder may be typed as a path, too."""
    if "://" not in text:
        return _folder_uri(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError("not a URI") from error
    if "@" in parts.netloc:
        raise ValueError(f"{CREDENTIALS}; set AWS_ACCESS_KEY_ID instead")
    if text != text.strip():
        raise ValueError("spaces or line ends stand around the URI: leave them out")
    path = path_of_file_uri(text) if parts.scheme == "file" else parts.path
    if parts.query or parts.fragment or ".." in path.split("/"):
        raise ValueError("'?', '#' and '..' have no meaning here")
    if parts.scheme == "file":
        return f"file://{parts.path.rstrip('/') or '/'}"
    if parts.scheme != "s3":
        raise ValueError("a store is a folder, or starts with s3://")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc):
        raise ValueError(
            "an s3 URI names a bucket, of 3 to 63 small letters, digits, dots and dashes: "
            "s3://bucket/prefix"
        )
    return f"s3://{parts.netloc}/{parts.path.strip('/')}"


def _folder_uri(text: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):  # s3:/bucket would become a folder's name
        raise ValueError(
            "two slashes follow the colon of a URI: s3://bucket/prefix; a folder of such a name "
            "is written ./name:"
        )
    path = folder(text)
    return (path.resolve() if ".." in path.parts else path).as_uri()


def as_typed(value: object) -> str:
    """A value the way a user writes it: false, 25, 1e-08; nothing for what is unset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def device_count(value: str) -> str:
    """auto, or how many."""
    if value != "auto" and not (value.isdecimal() and 1 <= int(value) <= MOST_DEVICES):
        raise ValueError(f"allowed: auto, or a number from 1 to {MOST_DEVICES}")
    return value
