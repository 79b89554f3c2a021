"""How well a model predicts a text: perplexity over windows that overlap, and bits per byte.

Shapes: B windows side by side, T tokens of the longest of them, V vocabulary.

Each document is read on its own, and begins behind an end-of-text token, as in training: so each
of its tokens is predicted once, the first and the last too. One that is longer than a window is
read in windows, each `stride` tokens further. In each of them only the tokens that the windows
before have not predicted count, and the rest is what they are predicted from: at least the window
without its stride.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from app.data.pieces import Piece, held_out
from app.data.tokenizer import TextEncoder
from app.errors import ConfigError
from app.model.smollm2 import SmolLM2

_IGNORED = -100  # a target that does not count
_LOGITS_AT_ONCE = 1 << 26  # numbers: 256 MiB in float32


@dataclass(frozen=True)
class Document:
    """A text as tokens, of shape (tokens,), and its length in bytes of UTF-8."""

    ids: npt.NDArray[np.uint16]
    n_bytes: int


@dataclass(frozen=True)
class Windows:
    """Lengths in tokens, `stride` no more than `length`."""

    length: int
    stride: int

    def over(self, n_tokens: int) -> Iterator[tuple[int, int, int]]:
        """For targets 0 … n_tokens - 1, each of which follows the input of the same number:
        (begin, end, first). A window reads the inputs from `begin` to `end`, and its targets from
        `first` on count."""
        begin = done = 0
        while done < n_tokens:
            end = min(begin + self.length, n_tokens)
            yield begin, end, done
            done, begin = end, begin + self.stride


@dataclass(frozen=True)
class TextLoss:
    """What a model lost on a text: `nats` in all, over so many tokens, bytes and documents."""

    nats: float
    tokens: int
    n_bytes: int
    documents: int

    @property
    def loss(self) -> float:
        """The cross-entropy in nats per token, as in training."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """What a model with another tokenizer can be compared by."""
        return self.nats / math.log(2) / self.n_bytes


def read_documents(
    pieces: Iterable[Piece], encoder: TextEncoder, most_tokens: int, *, only_held_out: bool = False
) -> Iterator[Document]:
    """The documents of a source, until about `most_tokens` are read: the text is cut at the last
    end of a line before. Tokens are made piece by piece, as for training.

    With `only_held_out`, those alone that no training on the same source sees.
    """
    ids: list[npt.NDArray[np.uint16]] = []
    n_bytes = n_tokens = 0
    for piece in pieces:
        out = held_out(piece.text) if piece.held_out is None else piece.held_out
        left_out = only_held_out and not out
        if n_bytes and (piece.starts_document or left_out):
            yield Document(np.concatenate(ids), n_bytes)
            ids, n_bytes = [], 0
        if left_out:
            continue
        text, going_on = piece.text, not piece.starts_document
        (tokens,) = encoder.encode_batch([text], [going_on])
        is_last = n_tokens + len(tokens) >= most_tokens
        if n_tokens + len(tokens) > most_tokens:
            text = _beginning(text, (most_tokens - n_tokens) / len(tokens))
            (tokens,) = encoder.encode_batch([text], [going_on])
        ids.append(tokens)
        n_bytes, n_tokens = n_bytes + len(text.encode()), n_tokens + len(tokens)
        if is_last:
            break
    if n_bytes:
        yield Document(np.concatenate(ids), n_bytes)


def _beginning(text: str, share: float) -> str:
    """About this share of a text, up to the end of a line, or of a word, if there is one."""
    cut = max(1, int(len(text) * share))
    line, word = text.rfind("\n", 0, cut) + 1, text.rfind(" ", 1, cut)
    return text[: line or max(word, 0) or cut]


@torch.inference_mode()
def text_loss(
    model: SmolLM2,
    documents: Iterable[Document],
    start_token: int,
    windows: Windows,
    tokens_at_once: int,
    done: Callable[[int], None] = lambda _: None,
) -> TextLoss:
    """What `model` loses on `documents`. It reads at most `tokens_at_once` at a time, but at least
    one window. `done` is told of each number of tokens that was predicted.

    Raises ConfigError if there is no text.
    """
    nats, tokens, n_bytes, number = 0.0, 0, 0, 0

    def counted() -> Iterator[Document]:
        nonlocal n_bytes, number
        for document in documents:
            n_bytes, number = n_bytes + document.n_bytes, number + 1
            yield document

    for batch in _batches(counted(), start_token, windows, tokens_at_once):
        lost, predicted = _lost(model, batch)
        nats, tokens = nats + lost, tokens + predicted
        done(predicted)
    if not tokens:
        raise ConfigError("there is no text to evaluate: every document is empty, or none is left")
    return TextLoss(nats, tokens, n_bytes, number)


_Window = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Inputs and targets, of the same length; those that do not count are _IGNORED."""


def _batches(
    documents: Iterable[Document], start_token: int, windows: Windows, tokens_at_once: int
) -> Iterator[Sequence[_Window]]:
    batch: list[_Window] = []
    longest = 0
    for document in documents:
        ids = np.concatenate(([start_token], document.ids)).astype(np.int64)
        for begin, end, first in windows.over(len(document.ids)):
            targets = ids[begin + 1 : end + 1].copy()
            targets[: first - begin] = _IGNORED
            longest = max(longest, end - begin)
            if batch and longest * (len(batch) + 1) > tokens_at_once:
                yield batch
                batch, longest = [], end - begin
            batch.append((ids[begin:end], targets))
    if batch:
        yield batch


def _lost(model: SmolLM2, batch: Sequence[_Window]) -> tuple[float, int]:
    """The loss of these windows in nats, and the number of targets that count.

    Attention is causal, so what fills a shorter window up to the longest one changes nothing.
    """
    weight = model.model.embed_tokens.weight
    length = max(len(inputs) for inputs, _ in batch)
    inputs = np.zeros((len(batch), length), dtype=np.int64)
    targets = np.full((len(batch), length), _IGNORED, dtype=np.int64)
    for row, (given, wanted) in enumerate(batch):
        inputs[row, : len(given)], targets[row, : len(wanted)] = given, wanted
    hidden: Tensor = model.model(torch.from_numpy(inputs).to(weight.device))  # (B, T, D)
    flat = torch.from_numpy(targets).to(weight.device)
    counts = flat != _IGNORED
    hidden, flat = hidden[counts], flat[counts]
    nats = 0.0
    at_once = max(1, _LOGITS_AT_ONCE // len(weight))
    for rows, wanted_rows in zip(hidden.split(at_once), flat.split(at_once), strict=True):
        logits = F.linear(rows, weight).float()  # (rows, V)
        nats += F.cross_entropy(logits, wanted_rows, reduction="none").double().sum().item()
    return nats, len(flat)
