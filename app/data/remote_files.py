"""DATASET as a URI: which kind of server it names."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from app.data.downloads import RemoteFiles, S3Files
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.retries import Sleep
from app.data.web_files import WebFile
from app.errors import ConfigError

_KINDS: dict[str, type[RemoteFiles]] = {"s3": S3Files, "http": WebFile, "https": WebFile}


def list_remote(
    uri: str,
    data_dir: Path,
    alive: Callable[[], None],
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
) -> RemoteFiles:
    """List the files at `uri`: s3:// (object, folder or pattern), http:// or https:// (a file).

    `alive` is called for each block that is fetched later, and `sleep` makes the pauses before
    a file is asked for again. Raises ConfigError (another scheme, or no file of ours),
    NotFound, AccessDenied, Unavailable.
    """
    kind = _KINDS.get(urlsplit(uri).scheme)
    if kind is None:
        raise ConfigError(f"DATASET={uri}: URIs start with s3://, https://, http:// or file://")
    return kind(uri, data_dir, alive, limits.fetched_bytes, sleep)
