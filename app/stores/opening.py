"""The store that CHECKPOINT_URI names."""

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from app.errors import ConfigError
from app.settings.local_paths import local_path
from app.stores.contract import Store, is_key
from app.stores.limits import DEFAULT_LIMITS, StoreLimits
from app.stores.local import LocalStore


class Place(Store, Protocol):
    """A store whose root holds runs."""

    def folders(self) -> Sequence[str]:
        """The names of the folders in the root, sorted. Raises what listing raises."""
        ...


def open_store(uri: str, run_name: str, limits: StoreLimits = DEFAULT_LIMITS) -> Store:
    """The store of `run_name` below CHECKPOINT_URI, which is not contacted yet.

    Raises ConfigError for a URI that is neither file:///folder nor s3://bucket/prefix,
    and for AWS settings that cannot be used; NoCredentials where no credentials come for a while,
    and AccessDenied where they are refused.
    """
    if not is_key(run_name) or "/" in run_name:
        raise ConfigError(f"RUN_NAME={run_name!r} cannot name a folder")
    return _opened(uri, run_name, limits)


def open_place(uri: str, limits: StoreLimits = DEFAULT_LIMITS) -> Place:
    """All that is below CHECKPOINT_URI. Raises what `open_store` raises."""
    return _opened(uri, "", limits)


def _opened(uri: str, run_name: str, limits: StoreLimits) -> Place:
    parts = urlsplit(uri)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return LocalStore(local_path(uri) / run_name, limits)
    if parts.scheme == "s3" and parts.netloc:
        from app.stores.s3 import S3Store

        prefix = "/".join(filter(None, [*parts.path.split("/"), run_name]))
        return S3Store(parts.netloc, prefix, limits=limits)
    raise ConfigError(f"CHECKPOINT_URI={uri!r} is neither file:///folder nor s3://bucket/prefix")
