"""What a disk or the Hugging Face hub says, as one of our errors; `s3_client` does it for S3.

Each context manager translates the failures that its outside party is known for and
lets everything else pass: that would be a bug of ours.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import AccessDenied, AppError, ConfigError, NotFound, Unavailable

_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)
_UNUSABLE = (errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG)
_BROKEN = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OF_A_DISK = {errno.ENOENT, *_DENIED, *_FULL, *_IN_THE_WAY, *_UNUSABLE, *_BROKEN, *_EXHAUSTED}


def from_os_error(error: OSError, place: str) -> AppError:
    """The error to raise from `error`, if it came from the file or folder at `place`.

    `place` names the variable too: "DATA_DIR=/data". What is none of a disk's usual
    answers becomes Unavailable: a network file system can say anything.
    """
    reason = error.strerror or str(error)
    unusable = f"{place} cannot be used ({reason})"
    match error.errno:
        case errno.ENOENT:
            return NotFound(f"{place} does not exist")
        case number if number in _DENIED:
            return AccessDenied(f"{unusable}: let this user access it, or name another place")
        case number if number in _FULL:
            return Unavailable(f"{place} is full ({reason}): free some space")
        case number if number in _IN_THE_WAY:
            return ConfigError(
                f"{unusable}: a file stands where a folder is needed, or the other way round"
            )
        case number if number in _UNUSABLE:
            return ConfigError(f"{unusable}: name another place")
    return Unavailable(f"{place} does not work now ({reason}): start again, or name another place")


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


@contextmanager
def hub_failures(setting: str) -> Iterator[None]:
    """For calls into huggingface_hub and datasets; `setting` is like "DATASET=owner/name".

    Raises AccessDenied, NotFound or Unavailable.
    """
    try:
        yield
    except AppError:
        raise
    except Exception as error:
        if translated := _hub_error(error, setting):
            raise translated from error
        raise


def _hub_error(error: BaseException, setting: str) -> AppError | None:
    from httpx2 import HTTPError
    from huggingface_hub import errors as hub

    # Libraries wrap: what the hub itself said is further down the chain.
    chain = list(_causes(error))

    def said(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    if said(hub.GatedRepoError, hub.DisabledRepoError):
        return AccessDenied(f"{setting} is gated: accept its terms on the hub and set HF_TOKEN")
    if missing := said(hub.RepositoryNotFoundError):
        assert isinstance(missing, hub.RepositoryNotFoundError)
        if missing.response.status_code == 401:  # the hub's answer to who shows no token
            return AccessDenied(
                f"{setting}: neither a path here nor a public repository of the hub; for a private "
                "one set HF_TOKEN"
            )
        return NotFound(
            f"{setting}: neither a path here nor on the hub (a private repository needs "
            "an HF_TOKEN that may read it)"
        )
    if said(hub.RevisionNotFoundError):
        return NotFound(f"{setting}: the repository has no such revision")
    if answer := said(hub.HfHubHTTPError):
        assert isinstance(answer, hub.HfHubHTTPError)
        status = answer.response.status_code
        if status in (401, 403):
            return AccessDenied(f"{setting}: the hub refuses access ({status}): set HF_TOKEN")
        if status == 404:
            return NotFound(f"{setting}: the hub has no such file")
        return Unavailable(f"{setting}: the hub answers {status}: try again later")
    if said(hub.OfflineModeIsEnabled):
        return Unavailable(f"{setting} is not on this machine and HF_HUB_OFFLINE is set")
    silent = said(HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if silent is not None:
        return Unavailable(f"{setting}: the hub cannot be reached ({first_line(chain[-1])})")
    if said(hub.HFValidationError):
        return NotFound(f"{setting} is neither a path here nor a hub id such as owner/name")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def first_line(error: BaseException) -> str:
    """What a library says, as a part of a sentence of ours: without the stop at its end."""
    text = str(error).strip().partition("\n")[0].rstrip(" .,:;")
    return text or type(error).__name__
