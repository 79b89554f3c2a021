"""The kind of a file by its name."""

import pytest

from app.data.kinds import FileKind, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", FileKind("text")),
        ("B.TXT", FileKind("text")),
        ("in/a.Txt.Gz", FileKind("text", "gzip")),
        ("a.jsonl.zst", FileKind("rows", "zstd")),
        ("a.ndjson", FileKind("rows")),
        ("c4-train.00000-of-01024.json.gz", FileKind("rows", "gzip")),
        ("a.json", FileKind("rows")),
        ("a.PARQUET", FileKind("table")),
        ("a.parquet.gz", None),
        ("a.csv", None),
        ("a.csv.gz", None),
        ("txt", None),
        ("a.gz", None),
        ("", None),
    ],
)
def test_the_ending_of_a_name_says_what_is_in_the_file(name: str, kind: FileKind | None) -> None:
    assert kind_of(name) == kind
