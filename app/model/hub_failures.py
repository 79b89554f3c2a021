"""What the Hugging Face hub says, as one of our errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import AccessDenied, AppError, NotFound, Unavailable
from app.failures import first_line


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
