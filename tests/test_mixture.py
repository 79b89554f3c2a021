"""Several sources by weights: order, shares, ends, going on, and what is refused."""

import json
import logging
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.pieces import held_out
from app.sources import pin_source
from tests.hubserver import REVISION, hub
from tests.prepared import documents
from tests.test_sources import check_every_position, jsonl, source, texts


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


def test_a_mixture_is_gone_on_with_at_any_piece(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.mixture.TURN_CHARACTERS", 9000)
    monkeypatch.setattr("app.readers.DOCUMENT_BYTES", 9000)
    (folder / "c.txt").write_text(("x" * 99 + "\n") * 400)
    pieces = check_every_position(source(f"{folder}/a.jsonl:1,{folder}/c.txt:3,./b.jsonl:1"))
    assert sum(len(piece.text) for piece in pieces) == 40_060
    # A book gives way after each 9,000 characters; what is between two borders stays together.
    inside = False
    for piece in pieces:
        assert piece.starts_document is not inside
        inside = not piece.ends_document
    borders = sum(piece.ends_document for piece in pieces if piece.text[0] == "x")
    assert borders == 4


def test_a_long_document_is_held_out_or_not_in_all_of_its_turns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PIECE_SIZE", 20), ("LONG_ROW", 50)):
        monkeypatch.setattr(f"app.pieces.{name}", value)
    monkeypatch.setattr("app.mixture.TURN_CHARACTERS", 60)
    long = next(t for t in (f"c {n} " * 100 for n in range(1000)) if held_out(t))
    (folder / "c.jsonl").write_bytes(jsonl([long]))
    pieces = check_every_position(source("./a.jsonl:1,./c.jsonl:1"))
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
    folder: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, s3_client: object
) -> None:
    s3_client.put_object(Bucket=bucket, Key="in/a.jsonl", Body=jsonl(["x"]))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="hold the same text"):
        documents(source(f"s3://{bucket}/in/a.jsonl:1,s3://{bucket}/in:1"))
    with (
        hub(monkeypatch, folder, {"train.jsonl": b'{"text": "a"}\n'}),
        pytest.raises(ConfigError, match=r"hold the same text \(o/good\)"),
    ):
        documents(source(f"o/good:1,o/good@{REVISION}:2"))


def test_a_copy_of_a_part_is_refused(folder: Path) -> None:
    (folder / "copy").mkdir()
    (folder / "copy" / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes())
    with pytest.raises(ConfigError, match=r"\./a\.jsonl and \./copy hold the same text"):
        pin_source(source("./a.jsonl:1,./copy:1"))
