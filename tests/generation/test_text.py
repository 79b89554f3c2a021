"""Text in pieces, as it goes to a terminal."""

import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tokenizers import Tokenizer

from app.cli import parser as cli
from app.errors import ConfigError
from app.generation.decoding import Sampling, generate_tokens
from app.generation.inference import InferenceModel
from app.generation.text import LoadedModel, TextPieces, TextUntil, answers, stream_text
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS


@pytest.fixture
def loaded(small_tokenizer: Path) -> LoadedModel:
    model = SmolLM2(dataclasses.replace(PRESETS["tiny"], vocab_size=300))
    tokenizer = Tokenizer.from_file(str(small_tokenizer / "tokenizer.json"))
    return LoadedModel(InferenceModel(model), tokenizer, 0, "a test")


@pytest.mark.parametrize("text", ["plain", "naïve — é", "日本語 😀!"])
def test_pieces_are_whole_characters_and_together_the_text(
    text: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = loaded.tokenizer.encode(text).ids

    def drawn(*_: Any) -> Iterator[int]:
        yield from ids

    monkeypatch.setattr("app.generation.text.generate_tokens", drawn)
    pieces = list(stream_text(loaded, "prompt", Sampling()))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 1


def test_a_character_that_never_becomes_whole_is_shown_in_the_end(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = loaded.tokenizer.encode("é").ids[:1]
    monkeypatch.setattr("app.generation.text.generate_tokens", lambda *_: iter(half))
    assert "".join(stream_text(loaded, "prompt", Sampling())) == "\ufffd"


def test_an_empty_prompt_starts_from_the_end_of_text(loaded: LoadedModel) -> None:
    assert isinstance("".join(stream_text(loaded, "", Sampling(max_tokens=3))), str)
    without = dataclasses.replace(loaded, end_token=None)
    with pytest.raises(ConfigError, match="--prompt is empty"):
        list(stream_text(without, "", Sampling(max_tokens=3)))


def test_the_rate_counts_every_token_whether_it_shows_or_not(
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.generation.text.load_model", lambda *_: loaded)
    monkeypatch.setattr("app.generation.text.generate_tokens", lambda *_: iter([0] * 5))
    clock = SimpleNamespace(monotonic=iter([10.0, 12.0]).__next__)
    monkeypatch.setattr("app.cli.generate.time", clock)
    assert cli.main(["generate", "--model_dir", "any", "--prompt", "a"]) == 0
    assert "2.5 tokens/s" in capsys.readouterr().err


def test_a_line_of_the_log_begins_below_the_text_where_both_go_to_one_place(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("app.generation.text.load_model", lambda *_: loaded)
    with Path("both").open("a") as output, Path("both").open("a") as log:
        monkeypatch.setattr("sys.stdout", output)
        monkeypatch.setattr("sys.stderr", log)
        assert cli.main(["generate", "--model_dir", "any", "--prompt", "a", "--max_tokens=2"]) == 0
    assert re.search(r"\n\d\d:\d\d:\d\d [\d.]+ tokens/s\n$", Path("both").read_text())


def test_any_tokens_in_pieces_are_the_text_of_all(loaded: LoadedModel) -> None:
    """Also ends of characters that never began, as an untrained model draws them."""
    drawn = random.Random(3)
    for _ in range(50):
        ids = [drawn.randrange(300) for _ in range(40)]
        pieces = TextPieces(loaded.tokenizer)
        text = "".join([*map(pieces.add, ids), pieces.rest()])
        assert text == loaded.tokenizer.decode(ids)


def test_a_token_costs_the_same_however_long_the_text_is(loaded: LoadedModel) -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, ids: list[int]) -> str:
            decoded.append(len(ids))
            return loaded.tokenizer.decode(ids)

    pieces = TextPieces(cast(Tokenizer, Counting()))
    for token in loaded.tokenizer.encode("naïve text " * 50).ids:
        pieces.add(token)
    assert max(decoded) < 8


def until(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown of these pieces, and whether the text was stopped."""
    text = TextUntil(stops)
    shown = [text.add(piece) for piece in pieces]
    return [*shown, text.rest()], text.stopped


@pytest.mark.parametrize(
    ("pieces", "shown", "stopped"),
    [
        (["one", " t", "wo END", " more"], ["one", " t", "wo ", "", ""], True),
        (["one E", "N", "D"], ["one ", "", "", ""], True),
        (["one E", "N", "E", "ND!"], ["one ", "", "EN", "", ""], True),
        (["one E", "N", "one"], ["one ", "", "ENone", ""], False),
        (["one E"], ["one ", "E"], False),
        (["ENDone"], ["", ""], True),
    ],
)
def test_a_text_ends_before_what_stops_it_however_that_is_cut_into_pieces(
    pieces: list[str], shown: list[str], stopped: bool
) -> None:
    assert until(["END"], pieces) == (shown, stopped)


def test_the_first_of_several_strings_stops_it() -> None:
    assert until(["zzz", "b", "abc"], ["xa", "abc"]) == (["x", "a", ""], True)
    assert until([], ["a", "b"]) == (["a", "b", ""], False)


def test_any_text_in_any_pieces_is_what_stands_before_the_first_stop() -> None:
    drawn = random.Random(5)
    for _ in range(300):
        text = "".join(drawn.choices("ab", k=30))
        stop = "".join(drawn.choices("ab", k=drawn.randint(1, 6)))
        cuts = sorted(drawn.sample(range(31), 5))
        pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, 30], strict=True)]
        shown, stopped = until([stop], pieces)
        assert "".join(shown) == text.partition(stop)[0] and stopped == (stop in text)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0, max_tokens=25), Sampling(seed=11)])
def test_several_prompts_at_once_get_the_texts_that_each_gets_alone(
    sampling: Sampling, loaded: LoadedModel
) -> None:
    """Of any lengths, more of them than are written at a time, and one that begins nothing."""
    prompts = ["def main(", "", "a", "naïve — é " * 4, *(f"prompt {n} " * n for n in range(1, 9))]
    stops = ["\ufffd", "q"]
    together = list(answers(loaded, prompts, sampling, stops))
    assert [answer.prompt for answer in together] == prompts
    for answer in together:
        alone = list(stream_text(loaded, answer.prompt, sampling, stops))
        assert (answer.text, answer.tokens) == ("".join(alone), len(alone) - 1)
    assert together == list(answers(loaded, prompts, sampling, stops))
    assert {answer.ended for answer in together} <= {"stop", "length", "end"}


def test_an_answer_says_why_it_ended(loaded: LoadedModel) -> None:
    greedy = Sampling(temperature=0, max_tokens=6)
    (answer,) = answers(loaded, ["abc"], greedy)
    assert (answer.ended, answer.tokens) == ("length", 6)
    (stopped,) = answers(loaded, ["abc"], greedy, [answer.text[:1]])
    assert (stopped.ended, stopped.text) == ("stop", "")
    ending = dataclasses.replace(loaded, end_token=_first_token(loaded, "abc"))
    (ended,) = answers(ending, ["abc"], greedy)
    assert (ended.ended, ended.text, ended.tokens) == ("end", "", 0)


def _first_token(loaded: LoadedModel, prompt: str) -> int:
    ids = loaded.tokenizer.encode(prompt).ids
    return next(generate_tokens(loaded.model, ids, Sampling(temperature=0), None))
