"""How long a store waits before it gives something up. Tests hand in shorter or longer times."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreLimits:
    """All times are in seconds. From a `stale_…` age on, something half written is left over."""

    stale_file: float = 60.0  # covers the moment between creating a partial file and locking it
    # For files of another kernel, whose locks a network file system may not show.
    stale_file_elsewhere: float = 86_400.0
    stale_upload: float = 86_400.0  # nobody knows whether its writer is alive: a day is enough
    read_timeout: float = 60.0  # of an S3 server; a large copy takes it a while
    credentials_wait: float = 60.0  # a metadata server may boot as long as the machine does
    credentials_pause: float = 2.0  # between two looks for credentials
    restart_wait: float = 30.0  # for a server that starts while the job does
    restart_pause: float = 2.0
    probe_pause: float = 1.0  # before a server is asked again whether it does not know something
    conflict_pauses: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)  # before a write is sent again


DEFAULT_LIMITS = StoreLimits()
