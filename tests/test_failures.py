"""What a disk says, as one of our errors."""

import errno

import pytest

from app.errors import AccessDenied, ConfigError, Unavailable
from app.failures import disk_failures


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, AccessDenied),
        (errno.EROFS, AccessDenied),
        (errno.ENOSPC, Unavailable),
        (errno.EDQUOT, Unavailable),
        (errno.EIO, Unavailable),
        (errno.ENOTDIR, ConfigError),
    ],
)
def test_a_disks_failures_are_told_apart(number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected, match=r"^DATA_DIR=/d ") as caught, disk_failures("DATA_DIR=/d"):
        raise OSError(number, "reason")
    assert caught.type is expected


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EBADF, "x"), KeyError(1)])
def test_what_only_a_bug_can_cause_passes_the_disk(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, disk_failures("DATA_DIR=/d"):
        raise error
    assert caught.value is error
