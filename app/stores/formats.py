"""The format that a JSON file of the store says it has: looked at before anything else in it.

A newer version may write what this one does not know. Such a file is whole, and must not be
called damaged, or set aside.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import IncompatibleRun


class _Format(BaseModel):
    """All that every version of a file has in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = 0


def check_format(content: bytes, known: int, place: str) -> None:
    """Raises IncompatibleRun if `content`, read from `place`, has a newer format than `known`.

    A file that names no format passes: whoever reads the rest says what is wrong with it.
    """
    try:
        found = _Format.model_validate_json(content).format_version
    except ValidationError:
        return
    if found > known:
        raise IncompatibleRun(
            f"{place} has format {found}: it was made by a newer version, and this one reads up "
            f"to {known}: use the newer image"
        )
