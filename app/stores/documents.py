"""JSON objects of a store as pydantic models: decoded and encoded the same way everywhere.

The format version of an object is compared before anything else in it is looked at. An object of
a newer format may hold what this version of the program does not know. Such an object is whole:
it is refused, and never called damaged or set aside.
"""

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import Damaged, IncompatibleRun

M = TypeVar("M", bound=BaseModel)


class Document(BaseModel):
    """What is read back: nothing is converted, and fields of later versions are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class Part(Document):
    """A part of a document. It has no field that this version does not know."""

    model_config = ConfigDict(extra="forbid")


class _Format(BaseModel):
    """The one field that is read of an object of any version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = 0


def decode_document(
    content: bytes,
    model: type[M],
    place: str,
    *,
    newest_format: int | None = None,
    damaged: Callable[[str], str] | None = None,
) -> M:
    """`content`, which was read from `place`, as a `model`.

    `newest_format` is the highest format_version that this program reads; None: the object has
    no versions. `damaged` makes the message of the error from "field: what is wrong with it".
    Raises IncompatibleRun for a newer format, and Damaged for anything else that does not fit.
    """
    if newest_format is not None:
        _check_format(content, newest_format, place)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "content"
        what = f"{where}: {problem['msg']}"
        raise Damaged(damaged(what) if damaged else f"{place} is damaged ({what})") from error


def encode_document(document: BaseModel) -> bytes:
    """JSON that people can read: indented, and with a newline at its end."""
    return (document.model_dump_json(indent=1) + "\n").encode()


def _check_format(content: bytes, newest_format: int, place: str) -> None:
    """Raise IncompatibleRun if the content has a newer format.

    Content that names no format passes here: decoding the rest of it says what is wrong.
    """
    try:
        found = _Format.model_validate_json(content).format_version
    except ValidationError:
        return
    if found > newest_format:
        raise IncompatibleRun(
            f"{place} has format {found}: it was made by a newer version, and this one reads up "
            f"to {newest_format}: use the newer image"
        )
