"""A repository of the Hugging Face hub as a local folder, and what can be its id."""

from collections.abc import Sequence
from pathlib import Path

from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.model.hub_failures import hub_failures
from app.settings.local_paths import local_path


def looks_like_path(spec: str) -> bool:
    """Whether `spec` cannot be a hub id: name or owner/name, which @revision may follow."""
    return spec.startswith(("/", ".", "~")) or spec.partition("@")[0].count("/") > 1


def local_directory(spec: str, setting: str) -> Path | None:
    """The folder of this machine that `spec` names; None where only the hub can have it.

    `setting` is like "TOKENIZER=owner/name", for messages. Raises NotFound, ConfigError.
    """
    try:
        path = local_path(spec)
    except ValueError as error:
        raise ConfigError(f"{setting} cannot be used: {error}") from error
    with disk_failures(setting):
        if path.is_dir():
            return path
        if looks_like_path(spec) or path.exists():
            raise NotFound(f"{setting}: there is no such directory")
    return None


def hub_snapshot(spec: str, setting: str, patterns: Sequence[str]) -> Path:
    """Fetch those files of a repository that match `patterns`; the local folder they are in.

    `spec` is name, owner/name or owner/name@revision: a branch, a tag or a commit. `setting` is
    like "TOKENIZER=owner/name", for messages. Raises NotFound, AccessDenied, Unavailable,
    ConfigError.
    """
    with disk_failures("the hub's cache (HF_HOME)"), hub_failures(setting):
        from huggingface_hub import snapshot_download

        repo_id, _, revision = spec.partition("@")
        found = snapshot_download(repo_id, revision=revision or None, allow_patterns=list(patterns))
        return Path(found)
