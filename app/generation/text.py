"""Text from a checkpoint or a Hugging Face directory, streamed to the terminal."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from app.data.tokenizer import open_tokenizer
from app.errors import ConfigError, NotFound
from app.failures import disk_failures
from app.generation.decoding import Sampling, generate_together, generate_tokens
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


def stream_text(
    loaded: LoadedModel, prompt: str, sampling: Sampling, stops: Sequence[str] = ()
) -> Iterator[str]:
    """Pieces of the continuation of `prompt`: one for each token, and a last one with the rest.

    A character may be spread over several tokens. A piece is empty if it would end in the middle
    of a character, or may begin one of the `stops`, before the first of which the text ends. Raises
    ConfigError for an empty prompt if the model has no end-of-text token.
    """
    pieces = TextPieces(loaded.tokenizer)
    until = TextUntil(stops)
    for token in generate_tokens(loaded.model, _ids(loaded, prompt), sampling, loaded.end_token):
        yield until.add(pieces.add(token))
        if until.stopped:
            break
    yield until.add(pieces.rest()) + until.rest()


@dataclass(frozen=True)
class Answer:
    """How a prompt was continued. `ended` is why its text ended there: "stop" before one of the
    strings to stop at, "end" where the model ended it, "length" after so many tokens."""

    prompt: str
    text: str
    tokens: int
    ended: Literal["stop", "end", "length"]


class _Written:
    """An answer that is being written."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], most: int) -> None:
        self._pieces, self._until, self._most = TextPieces(tokenizer), TextUntil(stops), most
        self._text, self._tokens = "", 0

    def takes(self, token: int) -> bool:
        """Whether it wants another token after this one."""
        self._text += self._until.add(self._pieces.add(token))
        self._tokens += 1
        return not self._until.stopped

    def answer(self, prompt: str) -> Answer:
        text = self._text + self._until.add(self._pieces.rest()) + self._until.rest()
        at_end: Literal["length", "end"] = "length" if self._tokens == self._most else "end"
        return Answer(prompt, text, self._tokens, "stop" if self._until.stopped else at_end)


def answers(
    loaded: LoadedModel, prompts: Sequence[str], sampling: Sampling, stops: Sequence[str] = ()
) -> Iterator[Answer]:
    """The answers to several prompts, in their order, each as soon as it and those before it are
    complete. Several are written at a time, each with the seed of `sampling`, so that it is what
    the prompt gets alone. Raises as `stream_text` does."""
    ids = [_ids(loaded, prompt) for prompt in prompts]
    written = [_Written(loaded.tokenizer, stops, sampling.max_tokens) for _ in prompts]
    complete: dict[int, Answer] = {}
    following = 0
    for index in generate_together(
        loaded.model, ids, sampling, loaded.end_token, lambda i, token: written[i].takes(token)
    ):
        complete[index] = written[index].answer(prompts[index])
        while following in complete:
            yield complete.pop(following)
            following += 1


def _ids(loaded: LoadedModel, prompt: str) -> list[int]:
    """The tokens of a prompt. Raises ConfigError if it has none, and the model has none to begin a
    text with."""
    ids: list[int] = loaded.tokenizer.encode(prompt).ids
    if not ids:
        if loaded.end_token is None:
            raise ConfigError(
                "--prompt is empty, and the model has no end-of-text token to start from"
            )
        ids = [loaded.end_token]
    return ids


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


class TextUntil:
    """A text that comes in pieces, up to the first of the strings `stops` that is in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """What is sure to stand before each of the strings; nothing once one of them was met."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, once nothing comes after it."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many signs at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _end_token(directory: Path) -> int | None:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    end = config.get("eos_token_id")
    first = end[0] if isinstance(end, list) and end else end
    return first if isinstance(first, int) else None
