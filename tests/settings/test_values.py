"""Credentials in an address: refused, and never repeated."""

import pytest

from app.settings.load import load_settings
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_credentials_in_a_uri_are_refused_and_never_repeated() -> None:
    text = problems(checkpoint_uri="s3://AKIAEXAMPLE:verysecret@bucket/x")
    assert "credentials do not belong in a URI" in text
    assert "verysecret" not in text


@pytest.mark.parametrize(
    "dataset",
    [
        "https://user:verysecret@host/x.txt",
        "https://verysecret@host/x.txt",
        "http://user:verysecret/verysecret@host/x.txt",
        "HTTPS://user:very secret verysecret@host/x.txt",
        "s3://key:verysecret@bucket/x",
        "https://user:5,verysecret@host/x.txt",
        "builtin:0.5,https://user:verysecret@host/x.txt:0.5",
    ],
)
def test_credentials_in_dataset_are_refused_and_never_repeated(dataset: str) -> None:
    text = problems(dataset=dataset)
    assert text.startswith("DATASET=*** (from a flag) cannot be used: credentials do not belong")
    assert "secret" not in text


@pytest.mark.parametrize("name", ["INIT_FROM", "TOKENIZER"])
def test_credentials_in_another_address_are_refused_too(name: str) -> None:
    text = problems(**{name.lower(): "https://user:very/secret@host/x"})
    assert text.startswith(f"{name}=*** (from a flag) cannot be used: credentials do not belong")
    assert "secret" not in text


@pytest.mark.parametrize(
    "dataset",
    ["http://host:80/x@y.txt", "s3://bucket/x@y", "o/name@main", "s3://bucket:1,name@main:2"],
)
def test_an_at_sign_elsewhere_is_no_credential(dataset: str) -> None:
    assert load_settings({"dataset": dataset}).data.dataset == dataset
