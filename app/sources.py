"""Text from DATASET: the builtin corpus, files of .txt, .jsonl or .parquet, or the hub.

Every source is a fixed sequence of pieces, so that tokenizing can stop after any piece
and go on there.
"""

import glob
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from app.builtin import BUILTIN, builtin_documents, builtin_fingerprint
from app.downloads import download
from app.errors import ConfigError, Damaged, NotFound, Unavailable
from app.failures import from_os_error, hub_failures
from app.hub import looks_like_path
from app.sections import DataSettings

FORMATS = (".txt", ".jsonl", ".parquet")
SUFFIXES = (*FORMATS, ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst")
PIECE_CHARACTERS = 4_096

_VERSION = 1  # of the way that a source becomes pieces


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of a long one. Parts are joined without a separator."""

    text: str
    starts_document: bool = True
    ends_document: bool = True


def documents(settings: DataSettings, skip: int = 0) -> Iterator[Piece]:
    """The pieces of DATASET from number `skip` on, always in the same order.

    A .txt file is one document, in pieces of about 4 KiB cut at line ends: a tokenizer
    given gigabytes as one string needs tens of gigabytes of memory and a single core.
    Rows without text are empty pieces.

    Raises NotFound, AccessDenied, Unavailable, ConfigError (no such column) or Damaged
    (names the file), some of them on the way.
    """
    if settings.dataset == BUILTIN:
        return itertools.islice(map(Piece, builtin_documents()), skip, None)
    if is_hub_id(settings.dataset):
        return _hub_pieces(settings, skip)
    paths = source_files(settings)
    pieces = itertools.chain.from_iterable(_file_pieces(path, settings) for path in paths)
    return itertools.islice(pieces, skip, None)


@dataclass(frozen=True)
class PinnedSource:
    """DATASET with its content decided: `settings` names the revision of a hub dataset."""

    settings: DataSettings
    fingerprint: str
    revision: str | None


def pin_source(settings: DataSettings, revision: str | None = None) -> PinnedSource:
    """Decide now what DATASET is, so that a commit on the hub does not change a running run.

    `revision` is the one that the run was begun with. With it the hub need not answer.
    Raises as `documents`.
    """
    if settings.dataset != BUILTIN and is_hub_id(settings.dataset):
        repo_id, revision = _hub_revision(settings, revision)
        settings = settings.model_copy(update={"dataset": f"{repo_id}@{revision}"})
    else:
        revision = None
    return PinnedSource(settings, source_fingerprint(settings), revision)


def source_fingerprint(settings: DataSettings) -> str:
    """SHA-256 (hex) of what decides about the text: the content, never where it lies.

    Files count with their names, hub datasets with the revision that is current now
    (pin one with DATASET=owner/name@revision). Raises as `documents`.
    """
    if settings.dataset == BUILTIN:
        identity: dict[str, Any] = {"builtin": builtin_fingerprint()}
    elif is_hub_id(settings.dataset):
        repo_id, revision = _hub_revision(settings)
        identity = {
            "hub": repo_id,
            "revision": revision,
            "config": settings.dataset_config,
            "split": settings.dataset_split,
            "column": settings.text_column,
        }
    else:
        paths = source_files(settings)
        root = os.path.commonpath([path.parent for path in paths])
        identity = {"files": [_file_identity(path, root) for path in paths]}
        if not all(path.name.endswith((".txt", ".txt.gz", ".txt.zst")) for path in paths):
            identity["column"] = settings.text_column
    canonical = json.dumps({"version": _VERSION, **identity}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def is_hub_id(dataset: str) -> bool:
    """Whether DATASET can only mean the hub: it neither looks like a path nor is one."""
    names_files = (
        looks_like_path(dataset)
        or dataset.endswith(SUFFIXES)
        or any(mark in dataset for mark in (*"*?[", "://"))
    )
    return not names_files and not Path(dataset).exists()


def source_files(settings: DataSettings) -> list[Path]:
    """The files that a path, folder, glob or URI names, in order; remote ones are fetched."""
    spec = settings.dataset.removeprefix("file://")
    if "://" in spec:
        fetched = download(spec, settings.data_dir, SUFFIXES)
        if not all(path.name.endswith(SUFFIXES) for path in fetched):
            raise ConfigError(f"DATASET={spec}: files end with {', '.join(SUFFIXES)}")
        return fetched
    path = Path(spec).expanduser()
    with _reading(path):
        if path.is_file():
            if not path.name.endswith(SUFFIXES):
                raise ConfigError(f"DATASET={spec}: files end with {', '.join(SUFFIXES)}")
            return [path]
        if path.is_dir():
            candidates: Iterable[Path] = _visible_files(path)
        else:
            candidates = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute
        found = sorted(file for file in candidates if file.name.endswith(SUFFIXES))
        found = [file for file in found if file.is_file()]
        if not found:
            what = f"holds no file of {', '.join(SUFFIXES)}" if path.is_dir() else "does not exist"
            raise NotFound(f"DATASET={spec} {what}")
    return found


def _visible_files(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:  # a subfolder left out in silence would be other data
        raise error

    for place, subfolders, names in os.walk(folder, onerror=stop):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _file_identity(path: Path, root: str) -> tuple[str, int, str]:
    with _reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return path.relative_to(root).as_posix(), file.tell(), digest


def _file_pieces(path: Path, settings: DataSettings) -> Iterator[Piece]:
    with _reading(path):
        if path.name.endswith(".parquet"):
            yield from _parquet_pieces(path, settings)
            return
        with _open_text(path) as file:
            if ".jsonl" in path.suffixes:
                yield from _jsonl_pieces(path, file, settings)
            else:
                yield from _txt_pieces(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What can be wrong with a file, as one of our errors that names it."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        raise Damaged(f"{path} is not UTF-8 text ({error.reason}): convert it") from error
    except (ArrowException, EOFError) as error:
        raise Damaged(f"{path} cannot be read: {error}: replace it") from error
    except OSError as error:
        if error.errno is None:  # from a decoder, not from the system
            raise Damaged(f"{path} cannot be read: {error}: replace it") from error
        raise from_os_error(error, f"DATASET: {path}") from error


def _open_text(path: Path) -> IO[str]:
    from pyarrow import input_stream

    # "detect" goes by the file's name: .gz, .zst or plain.
    raw = input_stream(str(path), compression="detect")
    # newline="": line ends are text too. A byte order mark is not.
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _txt_pieces(file: IO[str]) -> Iterator[Piece]:
    def parts() -> Iterator[str]:
        lines: list[str] = []
        size = 0
        # The limit also cuts files that have no line ends at all.
        while line := file.readline(PIECE_CHARACTERS):
            lines.append(line)
            size += len(line)
            if size >= PIECE_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
        if lines:
            yield "".join(lines)

    pending: str | None = None
    starts = True
    for part in parts():
        if pending is not None:
            yield Piece(pending, starts_document=starts, ends_document=False)
            starts = False
        pending = part
    if pending is not None:
        yield Piece(pending, starts_document=starts)


def _jsonl_pieces(path: Path, file: IO[str], settings: DataSettings) -> Iterator[Piece]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Damaged(f"{where} is not JSON ({error}): correct or remove the line") from error
        if not isinstance(row, dict):
            raise Damaged(f"{where} is not a JSON object: correct or remove the line")
        if settings.text_column not in row:
            raise _no_column(settings, row, where)
        value = row[settings.text_column]
        if isinstance(value, str) and "\\u" in line:
            # JSON can spell half a surrogate pair, which is no character: U+FFFD stands for it.
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield _text_piece(value, settings, where)


def _parquet_pieces(path: Path, settings: DataSettings) -> Iterator[Piece]:
    from pyarrow.parquet import ParquetFile

    column = settings.text_column
    with ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise _no_column(settings, file.schema_arrow.names, str(path))
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield _text_piece(value, settings, str(path))


def _hub_pieces(settings: DataSettings, skip: int) -> Iterator[Piece]:
    setting = f"DATASET={settings.dataset}"
    repo_id, revision = _hub_revision(settings)

    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        with hub_failures(setting):
            dataset = load_dataset(
                repo_id,
                settings.dataset_config,
                split=settings.dataset_split,
                revision=revision,
                streaming=True,
            )
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        # Wrong DATASET_CONFIG or DATASET_SPLIT: the library lists those there are.
        raise ConfigError(
            f"{setting} with DATASET_CONFIG={settings.dataset_config or ''} "
            f"DATASET_SPLIT={settings.dataset_split} cannot be used: {_first_line(error)}"
        ) from error
    try:
        with hub_failures(setting):
            for row in dataset.skip(skip):
                if settings.text_column not in row:
                    raise _no_column(settings, row, settings.dataset)
                yield _text_piece(row[settings.text_column], settings, settings.dataset)
    except (DatasetsError, ArrowException, UnicodeDecodeError) as error:
        raise Damaged(f"{setting} cannot be read: {_first_line(error)}") from error


def _hub_revision(settings: DataSettings, known: str | None = None) -> tuple[str, str]:
    """Repository id and commit of DATASET=owner/name or owner/name@revision."""
    repo_id, _, named = settings.dataset.partition("@")
    revision = known or named
    if re.fullmatch("[0-9a-f]{40}", revision):
        return repo_id, revision

    from huggingface_hub import HfApi

    with hub_failures(f"DATASET={settings.dataset}"):
        api = HfApi()
        info = api.dataset_info(repo_id, revision=revision or None, timeout=30)
        if info.gated:  # its description is public, its files are not
            api.auth_check(repo_id, repo_type="dataset")
    if info.sha is None:
        raise Unavailable(f"DATASET={settings.dataset}: the hub names no revision")
    return repo_id, info.sha


def _text_piece(value: object, settings: DataSettings, where: str) -> Piece:
    if value is None:
        return Piece("")
    if not isinstance(value, str):
        raise ConfigError(
            f"TEXT_COLUMN={settings.text_column} of {where} holds {type(value).__name__}, not text"
        )
    return Piece(value)


def _no_column(settings: DataSettings, columns: Iterable[str], where: str) -> ConfigError:
    names = ", ".join(sorted(columns)) or "none"
    return ConfigError(f"TEXT_COLUMN={settings.text_column} is not in {where}; it has {names}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
