"""Mistakes in AWS_* that no server has to be asked about."""

from pathlib import Path

import certifi
import pytest

from app.settings.aws import aws_problems
from tests.support.refused_settings import problems

SECRET = "IQoJ-the-secret"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_SESSION_TOKEN", f"{SECRET}\n", "line end"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}\r", "line end"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}\x1b[0m", "control character"),
        ("AWS_ACCESS_KEY_ID", f" {SECRET}", "white space"),
        ("AWS_SECRET_ACCESS_KEY", f'"{SECRET}"', "quotes"),
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}'", "quotes"),
        ("AWS_SESSION_TOKEN", f"{SECRET} {SECRET}", "space"),
        ("AWS_SESSION_TOKEN", f"{SECRET}\u2026", "ASCII"),
        ("AWS_PROFILE", f"{SECRET} ", "white space"),
        ("AWS_DEFAULT_REGION", f"eu_{SECRET}", "region"),
        ("AWS_DEFAULT_REGION", "us-east-1 ", "white space"),
        ("AWS_ENDPOINT_URL_S3", f"http://user:p/{SECRET}@host", "credentials"),
        ("AWS_ENDPOINT_URL_S3", f"http://user:a@{SECRET}@host", "credentials"),
        ("AWS_ENDPOINT_URL", f"http://user:{SECRET}", "http://host:port"),
        ("AWS_ENDPOINT_URL_S3", "localhost:9000", "http://host:port"),
        ("AWS_ENDPOINT_URL_S3", "http://", "http://host:port"),
        ("AWS_ENDPOINT_URL_S3", f"http://host/?key={SECRET}", "http://host:port"),
        ("AWS_ENDPOINT_URL_S3", "'http://host'", "quotes"),
        ("AWS_CA_BUNDLE", "/nonexistent/ca.pem", "/nonexistent/ca.pem' names a file that is not"),
        ("AWS_CA_BUNDLE", "/", "cannot be read"),
        ("AWS_CA_BUNDLE", "/etc/passwd", "PEM"),
        ("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem", "ca.pem' names a file that is not there"),
        ("REQUESTS_CA_BUNDLE", "/etc/passwd", "PEM"),
        ("REQUESTS_CA_BUNDLE", "/etc/ca.pem\n", "line end"),
        ("AWS_CONFIG_FILE", "/", "cannot be read"),
    ],
)
def test_a_value_that_cannot_be_right_is_told_without_the_value(
    name: str, value: str, reason: str
) -> None:
    (told,) = aws_problems(KEYS | {name: value})
    assert told.startswith(name) and reason in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "name",
    [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_SHARED_CREDENTIALS_FILE",
    ],
)
def test_a_file_with_credentials_is_looked_at_only_where_it_is_needed(name: str) -> None:
    (told,) = aws_problems({name: "/nonexistent/token"})
    assert told == f"{name}='/nonexistent/token' names a file that is not there"
    assert list(aws_problems(KEYS | {name: "/nonexistent/token"})) == []


def test_an_empty_token_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    (told,) = aws_problems({"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token")})
    assert "is empty" in told


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_what_boto3_does_not_take_for_unset_is_told(name: str) -> None:
    (told,) = aws_problems(KEYS | {name: ""})
    assert told.startswith(f"{name} is empty")


def test_a_bundle_of_others_is_looked_at_only_where_aws_names_none() -> None:
    others = {"AWS_CA_BUNDLE": certifi.where(), "REQUESTS_CA_BUNDLE": "/nonexistent/ca.pem"}
    assert list(aws_problems(KEYS | others)) == []


@pytest.mark.parametrize("name", list(KEYS))
def test_half_a_pair_of_keys_names_the_other_half(name: str) -> None:
    (missing,) = set(KEYS) - {name}
    (told,) = aws_problems({name: "x"})
    assert f"{name} is set without {missing}" in told


def test_what_is_right_or_empty_is_passed_over(tmp_path: Path) -> None:
    good = {
        "AWS_SESSION_TOKEN": "IQoJ+/==",
        "AWS_PROFILE": "my profile",
        "AWS_DEFAULT_REGION": "auto",
        "AWS_ENDPOINT_URL_S3": "https://[::1]:9000/path",
        "AWS_CONFIG_FILE": "/nonexistent/config",
        "AWS_ROLE_ARN": "",
        "HOME": " ",
    }
    assert list(aws_problems(KEYS | good)) == []


@pytest.mark.usefixtures("nothing_set")
def test_they_are_looked_at_only_where_s3_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token\n")
    for flags in ({"checkpoint_uri": "s3://bucket/x"}, {"dataset": "s3://bucket/x.txt"}):
        assert "AWS_SESSION_TOKEN" in problems(**flags)
    assert "AWS" not in problems(total_steps="none")
