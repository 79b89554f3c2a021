"""How text is drawn, as it is typed."""

import argparse

import pytest

from app.cli.sampling import add_sampling, changed, sampling_of
from app.generation.decoding import Sampling


def test_the_flags_have_the_defaults_of_sampling() -> None:
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    assert sampling_of(parser.parse_args([]), seed=0) == Sampling()
    typed = parser.parse_args(["--top_k", "3", "--temperature=0"])
    assert sampling_of(typed, seed=7) == Sampling(top_k=3, temperature=0, seed=7)


def test_a_line_of_the_loop_changes_one_of_them() -> None:
    assert changed(Sampling(), "temperature", "0.5") == Sampling(temperature=0.5)
    assert changed(Sampling(), "max_tokens", "7") == Sampling(max_tokens=7)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("help", "", "/help is not known: /temperature, /top_k, .* and /quit are"),
        ("top_p", "2", "/top_p: 2 is not between 0 and 1"),
        ("top_k", "many", "/top_k takes a number, not 'many'"),
        ("temperature", "", "/temperature takes a number, not ''"),
    ],
)
def test_a_line_that_cannot_be_read_says_what_can(name: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        changed(Sampling(), name, text)
