"""The tokenizer: the builtin one, a Hugging Face directory, or one from the hub.

Whatever TOKENIZER names becomes a local directory that
`transformers.AutoTokenizer.from_pretrained` loads; its files go into every checkpoint.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.data.builtin import BUILTIN, builtin_documents, builtin_fingerprint
from app.data.data_dir import DataDir
from app.errors import ConfigError, Damaged, NotFound
from app.failures import disk_failures
from app.model.hub_snapshot import hub_snapshot, local_directory

BUILTIN_DIRECTORY = Path("/opt/builtin")  # of an image: a folder for each size
BUILTIN_VOCAB_SIZES = (4_096, 49_152)
MOST_TOKENS = 1 << 16  # an id is a uint16
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE_TYPES = (".json", ".txt", ".model", ".jinja")

_CONFIG_FILE, _ROLES_FILE = "tokenizer_config.json", "special_tokens_map.json"
_HUB_FILES = ["tokenizer*", _ROLES_FILE, "config.json", "vocab.*", "*.model", "*.tiktoken"]
_HUB_FILES += ["chat_template*"]
# This class takes tokenizer.json as it is, where other classes rebuild parts of it.
_FAITHFUL_CLASS = "PreTrainedTokenizerFast"
_FORM = "as-is"  # of the copies in DATA_DIR; earlier versions kept rebuilt ones under other names
# Parts of tokenizer.json that TextEncoder switches off, so that they change no token id.
_NOT_USED = ("padding", "post_processor", "truncation")


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer on disk: `directory` holds tokenizer.json and tokenizer_config.json.

    `fingerprint` is the SHA-256 (hex) of all in tokenizer.json that decides about token ids.
    """

    directory: Path
    fingerprint: str
    vocab_size: int
    eos_token_id: int
    bos_token_id: int | None


def load_tokenizer(
    spec: str,
    data_dir: Path,
    vocab_size: int,
    *,
    follows: bool = False,
    builtin_directory: Path = BUILTIN_DIRECTORY,
    library: Path | None = None,
) -> TokenizerFiles:
    """The tokenizer that TOKENIZER=`spec` names; what is fetched or trained stays in `data_dir`.

    `vocab_size` is that of the model. A model that `follows` takes the size of any tokenizer.
    "builtin" is the largest builtin tokenizer that has no more tokens than that.

    `builtin_directory` is where an image keeps the builtin ones. If it is missing, the tokenizer
    is trained now from `library`, as in `builtin_documents`; training is deterministic, so both
    are the same.

    Raises ConfigError (no end-of-text token, no tokenizer.json, more tokens than the model takes),
    NotFound, AccessDenied, Unavailable, Damaged.
    """
    place = DataDir(data_dir)
    cache = place.tokenizers
    if spec != BUILTIN:
        files = _load_foreign(spec, cache, place.setting)
    else:
        size = builtin_vocab_size(vocab_size)
        directory = builtin_directory / builtin_name(size)
        if not directory.is_dir():
            directory = cache / f"builtin-{size}-{builtin_fingerprint(library)[:16]}"
        with disk_failures(place.setting):
            files = build_builtin_tokenizer(directory, size, library)
    most = MOST_TOKENS if follows else vocab_size
    if files.vocab_size > most:
        what = "an id of 16 bits can tell" if follows else "the model's vocabulary is"
        found = f"TOKENIZER={spec} has {files.vocab_size} tokens"
        raise ConfigError(f"{found}, {what} {most}: choose a tokenizer that fits")
    return files


def builtin_vocab_size(vocab_size: int) -> int:
    """The size of the builtin tokenizer for a model with this vocabulary."""
    small, large = BUILTIN_VOCAB_SIZES
    return large if vocab_size >= large else small


def builtin_name(vocab_size: int) -> str:
    """The folder of the builtin tokenizer of this size in an image."""
    return f"tokenizer-{vocab_size}"


def changes_by_itself(spec: str) -> bool:
    """Whether TOKENIZER=`spec` may be another tokenizer tomorrow, though nobody here changed it: in
    another image, or on the hub."""
    try:
        return spec == BUILTIN or local_directory(spec, f"TOKENIZER={spec}") is None
    except NotFound:  # a folder that was there
        return False


def install_tokenizer(files: Mapping[str, str], data_dir: Path, setting: str) -> TokenizerFiles:
    """The tokenizer with these files (content by name), which are written to `data_dir`.

    Raises what `read_tokenizer` raises, and AccessDenied or Unavailable about `data_dir`.
    """
    place = DataDir(data_dir)
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    directory = place.tokenizers / f"kept-{digest[:16]}"
    with disk_failures(place.setting):
        keep_tokenizer({name: content.encode() for name, content in files.items()}, directory)
    return read_tokenizer(directory, setting)


def build_builtin_tokenizer(
    directory: Path, vocab_size: int, library: Path | None = None
) -> TokenizerFiles:
    """Train the builtin tokenizer of this size into `directory`, or read it if it is there already.

    It is trained on `builtin_documents(library)`.
    """
    if not directory.is_dir():
        with _appearing_at(directory) as scratch:
            trained = train_tokenizer(builtin_documents(library), vocab_size)
            save_tokenizer(trained, scratch)
    return read_tokenizer(directory, "TOKENIZER=builtin")


def build_image_tokenizers(directory: Path, library: Path | None = None) -> None:
    """Train what an image has in `directory`: the builtin tokenizer in each of its sizes."""
    for size in BUILTIN_VOCAB_SIZES:
        build_builtin_tokenizer(directory / builtin_name(size), size, library)


def keep_tokenizer(files: Mapping[str, bytes], directory: Path) -> None:
    """Write a tokenizer's files (content by name) to `directory`, unless that is there.

    Raises OSError.
    """
    if not directory.is_dir():
        with _appearing_at(directory) as scratch:
            for name, content in files.items():
                (scratch / name).write_bytes(content)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as GPT-2's (Radford et al. 2019): all 256 bytes, no normalizer, lossless.

    Id 0 is the end-of-text token, as in SmolLM2. A small corpus gives fewer tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files that AutoTokenizer reads; the end-of-text token has every special role."""
    roles = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    config = {**roles, "tokenizer_class": _FAITHFUL_CLASS, "clean_up_tokenization_spaces": False}
    # Not tokenizer.save(): it reports a full disk as a plain Exception.
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    _write_json(directory / _CONFIG_FILE, config)
    _write_json(directory / _ROLES_FILE, roles)


def read_tokenizer(directory: Path, setting: str) -> TokenizerFiles:
    """The tokenizer in `directory`; `setting` is like "TOKENIZER=builtin", for messages.

    Raises ConfigError (no end-of-text token), NotFound, Damaged.
    """
    content = _read_json(directory / "tokenizer.json")
    config = _read_json(directory / _CONFIG_FILE)
    vocabulary = open_tokenizer(directory / "tokenizer.json").get_vocab(with_added_tokens=True)
    relevant = {key: content[key] for key in content if key not in _NOT_USED}
    canonical = json.dumps(relevant, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    eos = _token_id(config, "eos_token", vocabulary)
    if eos is None:
        raise ConfigError(f"{setting} has no end-of-text token (eos_token in its config)")
    return TokenizerFiles(
        directory=directory,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        eos_token_id=eos,
        bos_token_id=_token_id(config, "bos_token", vocabulary),
    )


class TextEncoder:
    """Turns text into token ids on all cores. No text gives the id of a special token."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._beginning = open_tokenizer(files.directory / "tokenizer.json")
        self._going_on = _without_prefix(self._beginning)
        for tokenizer in (self._beginning, self._going_on):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            # A document that contains "<|endoftext|>" does not end there: it is text.
            tokenizer.encode_special_tokens = True

    def token(self, number: int) -> str:
        """How the token with this id is spelled; nothing if there is none."""
        return self._beginning.id_to_token(number) or ""

    def encode_batch(
        self, texts: Sequence[str], going_on: Sequence[bool] | None = None
    ) -> list[npt.NDArray[np.uint16]]:
        """One array of ids, of shape (tokens of the text,), for each text.

        `going_on` says which texts continue a document. Before those the tokenizer puts no
        prefix, such as the "▁" of Llama's, which would be decoded as a space.
        """
        encoded: dict[int, npt.NDArray[np.uint16]] = {}
        flags = going_on or [False] * len(texts)
        for tokenizer, flag in ((self._beginning, False), (self._going_on, True)):
            numbers = [number for number, is_going_on in enumerate(flags) if is_going_on is flag]
            encodings = tokenizer.encode_batch_fast(
                [texts[number] for number in numbers], add_special_tokens=False
            )
            for number, encoding in zip(numbers, encodings, strict=True):
                ids = encoding.ids
                # np.array would look at the list twice and take twice as long.
                encoded[number] = np.fromiter(ids, dtype=np.uint16, count=len(ids))
        return [encoded[number] for number in range(len(texts))]


def _load_foreign(spec: str, cache: Path, place: str) -> TokenizerFiles:
    setting = f"TOKENIZER={spec}"
    source = local_directory(spec, setting)
    with disk_failures(setting):
        name = f"{source.name}-{_content_hash(source)}" if source else spec.replace("/", "--")
    with disk_failures(place):
        directory = cache / f"{name}-{_FORM}"
        # One that was fetched before does not need the hub.
        if not directory.is_dir():
            with _appearing_at(directory) as scratch:
                _adopt(source or hub_snapshot(spec, setting, _HUB_FILES), scratch, setting)
    return read_tokenizer(directory, setting)


def _adopt(source: Path, target: Path, setting: str) -> None:
    """Copy the tokenizer in `source`, so that it gives the ids of its tokenizer.json everywhere.

    transformers 5 has many classes build the tokenizer anew from the vocabulary alone. With
    GPT2Tokenizer, which SmolLM2's own names, digits are then no longer split. So the copy names the
    class that takes the file as it is.
    """
    if not (source / "tokenizer.json").is_file():
        raise ConfigError(f"{setting} cannot be loaded as a tokenizer: {_without_json(source)}")
    tokenizer = open_tokenizer(source / "tokenizer.json")
    roles, config, model = (
        _read_json(path) if path.is_file() else {}
        for path in map(source.joinpath, (_ROLES_FILE, _CONFIG_FILE, "config.json"))
    )
    named = {
        role: tokenizer.id_to_token(number)
        for role in ("eos_token", "bos_token")
        if isinstance(number := model.get(f"{role}_id"), int) and number >= 0
    }
    config = {**named, **roles, **config, "tokenizer_class": _FAITHFUL_CLASS}
    config.pop("auto_map", None)  # a program of its own, which is never run here
    # Not tokenizer.save(): it reports a full disk as a plain Exception.
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    _write_json(target / _CONFIG_FILE, config)
    for path in (source / _ROLES_FILE, *source.glob("chat_template*")):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _without_json(source: Path) -> str:
    """What is said of a folder that holds no tokenizer.json."""
    kinds = {"SentencePiece": "*.model", "tiktoken": "*.tiktoken", "BPE or WordPiece": "vocab.*"}
    found = [
        f"only a {kind} file ({path.name})"
        for kind, pattern in kinds.items()
        for path in sorted(source.glob(pattern))[:1]
    ]
    if not found:
        return "it holds no tokenizer.json"
    return (
        f"it holds no tokenizer.json, {found[0]}: make one with transformers and what it asks for, "
        "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER), and name FOLDER"
    )


def _content_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in TOKENIZER_FILE_TYPES and path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _appearing_at(directory: Path) -> Iterator[Path]:
    """Give a scratch folder that is renamed to `directory` at the end.

    If another process has made `directory` meanwhile, that one stays and the scratch is removed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp(): it makes a folder that only its owner may read, and some file systems
    # refuse to change that.
    scratch = directory.parent / f".partial-{secrets.token_hex(8)}"
    scratch.mkdir()
    try:
        yield scratch
        for path in scratch.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        try:
            scratch.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: not a tokenizer directory") from error
    except ValueError as error:
        raise Damaged(f"{path} is not JSON ({error}): delete it and start again") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path} is not a JSON object: delete it and start again")
    return content


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer.json at `path`. Raises Damaged."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise Damaged(f"{path} is not a tokenizer: {error}") from error


def _without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without the prefix that it puts before a text.

    Returns `tokenizer` itself if it puts none.
    """
    content = json.loads(tokenizer.to_str())
    steps = {name: content[name] for name in ("normalizer", "pre_tokenizer")}
    plain = {name: _plain_step(step) for name, step in steps.items()}
    return tokenizer if plain == steps else Tokenizer.from_str(json.dumps(content | plain))


def _plain_step(step: Any) -> Any:
    """A step (normalizer or pre-tokenizer) of tokenizer.json that puts no prefix before a text.

    None stands for a step that did nothing else.
    """
    match step:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": _}:
            return step | {"add_prefix_space": False}
        case {"type": "Sequence", "normalizers": list(steps)}:
            return step | {"normalizers": [s for s in map(_plain_step, steps) if s is not None]}
        case {"type": "Sequence", "pretokenizers": list(steps)}:
            # Behind the first step a prefix stands for the space before each word, and stays.
            return step | {"pretokenizers": [*map(_plain_step, steps[:1]), *steps[1:]]}
    return step


def _token_id(config: dict[str, Any], role: str, vocabulary: dict[str, int]) -> int | None:
    token = config.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    return vocabulary.get(text) if isinstance(text, str) else None
