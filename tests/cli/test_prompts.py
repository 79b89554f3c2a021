"""The prompts that `generate` is given."""

import io
import sys
from pathlib import Path

import pytest

from app.cli.prompts import prompt_on_standard_input, prompts_in
from app.errors import ConfigError


def written(folder: Path, content: bytes) -> Path:
    path = folder / "prompts"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"one\n\n  two \r\nthree", ["one", "  two ", "three"]),
        ("naïve 😀\u2028still one\n".encode(), ["naïve 😀\u2028still one"]),
        (b'{"prompt": "a\\nb", "id": 3}\n\n{"prompt": ""}\n', ["a\nb", ""]),
        (b'{"text": "no prompt"}\n{"prompt": "text here"}', None),
        (b"[1]\n1\n", ["[1]", "1"]),
    ],
)
def test_a_line_is_a_prompt_or_a_json_object_with_one(
    content: bytes, prompts: list[str] | None, tmp_path: Path
) -> None:
    expected = content.decode().split("\n") if prompts is None else prompts
    assert list(prompts_in(written(tmp_path, content))) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n \n", "holds no prompt"),
        (b"\xff", "is not UTF-8"),
        (b'{"prompt": "a"}\n\nnot JSON\n', "line 3 is no JSON object with a 'prompt'"),
        (b'{"prompt": "a"}\n{"prompt": 1}\n', "line 2 is no JSON object"),
    ],
)
def test_a_file_without_prompts_says_what_is_wrong(
    content: bytes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        prompts_in(written(tmp_path, content))
    with pytest.raises(ConfigError, match="--prompts"):
        prompts_in(tmp_path / "missing")
    with pytest.raises(ConfigError, match="--prompts"):
        prompts_in(tmp_path)


@pytest.mark.parametrize(
    ("given", "prompt"), [(b"def main(\n", "def main("), (b"", ""), ("a\n\né".encode(), "a\n\né")]
)
def test_standard_input_is_one_prompt(
    given: bytes, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert prompt_on_standard_input() == prompt


def test_standard_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(ConfigError, match="standard input is not UTF-8"):
        prompt_on_standard_input()
    monkeypatch.setattr(sys, "stdin", None)
    assert prompt_on_standard_input() == ""
