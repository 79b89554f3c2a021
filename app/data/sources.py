"""Text from DATASET: the builtin corpus, files, the hub, or a mixture of them.

Every source is a fixed sequence of pieces, so that tokenizing can stop after any piece
and go on after it.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from app.data.builtin import BUILTIN, BuiltinText, image_text
from app.data.downloads import RemoteFiles, S3Files
from app.data.files import Files, FileSource, list_local
from app.data.hub_dataset import open_hub
from app.data.kinds import kind_of
from app.data.limits import DEFAULT_LIMITS, DataLimits
from app.data.mixture import mix
from app.data.patterns import is_pattern
from app.data.pieces import Piece, Pieces, Placed, PlacedPieces, Position, Source
from app.data.retries import Sleep
from app.data.web_files import WebFile
from app.errors import ConfigError
from app.model.hub_snapshot import looks_like_path
from app.settings.dataset_spec import HubName, WeightedPart, exists, mixture_parts
from app.settings.variables import DataSettings

_VERSION = 4  # of the way in which a source becomes pieces
_DIGEST_LENGTH = 16
_SERVERS: dict[str, type[RemoteFiles]] = {"s3": S3Files, "http": WebFile, "https": WebFile}


@dataclass(frozen=True)
class PinnedSource:
    """DATASET with its content decided: `settings` names the revision of a hub dataset.

    `parts` says what the fingerprint is made of: a file, object, dataset or variable by name,
    and a digest of what it holds. `revision` is None where nothing comes from the hub.
    `opened` holds the listing that the fingerprint was made of: nothing is listed again.
    `builtin` is the builtin text that is read; None where DATASET does not name it.
    """

    settings: DataSettings
    fingerprint: str
    revision: str | None
    parts: Mapping[str, str]
    opened: Source = field(repr=False, compare=False)
    builtin: BuiltinText | None = field(default=None, repr=False, compare=False)

    def pieces(self, after: Position | None = None) -> Pieces:
        """The pieces of DATASET after the position `after`, always in the same order.

        A .txt file is one document, or several with lines <|endoftext|> between them. One above
        64 KiB comes in pieces of about 4 KiB cut at line ends; a row of a million characters or
        more is cut in the same way. Rows without text are empty
        pieces. A remote file is fetched shortly before it is read.

        Raises NotFound, AccessDenied, Unavailable, ConfigError (no such column, a remote file
        that was replaced) or Damaged (names the file), some of them while pieces are read.
        """
        return self.opened.pieces(after)


def pin_source(
    settings: DataSettings,
    revision: str | None = None,
    alive: Callable[[], None] = lambda: None,
    *,
    builtin: BuiltinText | None = None,
    limits: DataLimits = DEFAULT_LIMITS,
    sleep: Sleep | None = None,
) -> PinnedSource:
    """Decide now what DATASET is, so that a commit on the hub does not change a running run.

    The fingerprint is the SHA-256 (hex) of what decides about the text: names and content of
    files, ETags and sizes of objects, revisions on the hub; never where a file lies or when it
    was written. `revision` is the one that the run was begun with. With it the hub need not
    answer. `alive` is called for each block of bytes that is fetched or hashed, now and while
    pieces are read, in whatever thread does that. `builtin` is the builtin text that a run was
    begun with, if this image may have another one. `sleep` makes the pauses in which a source
    that does not answer is waited for. Raises as `PinnedSource.pieces`.
    """
    if builtin is None and follows_the_image(settings):
        builtin = image_text()
    source = _Opener(alive, builtin, limits, sleep).open(settings, revision)
    identity = source.identity()
    canonical = json.dumps({"version": _VERSION, **identity}, sort_keys=True)
    return PinnedSource(
        settings.model_copy(update={"dataset": source.pinned}),
        hashlib.sha256(canonical.encode()).hexdigest(),
        source.revision,
        {name: _short(value) for name, value in identity.items()},
        source,
        builtin,
    )


def is_hub_id(dataset: str) -> bool:
    """Whether DATASET can only mean the hub: it neither looks like a path nor is one."""
    name = HubName.parse(dataset).repo_id
    names_files = (
        looks_like_path(name)
        or kind_of(dataset) is not None
        or is_pattern(dataset)
        or "://" in dataset
    )
    return not names_files and not exists(dataset)


def follows_the_hub(settings: DataSettings) -> bool:
    """Whether what DATASET is changes with a commit on the hub."""
    return any(
        spec != BUILTIN and is_hub_id(spec) and not HubName.parse(spec).is_pinned
        for spec in _specs(settings)
    )


def follows_the_image(settings: DataSettings) -> bool:
    """Whether what DATASET is changes with the image."""
    return BUILTIN in _specs(settings)


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
    kind = _SERVERS.get(urlsplit(uri).scheme)
    if kind is None:
        raise ConfigError(f"DATASET={uri}: URIs start with s3://, https://, http:// or file://")
    return kind(uri, data_dir, alive, limits.fetched_bytes, sleep)


@dataclass(frozen=True)
class _Opener:
    """Opens what DATASET names; the fields are the arguments of `pin_source`."""

    alive: Callable[[], None]
    builtin: BuiltinText | None
    limits: DataLimits
    sleep: Sleep | None

    def open(self, settings: DataSettings, revision: str | None) -> Source:
        """`revision` names those of all the parts that are on the hub, in their order."""
        parts = _parts(settings)
        if not parts:
            return self._open_one(settings, revision)
        revisions = iter(revision.split(",") if revision else ())
        sources = []
        for part in parts:
            one = settings.model_copy(update={"dataset": part.spec})
            on_hub = part.spec != BUILTIN and is_hub_id(part.spec)
            sources.append(self._open_one(one, next(revisions, None) if on_hub else None))
        return mix(parts, sources, self.limits)

    def _open_one(self, settings: DataSettings, revision: str | None) -> Source:
        if settings.dataset == BUILTIN:
            assert self.builtin is not None
            return _Builtin(self.builtin)
        if is_hub_id(settings.dataset):
            return open_hub(settings, revision, self.limits, self.sleep)
        spec = settings.dataset
        files: Files
        if "://" in spec and not spec.lower().startswith("file://"):
            files = list_remote(spec, settings.data_dir, self.alive, self.limits, self.sleep)
        else:
            files = list_local(spec, self.alive, self.limits)
        return FileSource(settings.dataset, files, settings.text_column, self.limits)


def _specs(settings: DataSettings) -> list[str]:
    return [part.spec for part in _parts(settings)] or [settings.dataset]


def _parts(settings: DataSettings) -> tuple[WeightedPart, ...]:
    try:
        return mixture_parts(settings.dataset)
    except ValueError as error:
        raise ConfigError(f"DATASET={settings.dataset} cannot be used: {error}") from error


@dataclass(frozen=True)
class _Builtin:
    """The corpus that every image brings."""

    text: BuiltinText
    pinned: str = BUILTIN
    revision: str | None = None

    def origins(self) -> Mapping[str, str]:
        return {BUILTIN: BUILTIN}

    def identity(self) -> Mapping[str, str]:
        return {BUILTIN: self.text.fingerprint}

    def pieces(self, after: Position | None) -> Pieces:
        return PlacedPieces(self._placed(after or {}), after)

    def _placed(self, after: Position) -> Generator[Placed]:
        first = int(after.get("document", 0))
        texts = itertools.islice(self.text.read(), first, None)
        for number, text in enumerate(texts, start=first + 1):
            yield Piece(text), {"document": number}


def _short(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:_DIGEST_LENGTH]
