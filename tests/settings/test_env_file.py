"""`.env` is read as docker compose reads it, or refused with the line."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.settings.env_file import read_env_file
from app.settings.load import load_settings
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


def read(content: str) -> dict[str, str]:
    Path(".env").write_bytes(content.encode())
    return read_env_file()


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("A=x y", "x y"),
        ("export A = x", "x"),
        ("A=x # y", "x"),
        ("A=x#y", "x#y"),
        ('A="x # y"', "x # y"),
        ("A='x' # y", "x"),
        ("A='${B} $C'", "${B} $C"),
        ("B=1\nA=${B}${NOT_SET:-2}", "12"),
        ('A="x\ny"', "x\ny"),
        ("A=1\nA=2", "2"),
        ("\ufeffA=x\r\nB=y\r\n", "x"),
        ("# comment\r\n\r\nA=x", "x"),
        ("A\nA=x", "x"),
    ],
)
def test_it_is_read_as_compose_reads_it(content: str, value: str) -> None:
    assert read(content)["A"] == value


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("SEED: 7", "not NAME=value"),
        ("SEED:7", "not NAME=value"),
        ("SEED 7", "not NAME=value"),
        ('RUN_NAME="a', "not NAME=value"),
        ("RUN_NAME='a' b", "not NAME=value"),
        ("RUN_NAME=$USER", "'$' in RUN_NAME"),
        ("RUN_NAME=${USER-x}", "'$' in RUN_NAME"),
        ("RUN_NAME=${USER:?x}", "'$' in RUN_NAME"),
        ("RUN_NAME=${A:-${B}}", "'$' in RUN_NAME"),
    ],
)
def test_a_line_that_compose_would_read_otherwise_is_refused_by_its_number(
    line: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"TOTAL_STEPS=3\n\n\n{line}\n")
    assert str(caught.value).startswith(".env, line 4: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sign_that_is_only_special_here_may_stand_in_other_programs_variables() -> None:
    assert read("PASSWORD=a$b")["PASSWORD"] == "a$b"


def test_its_values_are_named_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SEED=x\n")
    assert problems().startswith("SEED='x' (from .env) cannot be used")
    monkeypatch.setenv("SEED", "")
    Path(".env").write_text("SEED=5\n")
    assert load_settings().sources["SEED"] == "file"
