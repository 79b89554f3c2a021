"""Text from a checkpoint or a Hugging Face directory, streamed to the terminal."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from app.data.tokenizer import open_tokenizer
from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.generation.decoding import Sampling, generate_tokens
from app.generation.inference import InferenceModel
from app.model.device import resolve_device
from app.model.huggingface import model_directory, read_config
from app.model.smollm2 import SmolLM2
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.run.fetching import check_expected, fetch, newest_valid
from app.run.view import read_view
from app.state.snapshot import STATE_FILES, Expected
from app.state.weights import load_pretrained
from app.stores.contract import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, and where both came from."""

    model: InferenceModel
    tokenizer: Tokenizer
    end_token: int | None
    origin: str


def load_from_store(
    store: Store, checkpoint: str | None, device: str, scratch: Path
) -> LoadedModel:
    """A named checkpoint of the run, or the newest valid one, downloaded to `scratch`.

    Raises NotFound if the run has none, Damaged if it does not verify.
    """
    view = read_view(store)
    expected = Expected(view.record.record if view.record else None)
    if checkpoint is None:
        found = newest_valid(store, view, scratch, STATE_FILES, expected=expected)
        if found is None:
            raise NotFound(f"{store.uri} holds no checkpoint yet")
        for damaged, reason in found.damaged:
            log.warning("%s is damaged and passed over: %s", damaged, reason)
        for unserved, reason in found.unserved:
            log.warning("%s is passed over: %s", unserved, reason)
        name, directory = found.name, found.directory
    else:
        name = chosen_checkpoint(store, view, checkpoint)
        directory = fetch(store, name, scratch, required=STATE_FILES, expected=expected)
        check_expected(name, directory, expected)
    return load_from_directory(directory, device, f"{store.uri}/{name.key()}")


def load_from_directory(directory: Path, device: str, origin: str) -> LoadedModel:
    """Any Hugging Face directory of a plain Llama with a tokenizer.json."""
    config = read_config(directory)
    place = resolve_device(device)
    model = SmolLM2.empty(config, place)
    with disk_failures(str(directory)):
        load_pretrained(directory, model)
    inference = InferenceModel(model, packed=place.type == "cpu")
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise NotFound(f"{path} does not exist: the directory has no fast tokenizer")
    return LoadedModel(inference, open_tokenizer(path), _end_token(directory), origin)


def load_model(spec: str, device: str) -> LoadedModel:
    """A Hugging Face directory or hub id."""
    return load_from_directory(model_directory(spec, "--model_dir"), device, spec)


def stream_text(loaded: LoadedModel, prompt: str, sampling: Sampling) -> Iterator[str]:
    """Pieces of the continuation of `prompt`: one for each token, and a last one with the rest.

    A character may be spread over several tokens. A piece is empty if it would end in the middle
    of a character. Raises ConfigError for an empty prompt if the model has no end-of-text token.
    """
    ids = loaded.tokenizer.encode(prompt).ids
    if not ids:
        if loaded.end_token is None:
            raise ConfigError(
                "--prompt is empty, and the model has no end-of-text token to start from"
            )
        ids = [loaded.end_token]
    pieces = TextPieces(loaded.tokenizer)
    for token in generate_tokens(loaded.model, ids, sampling, loaded.end_token):
        yield pieces.add(token)
    yield pieces.rest()


class TextPieces:
    """The text of tokens that come one by one; only the newest are decoded again.

    Some decoders treat the first token of a text differently, so the last piece that was
    shown is decoded in front of the new tokens and cut off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        self._held.append(token)
        text = self.rest()
        if text.endswith("\ufffd"):
            return ""
        if text:  # a token without text cannot stand in front of the next ones
            self._shown, self._held = self._held, []
        return text

    def rest(self) -> str:
        """The text of the tokens that are held back."""
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._held)[len(before) :]


def _end_token(directory: Path) -> int | None:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    end = config.get("eos_token_id")
    first = end[0] if isinstance(end, list) and end else end
    return first if isinstance(first, int) else None
