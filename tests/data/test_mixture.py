"""Several sources by weights: order, shares, ends, going on, and what is refused."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.data.limits import DataLimits
from app.data.mixture import Mixture
from app.data.pieces import Pieces, Position, held_out
from app.data.sources import pin_source
from app.errors import ConfigError
from app.settings.dataset_spec import WeightedPart
from tests.support.corpus_files import jsonl
from tests.support.hubserver import REVISION, hub
from tests.support.source_pieces import check_every_position, documents, source, texts


@dataclass(frozen=True)
class Named:
    """A source of which only the identity is asked."""

    content: Mapping[str, str]
    pinned: str = "named"
    revision: str | None = None

    def origins(self) -> Mapping[str, str]:
        return {}

    def identity(self) -> Mapping[str, str]:
        return self.content

    def pieces(self, after: Position | None) -> Pieces:
        raise NotImplementedError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.jsonl").write_bytes(jsonl(["aaaa"] * 10))
    (tmp_path / "b.jsonl").write_bytes(jsonl(["bb"] * 10))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_the_next_document_is_from_the_source_that_is_furthest_behind() -> None:
    # Characters per weight after each: a 4, b 2 4, a 8, b 6 8, …
    order = "".join(text[0] for text in texts("./a.jsonl:1,./b.jsonl:1"))
    assert order.startswith("abbabbabbabbabb")
    assert "".join(t[0] for t in texts("./a.jsonl:2,./b.jsonl:1")).startswith("abababab")
    assert texts("./a.jsonl:2,./b.jsonl:1") == texts("./a.jsonl:0.6,./b.jsonl:0.3")


def test_shares_are_those_of_the_weights_all_along(tmp_path: Path) -> None:
    for name, size in (("a", 7), ("b", 100), ("c", 31)):
        rows = [name * (1 + number * 13 % size) for number in range(4000)]
        (tmp_path / f"{name}.jsonl").write_bytes(jsonl(rows))
    weights = {"a": 0.2, "b": 0.5, "c": 0.3}
    mixed = documents(source(",".join(f"{tmp_path}/{n}.jsonl:{w}" for n, w in weights.items())))
    so_far = dict.fromkeys(weights, 0)
    for number in range(2000):
        text = next(mixed).text
        so_far[text[0]] += len(text)
        if number > 100:
            total = sum(so_far.values())
            assert all(abs(so_far[name] - total * weights[name]) <= 100 for name in weights)


@pytest.mark.usefixtures("folder")
def test_a_source_that_ends_is_left_out_from_there_on_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        pieces = texts("./a.jsonl:9,./b.jsonl:1")
    assert sorted(pieces) == ["aaaa"] * 10 + ["bb"] * 10
    assert pieces[-5:] == ["bb"] * 5
    assert [record.getMessage() for record in caplog.records] == [
        "DATASET: ./a.jsonl is read to its end, the others go on"
    ]


def test_a_mixture_is_gone_on_with_at_any_piece(folder: Path) -> None:
    limits = DataLimits(turn_characters=9000, document_bytes=9000)
    (folder / "c.txt").write_text(("x" * 99 + "\n") * 400)
    dataset = f"{folder}/a.jsonl:1,{folder}/c.txt:3,./b.jsonl:1"
    pieces = check_every_position(source(dataset), limits)
    assert sum(len(piece.text) for piece in pieces) == 40_060
    # A book gives way after each 9,000 characters; what is between two borders stays together.
    inside = False
    for piece in pieces:
        assert piece.starts_document is not inside
        inside = not piece.ends_document
    borders = sum(piece.ends_document for piece in pieces if piece.text[0] == "x")
    assert borders == 4


def test_a_long_document_is_held_out_or_not_in_all_of_its_turns(folder: Path) -> None:
    limits = DataLimits(piece_size=20, long_row=50, turn_characters=60)
    long = next(t for t in (f"c {n} " * 100 for n in range(1000)) if held_out(t))
    (folder / "c.jsonl").write_bytes(jsonl([long]))
    pieces = check_every_position(source("./a.jsonl:1,./c.jsonl:1"), limits)
    of_it = [piece for piece in pieces if piece.text not in ("aaaa", "bb")]
    assert "".join(piece.text for piece in of_it) == long
    assert all(piece.held_out for piece in of_it)
    assert sum(piece.starts_document for piece in of_it) > 2


def test_hub_files_and_the_builtin_corpus_mix(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"train.jsonl": b"".join(b'{"text": "hub %d"}\n' % i for i in range(5))}
    with hub(monkeypatch, folder, rows) as requests:
        dataset = f"builtin:0.001,o/good:2,{folder}/*.jsonl:1"
        pinned = pin_source(source(dataset))
        assert pinned.revision == REVISION
        assert f",o/good@{REVISION}:2," in pinned.settings.dataset
        mixed = documents(pinned.settings)
        read = [next(mixed).text for _ in range(12)]
        assert "hub 4" in read and "aaaa" in read
        rest = documents(pinned.settings, json.loads(json.dumps(mixed.position)))
        assert [next(rest) for _ in range(20)] == [next(mixed) for _ in range(20)]
        asked = len(requests)
        assert pin_source(source(dataset), REVISION) == pinned
        assert len(requests) == asked, "a known revision needs no hub"


def test_the_weights_and_the_content_are_in_the_fingerprint_and_the_scale_is_not(
    folder: Path,
) -> None:
    pinned = pin_source(source("./a.jsonl:1,./b.jsonl:3"))
    same = pin_source(source("./a.jsonl:0.25,./b.jsonl:0.75"))
    assert same.fingerprint == pinned.fingerprint
    other = pin_source(source("./a.jsonl:1,./b.jsonl:1"))
    differing = {n for n, digest in other.parts.items() if pinned.parts[n] != digest}
    assert differing == {"./a.jsonl (weight)", "./b.jsonl (weight)"}
    (folder / "b.jsonl").write_bytes(jsonl(["new"]))
    changed = pin_source(source("./a.jsonl:1,./b.jsonl:3"))
    differing = {n for n, digest in changed.parts.items() if pinned.parts[n] != digest}
    assert differing == {"./b.jsonl: b.jsonl"}


def test_a_file_in_two_parts_is_refused(folder: Path) -> None:
    (folder / "link.jsonl").symlink_to("a.jsonl")
    for other in (f"{folder}/[ab].jsonl", "./link.jsonl", "link.jsonl"):
        with pytest.raises(ConfigError, match=r"hold the same text \(.*\.jsonl\).*name it once"):
            documents(source(f"./a.jsonl:1,{other}:1"))


def test_a_dataset_or_an_object_in_two_parts_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, s3_client: Any
) -> None:
    s3_client.put_object(Bucket=bucket, Key="in/a.jsonl", Body=jsonl(["x"]))
    with pytest.raises(ConfigError, match="hold the same text"):
        documents(source(f"s3://{bucket}/in/a.jsonl:1,s3://{bucket}/in:1"))
    with (
        hub(monkeypatch, folder, {"train.jsonl": b'{"text": "a"}\n'}),
        pytest.raises(ConfigError, match=r"hold the same text \(o/good\)"),
    ):
        documents(source(f"o/good:1,o/good@{REVISION}:2"))


@pytest.mark.parametrize("config", ["#default", "#default/train", "#/train"])
def test_the_default_configuration_by_its_name_is_the_same_dataset(
    config: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        hub(monkeypatch, folder, {"train.jsonl": b'{"text": "a"}\n'}),
        pytest.raises(ConfigError, match=r"hold the same text \(o/good\)"),
    ):
        pin_source(source(f"o/good:1,o/good{config}:2"))


@pytest.mark.parametrize("name", ["a.jsonl", "other.jsonl"])
def test_a_copy_of_a_part_is_refused_by_whatever_name(name: str, folder: Path) -> None:
    (folder / "copy").mkdir()
    (folder / "copy" / name).write_bytes((folder / "a.jsonl").read_bytes())
    with pytest.raises(ConfigError, match=rf"\./a\.jsonl and \./copy hold the same .* \({name}\)"):
        pin_source(source("./a.jsonl:1,./copy:1"))
    (folder / "copy" / "more.jsonl").write_bytes(jsonl(["more"]))
    for parts in ("./copy:1,./a.jsonl:1", "./a.jsonl:1,./copy:1"):
        with pytest.raises(ConfigError, match="hold the same text"):
            pin_source(source(parts))


def test_parts_that_share_some_files_are_read_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / f"{name}.jsonl").write_bytes(jsonl([name]))
        (folder / name / f"license-{name}.txt").write_text("free")
        (folder / name / "empty.txt").touch()
    assert sorted(texts("./one:1,./two:1")) == ["free", "free", "one", "two"]
    (line,) = [message for message in caplog.messages if "common" in message]
    assert line == (
        "DATASET: ./one and ./two have 1 file in common, such as license-two.txt: read twice"
    )


def test_files_without_content_are_no_copies(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "empty.txt").touch()
    assert len(texts("./one:1,./two:1,./a.jsonl:1")) == 10


def test_a_copy_in_another_bucket_is_refused_and_other_objects_of_its_size_are_not(
    bucket: str, s3_client: Any
) -> None:
    for key, text in (("one/a.jsonl", "x"), ("two/b.jsonl", "x"), ("three/c.jsonl", "y")):
        s3_client.put_object(Bucket=bucket, Key=key, Body=jsonl([text]))
    with pytest.raises(ConfigError, match=r"hold the same text \(b\.jsonl\)"):
        pin_source(source(f"s3://{bucket}/one:1,s3://{bucket}/two:1"))
    pin_source(source(f"s3://{bucket}/one:1,s3://{bucket}/three:1"))


@pytest.mark.parametrize("version", ["", "5f3e1c2a-3e8", "Tue, 01 Dec 2026 10:00:00 GMT"])
def test_what_is_no_digest_says_nothing_about_the_content(version: str) -> None:
    one, two = (Named({name: f"1000 {version}"}) for name in ("a.jsonl", "b.jsonl"))
    parts = (WeightedPart("one", "1"), WeightedPart("two", "1"))
    assert len(Mixture(parts, (one, two)).identity()) == 4
