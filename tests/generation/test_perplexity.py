"""Perplexity against a plain computation with transformers, token by token."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from app.data.pieces import Piece, held_out
from app.data.tokenizer import TextEncoder
from app.errors import ConfigError
from app.generation.evaluated import Evaluated, evaluated_directory
from app.generation.perplexity import Document, Windows, read_documents, text_loss
from app.generation.tasks import transformers_model
from tests.support.small_model import save_small_model

CPU = torch.device("cpu")
TEXTS = [
    "Every token of a text is predicted once, the last one too. " * 4,
    "Short.",
    "",
    "naïve — é 日本語 😀",
]


@pytest.fixture(scope="module")
def evaluated(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    directory = tmp_path_factory.mktemp("models") / "small"
    save_small_model(directory, small_tokenizer)
    return evaluated_directory(str(directory))


@torch.inference_mode()
def plain_nats(evaluated: Evaluated, ids: list[int], length: int, stride: int) -> float:
    """Each token alone: the model of transformers reads the tokens of its window before it."""
    model = transformers_model(evaluated, CPU)
    tokens = [evaluated.tokenizer.eos_token_id, *ids]
    nats = 0.0
    for place in range(1, len(tokens)):
        begin = 0  # of the first window that reaches the token
        while begin + length < place:
            begin += stride
        logits = model(torch.tensor([tokens[begin:place]])).logits[0, -1]
        nats -= logits.double().log_softmax(-1)[tokens[place]].item()
    return nats


@pytest.mark.parametrize("stride", [32, 16, 5, 1])
@pytest.mark.parametrize("at_once", [1, 100, 10_000])
def test_each_token_is_predicted_once_as_transformers_predicts_it(
    stride: int, at_once: int, evaluated: Evaluated
) -> None:
    encoder = TextEncoder(evaluated.tokenizer)
    documents = list(read_documents(map(Piece, TEXTS), encoder, 10**6))
    told: list[int] = []
    windows = Windows(32, stride)
    found = text_loss(evaluated.model(CPU), documents, 0, windows, at_once, told.append)
    expected = sum(plain_nats(evaluated, d.ids.tolist(), 32, stride) for d in documents)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    n_bytes = len("".join(TEXTS).encode())
    assert (found.n_bytes, found.documents) == (n_bytes, 3)
    assert found.tokens == sum(len(document.ids) for document in documents) == sum(told)
    assert found.perplexity == pytest.approx(math.exp(expected / found.tokens), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / n_bytes, rel=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 7, 8, 9, 16, 17, 100])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_count_each_target_once_behind_as_much_text_as_the_stride_leaves(
    n_tokens: int, stride: int
) -> None:
    counted: list[int] = []
    for begin, end, first in Windows(8, stride).over(n_tokens):
        assert end - begin <= 8
        assert first == 0 or first - begin >= 8 - stride
        counted += range(first, end)
    assert counted == list(range(n_tokens))


def test_reading_stops_near_the_number_of_tokens_that_was_asked_for(evaluated: Evaluated) -> None:
    encoder = TextEncoder(evaluated.tokenizer)
    text = "one line of text that goes on\n" * 200
    (document,) = read_documents([Piece(text)], encoder, 500)
    assert 450 <= len(document.ids) <= 500
    assert document.n_bytes % len("one line of text that goes on\n") == 0
    first, second = read_documents([Piece("ab " * 100), Piece(text)], encoder, 400)
    assert first.n_bytes == 300
    assert 300 <= len(first.ids) + len(second.ids) <= 400


def test_parts_of_a_document_are_joined_and_what_is_left_out_parts_them(
    evaluated: Evaluated,
) -> None:
    encoder = TextEncoder(evaluated.tokenizer)
    parts = [
        Piece("first ", ends_document=False, held_out=True),
        Piece("second", starts_document=False, held_out=True),
        Piece("not for us", held_out=False),
        Piece("third", starts_document=False, held_out=True),
    ]
    found = list(read_documents(parts, encoder, 10**6, only_held_out=True))
    assert [document.n_bytes for document in found] == [12, 5]
    assert len(list(read_documents(parts, encoder, 10**6))) == 2


def test_only_what_training_holds_out_is_read_where_that_is_asked_for(
    evaluated: Evaluated,
) -> None:
    texts = [f"text number {number}" for number in range(500)]
    kept = [text for text in texts if held_out(text)]
    encoder = TextEncoder(evaluated.tokenizer)
    found = list(read_documents(map(Piece, texts), encoder, 10**6, only_held_out=True))
    assert 0 < len(kept) < 20
    assert [document.n_bytes for document in found] == [len(text) for text in kept]


def test_no_text_is_an_error_that_says_so(evaluated: Evaluated) -> None:
    model, nothing = evaluated.model(CPU), Document(np.empty(0, np.uint16), 0)
    for documents in ([], [nothing]):
        with pytest.raises(ConfigError, match="there is no text"):
            text_loss(model, documents, 0, Windows(32, 16), 100)
