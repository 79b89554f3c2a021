"""A path is read in the same way whichever variable or flag it comes from."""

from pathlib import Path

import pytest

from app.cli.parser import main
from app.settings.load import load_settings
from app.settings.local_paths import local_path
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")

REFUSED = [
    ("~nobody-here/x", "no home directory is known for ~nobody-here"),
    ("'/data'", "leave them out"),
    ('"/data"', "leave them out"),
    ("/data\n", "leave it out"),
    (" /data", "leave them out"),
    ("$HOME/data", "write the path in full"),
    ("${HOME}/data", "write the path in full"),
    ("/caf\udce9", "not UTF-8"),
    ("file:///caf%E9", "not UTF-8"),
    ("file:///a%00b", "byte 0"),
    ("file:///50%", "%25"),
    ("file://data", "three slashes"),
    ("file:///~/data", "write the path in full"),
]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("data", "data"),
        ("/a b/%20", "/a b/%20"),
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("file:///a%20b", "/a b"),
        ("FILE://localhost/a", "/a"),
        ("file:///a?b*", "/a?b*"),
    ],
)
def test_a_path_is_what_its_notation_says(
    text: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path(text) == Path(path)


@pytest.mark.parametrize("name", ["DATA_DIR", "DATASET", "TOKENIZER", "INIT_FROM"])
@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_what_cannot_be_meant_as_a_path_is_refused_whatever_variable_it_stands_in(
    text: str, reason: str, name: str
) -> None:
    said = problems(**{name.lower(): text})
    assert said.startswith(f"{name}=")
    assert reason in said


@pytest.mark.parametrize("name", ["DATA_DIR", "TOKENIZER", "INIT_FROM"])
def test_an_address_elsewhere_is_no_folder(name: str) -> None:
    assert "s3:// is no place on this machine" in problems(**{name.lower(): "s3://bucket/x"})


@pytest.mark.parametrize("text", ["file:///a%00b", "file:///caf%E9", "file:///~/x", "file:///5%"])
def test_a_store_in_a_folder_is_named_by_a_uri_that_can_be_decoded(text: str) -> None:
    assert problems(checkpoint_uri=text).startswith("CHECKPOINT_URI=")


def test_a_home_directory_that_is_not_known_is_never_taken_for_the_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "")
    assert "no home directory is known for ~" in problems(data_dir="~/data")
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings({"data_dir": "~/data"}).data.data_dir == Path("/home/me/data")


@pytest.mark.parametrize(
    "words",
    [
        ["checkpoints", "pull", "--to"],
        ["report", "--to"],
        ["prepare", "--tokenizer_only"],
    ],
)
def test_a_flag_that_names_a_place_is_read_in_the_same_way(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "s3://bucket/x"]) == 64
    assert "s3:// is no place on this machine" in capfd.readouterr().err
    assert main([*words, "~nobody-here/x"]) == 64


def test_a_model_directory_is_read_in_the_same_way(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--model_dir", "~nobody-here/x"]) == 78
    assert "--model_dir=~nobody-here/x cannot be used: no home" in capfd.readouterr().err
