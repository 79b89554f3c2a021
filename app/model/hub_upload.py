"""A folder as a model repository of the Hugging Face hub, put there by huggingface_hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.console import on_terminal
from app.errors import AccessDenied, ConfigError
from app.model.hub_failures import hub_failures
from app.model.huggingface import MODEL_FILE

HUB = "hub:"
_REPOSITORY = re.compile(r"([\w.-]{1,96}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?", re.ASCII)


@dataclass(frozen=True)
class HubPlace:
    """A repository of the hub, and the branch of it; None is its main one."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> "HubPlace":
        """From `hub:owner/name` or `hub:owner/name@branch`. Raises ValueError."""
        found = _REPOSITORY.fullmatch(text.removeprefix(HUB))
        if found is None:
            raise ValueError("hub:owner/name or hub:owner/name@branch was expected")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{HUB}{self.repository}{f'@{self.revision}' if self.revision else ''}"


def check_writable(place: HubPlace) -> None:
    """Raises AccessDenied without a token, or with one that the hub does not know; Unavailable."""
    setting = f"--to {place}"
    with hub_failures(setting):
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise AccessDenied(
                f"{setting}: there is no token: make one that may write on the hub's page of "
                "access tokens, and set HF_TOKEN"
            )
        HfApi().whoami()


def upload(folder: Path, place: HubPlace, *, public: bool, overwrite: bool) -> str:
    """Commit the files of `folder` to the repository, all at once; the address of the commit.

    A repository that does not exist is made, a private one unless `public`. What an upload that was
    cut short has brought there is not sent again. Raises ConfigError where the branch holds a model
    already, unless `overwrite`, AccessDenied, and Unavailable.
    """
    setting = f"--to {place}"
    with hub_failures(setting):
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not on_terminal():
            disable_progress_bars()
        hub = HfApi()
        with _writing(place):
            hub.create_repo(place.repository, private=not public, exist_ok=True)
            if place.revision is not None:
                hub.create_branch(place.repository, branch=place.revision, exist_ok=True)
            there = hub.file_exists(place.repository, MODEL_FILE, revision=place.revision)
            if there and not overwrite:
                raise ConfigError(
                    f"{setting} holds a {MODEL_FILE} already: name another repository or branch, "
                    "or add --overwrite"
                )
            commit = hub.upload_folder(
                repo_id=place.repository,
                folder_path=folder,
                revision=place.revision,
                commit_message="Upload of a checkpoint, with its model card",
            )
    return str(commit.commit_url)


@contextmanager
def _writing(place: HubPlace) -> Iterator[None]:
    """Raises AccessDenied where the hub knows the token, and does not let it write."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        raise AccessDenied(
            f"--to {place}: the hub does not let this HF_TOKEN write there: make a token with the "
            f"right to write to {place.repository.split('/')[0]}"
        ) from error
