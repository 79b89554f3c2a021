"""Text from a checkpoint or a Hugging Face directory, streamed to the terminal."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from app.checkpoints import fetch, find_checkpoint, newest_valid
from app.compute import resolve_device
from app.decoding import Sampling, generate_tokens
from app.errors import ConfigError, NotFound
from app.model import SmolLM2
from app.pretrained import load_pretrained, model_directory, read_config
from app.stores import Store
from app.tokenizer import open_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer, and where both came from."""

    model: SmolLM2
    tokenizer: Tokenizer
    end_token: int | None
    origin: str


def load_from_store(
    store: Store, checkpoint: str | None, device: str, scratch: Path
) -> LoadedModel:
    """A named checkpoint of the run, or the newest valid one, downloaded to `scratch`.

    Raises NotFound if the run has none, Damaged if it does not verify.
    """
    if checkpoint is None:
        found = newest_valid(store, scratch)
        if found is None:
            raise NotFound(f"{store.uri} holds no checkpoint yet")
        for damaged, reason in found.damaged:
            log.warning("%s is damaged and passed over: %s", damaged, reason)
        name, directory = found.name, found.directory
    else:
        name = find_checkpoint(store, checkpoint)
        directory = fetch(store, name, scratch)
    return load_from_directory(directory, device, f"{store.uri}/{name.key()}")


def load_from_directory(directory: Path, device: str, origin: str) -> LoadedModel:
    """Any Hugging Face directory of a plain Llama with a tokenizer.json."""
    config = read_config(directory)
    model = SmolLM2(config)
    load_pretrained(directory, model)
    model.to(resolve_device(device)).eval()
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise NotFound(f"{path} does not exist: the directory has no fast tokenizer")
    return LoadedModel(model, open_tokenizer(path), _end_token(directory), origin)


def load_model(spec: str, device: str) -> LoadedModel:
    """A Hugging Face directory or hub id."""
    return load_from_directory(model_directory(spec, "--model_dir"), device, spec)


def stream_text(loaded: LoadedModel, prompt: str, sampling: Sampling) -> Iterator[str]:
    """Pieces of the continuation of `prompt`, each as soon as it is whole text.

    A character may be spread over several tokens: a piece is held back while it ends in
    the middle of one.
    """
    ids = loaded.tokenizer.encode(prompt).ids
    if not ids:
        if loaded.end_token is None:
            raise ConfigError(
                "--prompt is empty, and the model has no end-of-text token to start from"
            )
        ids = [loaded.end_token]
    produced: list[int] = []
    shown = ""
    for token in generate_tokens(loaded.model, ids, sampling, loaded.end_token):
        produced.append(token)
        text = loaded.tokenizer.decode(produced)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    final = loaded.tokenizer.decode(produced)
    yield final[len(shown) :]


def _end_token(directory: Path) -> int | None:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    end = config.get("eos_token_id")
    return end[0] if isinstance(end, list) else end
