"""What the Hugging Face hub says, as one of our errors."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from app.errors import AccessDenied, AppError, ConfigError, NotFound, Unavailable
from app.failures import first_line


@contextmanager
def hub_failures(setting: str) -> Iterator[None]:
    """For calls into huggingface_hub and datasets, and for their import, which reads HF_*.

    `setting` is like "DATASET=owner/name". Raises AccessDenied, NotFound or Unavailable, and
    ConfigError for a variable of the hub client that no call can succeed with.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download  # noqa: F401
    except ValueError as error:
        raise ConfigError(
            f"{setting}: a variable of the hub client (HF_…) cannot be used: {first_line(error)}"
        ) from error
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

    # Libraries wrap the hub's own error in theirs, so it is further down the chain of causes.
    chain = list(_causes(error))

    def said(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    if said(hub.GatedRepoError, hub.DisabledRepoError):
        return AccessDenied(f"{setting} is gated: accept its terms on the hub and set HF_TOKEN")
    if missing := said(hub.RepositoryNotFoundError):
        assert isinstance(missing, hub.RepositoryNotFoundError)
        if missing.response.status_code == 401:  # what the hub answers without a token
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
    if mistake := _local_mistake(chain):
        return ConfigError(f"{setting}: {mistake}")
    silent = said(HTTPError, hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if silent is not None:
        return Unavailable(f"{setting}: the hub cannot be reached ({first_line(chain[-1])})")
    if said(hub.HFValidationError):
        return NotFound(f"{setting} is neither a path here nor a hub id such as owner/name")
    return None


def _local_mistake(chain: Sequence[BaseException]) -> str:
    """What is wrong on this side, so that another try cannot help; nothing if nothing is."""
    from httpx2 import InvalidURL, LocalProtocolError, UnsupportedProtocol

    for cause in chain:
        if isinstance(cause, (InvalidURL, UnsupportedProtocol)):
            return f"HF_ENDPOINT is no address of a hub ({first_line(cause)})"
        if isinstance(cause, (LocalProtocolError, UnicodeEncodeError)):
            # Not with the text of the error, which holds the token.
            return "HF_TOKEN holds a sign that no token has, such as a line end: set it again"
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
            return f"the hub's certificate is not trusted here ({reason}): set SSL_CERT_FILE"
        # The one file that is opened without a name in its error.
        if isinstance(cause, FileNotFoundError) and cause.errno and cause.filename is None:
            return "the file that SSL_CERT_FILE names does not exist"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
