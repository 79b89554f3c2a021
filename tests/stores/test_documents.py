"""JSON objects as models: what is damaged says where, and a newer format is refused first."""

import pytest
from pydantic import BaseModel, ConfigDict

from app.errors import AppError, Damaged, IncompatibleRun
from app.stores.documents import decode_document, encode_document


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int


class Whole(BaseModel):
    format_version: int = 2
    parts: tuple[Part, ...]


WHOLE = Whole(parts=(Part(size=1), Part(size=2)))


def decode(content: bytes, newest_format: int | None = 2) -> Whole:
    return decode_document(content, Whole, "store/whole.json", newest_format=newest_format)


def test_a_document_is_read_as_it_was_written() -> None:
    content = encode_document(WHOLE)
    assert decode(content) == WHOLE
    assert content.startswith(b'{\n "format_version": 2,\n') and content.endswith(b"}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe"])
def test_what_is_no_such_object_is_damaged(content: bytes) -> None:
    with pytest.raises(Damaged, match=r"^store/whole\.json is damaged \(content: "):
        decode(content)


def test_damage_says_where_it_is() -> None:
    with pytest.raises(Damaged, match=r"^store/whole\.json is damaged \(parts\.1\.size: "):
        decode(b'{"parts": [{"size": 1}, {"size": "large"}]}')


def test_a_reader_has_its_own_words_for_damage() -> None:
    with pytest.raises(Damaged, match=r"^cannot be read \(parts: Field required\), delete it$"):
        decode_document(
            b"{}", Whole, "there", damaged=lambda what: f"cannot be read ({what}), delete it"
        )


@pytest.mark.parametrize(
    ("newest_format", "error", "text"),
    [
        (
            2,
            IncompatibleRun,
            r"^store/whole\.json has format 3.*reads up to 2: use the newer image",
        ),
        (3, Damaged, r"parts\.0\.hash"),
        (None, Damaged, r"parts\.0\.hash"),
    ],
)
def test_what_only_a_newer_format_knows_is_not_called_damage(
    newest_format: int | None, error: type[AppError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        decode(b'{"format_version": 3, "parts": [{"size": 1, "hash": ""}]}', newest_format)
    assert type(caught.value) is error


def test_an_object_that_names_no_format_is_none_of_a_newer_one() -> None:
    assert decode(b'{"parts": []}').parts == ()
    with pytest.raises(Damaged, match="format_version"):
        decode(b'{"format_version": "newest", "parts": []}')
