"""How a command is told which checkpoint to take."""

import argparse

import pytest

from app.cli.chosen_step import add_step, add_step_or_word, step_or_word
from app.errors import UsageError


def typed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_step_or_word(parser, "the newest")
    return parser.parse_args(words)


def test_a_step_is_a_word_or_a_flag_and_need_not_be_given() -> None:
    assert step_or_word(typed()) is None
    assert step_or_word(typed("40")) == step_or_word(typed("--step", "40")) == "40"
    assert step_or_word(typed("best", "--step", "best")) == "best"


def test_two_of_them_that_differ_are_a_bad_command_line() -> None:
    with pytest.raises(UsageError, match="40 and --step best name two checkpoints"):
        step_or_word(typed("40", "--step", "best"))


def test_an_older_spelling_stays() -> None:
    parser = argparse.ArgumentParser()
    add_step(parser, "the newest", "--checkpoint")
    assert parser.parse_args(["--checkpoint", "40"]).step == "40"
    assert "default: the newest" in parser.format_help()
