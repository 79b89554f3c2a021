"""Uploads to the hub, against a server on loopback that speaks what the client asks for."""

import socket
from pathlib import Path

import pytest

from app.errors import AccessDenied, ConfigError, Unavailable
from app.model.hub_upload import HubPlace, check_writable, upload
from tests.support.hub_repository import MAY_READ, MAY_WRITE, use_writable, writable_hub

PLACE = HubPlace("o/mine", None)
FILES = {"model.safetensors": b"weights" * 100, "README.md": b"---\ntags: [a]\n---\n# mine\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


@pytest.mark.parametrize(
    ("text", "place"),
    [("hub:o/m", HubPlace("o/m", None)), ("hub:o/m@step-20", HubPlace("o/m", "step-20"))],
)
def test_a_place_on_the_hub_is_read_and_written_alike(text: str, place: HubPlace) -> None:
    assert HubPlace.parse(text) == place
    assert str(place) == text


@pytest.mark.parametrize("text", ["hub:", "hub:m", "hub:a/b/c", "hub:a/b@", "hub:a b/c"])
def test_another_spelling_is_no_place_on_the_hub(text: str) -> None:
    with pytest.raises(ValueError, match="owner/name"):
        HubPlace.parse(text)


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_is_made_private_unless_it_is_to_be_public(
    public: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub(monkeypatch, tmp_path, MAY_WRITE) as hub:
        check_writable(PLACE)
        assert upload(folder, PLACE, public=public, overwrite=False).endswith("/c/1")
    assert hub.files == {"o/mine": {"main": FILES}}
    assert hub.private == (set() if public else {"o/mine"})


def test_a_branch_is_made_and_the_main_one_stays_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub(monkeypatch, tmp_path, MAY_WRITE) as hub:
        upload(folder, HubPlace("o/mine", "step-20"), public=False, overwrite=False)
    assert hub.files == {"o/mine": {"main": {}, "step-20": FILES}}


def test_a_model_that_is_there_is_replaced_only_when_that_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub(monkeypatch, tmp_path, MAY_WRITE) as hub:
        upload(folder, PLACE, public=False, overwrite=False)
        (folder / "model.safetensors").write_bytes(b"others")
        with pytest.raises(ConfigError, match="add --overwrite"):
            upload(folder, PLACE, public=False, overwrite=False)
        assert hub.files["o/mine"]["main"] == FILES
        upload(folder, PLACE, public=False, overwrite=True)
    assert hub.files["o/mine"]["main"]["model.safetensors"] == b"others"


def test_an_upload_that_was_cut_short_does_not_send_its_large_files_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub(monkeypatch, tmp_path, MAY_WRITE) as hub:
        hub.commits_fail = True
        with pytest.raises(Unavailable, match="the hub answers 520"):
            upload(folder, PLACE, public=False, overwrite=False)
        assert len(hub.sent) == 1
        assert hub.files == {"o/mine": {"main": {}}}  # nobody sees half a model
        hub.commits_fail = False
        upload(folder, PLACE, public=False, overwrite=False)
        assert len(hub.sent) == 1
    assert hub.files == {"o/mine": {"main": FILES}}


def test_without_a_token_it_is_said_where_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        writable_hub(monkeypatch, tmp_path, None),
        pytest.raises(AccessDenied, match=r"there is no token: .* set HF_TOKEN"),
    ):
        check_writable(PLACE)


def test_a_token_that_the_hub_does_not_know_is_access_denied_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        writable_hub(monkeypatch, tmp_path, "hf_wrongwrongwrong"),
        pytest.raises(AccessDenied, match="HF_TOKEN") as refusal,
    ):
        check_writable(PLACE)
    assert "wrongwrong" not in str(refusal.value)


def test_a_token_that_may_only_read_is_told_what_it_lacks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub(monkeypatch, tmp_path, MAY_READ):
        check_writable(PLACE)
        with pytest.raises(AccessDenied, match="right to write to o"):
            upload(folder, PLACE, public=False, overwrite=False)


def test_a_hub_that_is_away_may_be_there_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        use_writable(
            monkeypatch, f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path, MAY_WRITE
        )
        with pytest.raises(Unavailable, match="cannot be reached"):
            check_writable(PLACE)
