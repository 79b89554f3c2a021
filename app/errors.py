"""Every failure that the job can name, with the exit code that an orchestrator sees.

    AppError                   1   a bug, unless a subclass says otherwise
    ├── UsageError            64   the command line cannot be understood
    ├── Unavailable           75   store or data out of reach; the same start may succeed later
    │   ├── Unserved          75   somebody answered, and failed at this object
    │   ├── NoCredentials     75   nothing gives credentials yet; nobody has refused any
    │   └── LostPeer          75   another process of the run is gone, or silent for too long
    ├── AccessDenied          77   the credentials or file permissions do not allow it
    ├── ConfigError           78   a setting, or an input that it names, cannot be used
    │   ├── NotFound          78   the named object or input does not exist
    │   ├── NoBucket          78   the place where it would be does not exist either
    │   ├── Damaged           78   bytes are there, but they are not what was written
    │   └── IncompatibleRun   78   the run in the store was made with other settings
    ├── Fenced                79   another process took the run over
    ├── Cancelled            130   Ctrl-C at a question: nothing was changed
    └── Preempted            143   asked to stop, and stopped in order

A message says what happened, names the variable or file, and says what to do.
The three answers that a store can give to "where is it?" are never confused:
`NotFound` (it is not there), `AccessDenied` (you may not know) and `Unavailable`
(nobody answered).
"""

from app.printable import printable

EXIT_OK = 0
EXIT_INTERRUPTED = 130  # Ctrl-C, where nothing comes after it: the shell's own number for it


class AppError(Exception):
    """Root of the tree. `exit_code` is the status that the process ends with.

    Each argument is one line of the message, whatever signs it quotes.
    """

    exit_code = 1

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class UsageError(AppError):
    """The command line cannot be understood."""

    exit_code = 64


class Unavailable(AppError):
    """A store or data source did not answer, or answered that it cannot serve now."""

    exit_code = 75


class Unserved(Unavailable):
    """A server's own failure (5xx, an answer that breaks off) or a disk's (EIO) at one object.

    Others may be served still.
    """


class NoCredentials(Unavailable):
    """No source gives credentials yet: a metadata server may still boot, a role may be new."""


class LostPeer(Unavailable):
    """Another process that makes the same steps is gone, or was silent for PEER_TIMEOUT."""


class AccessDenied(AppError):
    """The credentials or the file permissions do not allow the operation."""

    exit_code = 77


class ConfigError(AppError):
    """A setting, or an input that it names, cannot be used as it is."""

    exit_code = 78


class NotFound(ConfigError):
    """The named object, file or dataset does not exist."""


class NoBucket(ConfigError):
    """The bucket does not exist. No NotFound: nothing can be said about what would be in it."""


class Damaged(ConfigError):
    """Stored bytes do not match their recorded size, hash or format."""


class IncompatibleRun(ConfigError):
    """The store holds a run of this name that was made with other settings."""


class Fenced(AppError):
    """Another process holds the run, or has taken it over."""

    exit_code = 79


class Cancelled(AppError):
    """Ctrl-C was the answer to a question."""

    exit_code = EXIT_INTERRUPTED


class Preempted(AppError):
    """SIGTERM or SIGINT asked the process to stop."""

    exit_code = 143


class WorkersEnded(AppError):
    """The processes that this one started have ended, and have said why: with their code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code
