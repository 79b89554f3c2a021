"""JSON objects of a store as pydantic models: what each reader would otherwise write for itself.

The format that an object names is looked at before anything else in it. A newer version may write
what this one does not know: such an object is whole, and is never called damaged or set aside.
"""

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import Damaged, IncompatibleRun

M = TypeVar("M", bound=BaseModel)


class _Format(BaseModel):
    """All that every version of an object has in common."""

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
    """`content`, read from `place`, as a `model`.

    `newest_format` is the highest format_version that this version reads; None: it has none.
    `damaged` makes the message from "field: what is wrong with it". Raises IncompatibleRun for a
    newer format, and Damaged.
    """
    if newest_format is not None:
        check_format(content, newest_format, place)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "content"
        what = f"{where}: {problem['msg']}"
        raise Damaged(damaged(what) if damaged else f"{place} is damaged ({what})") from error


def encode_document(document: BaseModel) -> bytes:
    """JSON for people: indented, and with a line end at its end."""
    return (document.model_dump_json(indent=1) + "\n").encode()


def check_format(content: bytes, newest_format: int, place: str) -> None:
    """Raises IncompatibleRun if `content`, read from `place`, has a newer format.

    A file that names no format passes: whoever reads the rest says what is wrong with it.
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
