"""What a disk says, as one of our errors.

`app.model.hub_failures` does the same for the Hugging Face hub and `app.stores.s3_answers` for S3.
Each translates the failures that its outside party is known for and lets everything else pass,
since that would be a bug of ours.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import AccessDenied, AppError, ConfigError, NotFound, Unavailable, Unserved

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)
_UNUSABLE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_A_DISK = {errno.ENOENT, *_DENIED, *_FULL, *_IN_THE_WAY, *_UNUSABLE, *_BROKEN, *_EXHAUSTED}


def from_os_error(error: OSError, place: str) -> AppError:
    """The error to raise from `error`, if it came from the file or folder at `place`.

    `place` names the variable too: "DATA_DIR=/data". An answer that disks do not usually give
    becomes Unavailable, since a network file system can say anything.
    """
    reason = error.strerror or str(error)
    unusable = f"{place} cannot be used ({reason})"
    match error.errno:
        case errno.ENOENT:
            return NotFound(f"{place} does not exist")
        case number if number in _DENIED:
            return AccessDenied(
                f"{unusable}: let this user (uid {os.geteuid()}, gid {os.getegid()}) access it, or "
                "name another place"
            )
        case number if number in _FULL:
            return Unavailable(f"{place} is full ({reason}): free some space")
        case number if number in _IN_THE_WAY:
            return ConfigError(
                f"{unusable}: a file stands where a folder is needed, or the other way round"
            )
        case number if number in _UNUSABLE:
            return ConfigError(f"{unusable}: name another place")
    return Unavailable(f"{place} does not work now ({reason}): start again, or name another place")


def from_stored_file(error: OSError, place: str) -> AppError:
    """As `from_os_error`, for a file of a store on a volume: a disk can fail at one of many."""
    failure = from_os_error(error, place)
    return Unserved(str(failure)) if error.errno == errno.EIO else failure


@contextmanager
def disk_failures(place: str) -> Iterator[None]:
    """For work in the folder `place`, for example "DATA_DIR=/data".

    Raises AccessDenied (read-only or no permission), Unavailable (full, or the device
    fails) or ConfigError (not a folder, or not one for such files).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_A_DISK:
            raise
        raise from_os_error(error, place) from error


def first_line(error: BaseException) -> str:
    """The first line of what a library says, without its full stop, to be put into a sentence."""
    text = str(error).strip().partition("\n")[0].rstrip(" .,:;")
    return text or type(error).__name__
