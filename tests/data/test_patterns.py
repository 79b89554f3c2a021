"""One notation for the files of a disk and of a bucket, and what is said of those left out."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.data.downloads import BucketTree
from app.data.files import LocalTree
from app.data.patterns import At, Tree, choose, names_in_common_folder
from app.errors import AppError, ConfigError, NotFound

NAMES = (
    "in/B.TXT",
    "in/a.txt",
    "in/a-1/x.txt",
    "in/old/b.jsonl",
    "in/old/older/c.jsonl.gz",
    "in/part [1].txt",
    "in/set [2]/d.ndjson",
    "in/.hidden.txt",
    "in/.git/e.txt",
    "in/lost+found/f.txt",
    "in/notes.md",
    "in/meta.json",
)


def on_disk(folder: Path, names: tuple[str, ...]) -> Tree:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (folder / name).write_text("text")
    return LocalTree(folder)


def in_a_bucket(folder: Path, names: tuple[str, ...]) -> Tree:
    markers = {f"{name.rpartition('/')[0]}/": 0 for name in names}
    return BucketTree("bucket", {**dict.fromkeys(names, 4), **markers, "in": 0})


MakeTree = Callable[[Path, tuple[str, ...]], Tree]
on_both = pytest.mark.parametrize("make", [on_disk, in_a_bucket])


def at(pattern: str) -> At:
    return tuple(pattern.split("/"))


@on_both
@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.txt", ["a.txt", "part [1].txt"]),
        ("in/*.[tT][xX][tT]", ["B.TXT", "a.txt", "part [1].txt"]),
        ("in/?.txt", ["a.txt"]),
        ("in/[!b-z].txt", ["a.txt"]),
        ("in/part [1].txt", ["part [1].txt"]),
        ("in/part ?1].txt", ["part [1].txt"]),
        ("in/set [2]/*", ["d.ndjson"]),
        ("in/*/*.jsonl", ["b.jsonl"]),
        ("in/**/*.jsonl*", ["b.jsonl", "older/c.jsonl.gz"]),
        ("**/*.ndjson", ["d.ndjson"]),
        ("**/old/**/c*", ["c.jsonl.gz"]),
        ("in/.hidden.txt", [".hidden.txt"]),
        ("in/.*", [".hidden.txt"]),
        ("in/.git", ["e.txt"]),
        ("in/lost+found", ["f.txt"]),
        ("in/*.json", ["meta.json"]),
        ("in/meta.json", ["meta.json"]),
        (
            "in",
            [
                "B.TXT",
                "a-1/x.txt",
                "a.txt",
                "old/b.jsonl",
                "old/older/c.jsonl.gz",
                "part [1].txt",
                "set [2]/d.ndjson",
            ],
        ),
    ],
)
def test_a_pattern_means_the_same_on_a_disk_and_in_a_bucket(
    make: MakeTree, pattern: str, expected: list[str], tmp_path: Path
) -> None:
    found = choose(make(tmp_path, NAMES), at(pattern), "DATASET=it")
    assert names_in_common_folder(found) == expected


@on_both
def test_the_order_is_that_of_the_names_folder_by_folder(make: MakeTree, tmp_path: Path) -> None:
    tree = make(tmp_path, ("in/a/x.txt", "in/a-b/x.txt", "in/a.txt", "in/B.txt"))
    assert names_in_common_folder(choose(tree, ("in",), "")) == [
        "B.txt",
        "a/x.txt",
        "a-b/x.txt",
        "a.txt",
    ]


@on_both
def test_one_line_says_what_is_left_out_and_how_much(
    make: MakeTree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    choose(make(tmp_path, NAMES), at("in"), "DATASET=it")
    assert caplog.messages == [
        "DATASET=it: 7 files are read; left out: hidden: 2 (.git, .hidden.txt); "
        "the disk's own: 1 (lost+found); "
        ".json, which is only read where DATASET says .json: 1 (meta.json); "
        "other endings: 1 (notes.md)"
    ]
    caplog.clear()
    choose(make(tmp_path, NAMES), at("in/*.txt"), "DATASET=it")
    assert caplog.messages == ["DATASET=it: 2 files are read; left out: hidden: 1 (.hidden.txt)"]


@on_both
@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("in/none.txt", NotFound, r"^DATASET=it does not exist$"),
        ("none/*.txt", NotFound, r"^DATASET=it does not exist$"),
        ("in/a.txt/*.txt", NotFound, r"^DATASET=it does not exist$"),
        ("in/*.parquet", NotFound, r"^DATASET=it matches nothing$"),
        ("in/*.md", NotFound, r"holds no file of \.txt.*; left out: other endings: 1 \(notes\.md"),
        ("in/notes.md", ConfigError, r"^DATASET=it: files end with \.txt"),
        ("in/o*", NotFound, r"left out: folders, which only \*\* looks into: 1 \(old\)$"),
    ],
)
def test_what_names_no_file_of_ours_is_refused(
    make: MakeTree, pattern: str, error: type[AppError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        choose(make(tmp_path, NAMES), at(pattern), "DATASET=it")
    assert caught.type is error


def test_a_linked_folder_is_read_and_a_circle_of_links_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app")
    on_disk(tmp_path, ("set/a.txt", "big/b.txt"))
    (tmp_path / "set" / "more").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "back").symlink_to(tmp_path / "set")
    for pattern in ("set", "set/**", "set/**/*.txt", "set/**/**/*.txt"):
        caplog.clear()
        found = choose(LocalTree(tmp_path), at(pattern), "DATASET=it")
        assert names_in_common_folder(found) == ["a.txt", "more/b.txt"]
        assert "left out: links in a circle: 1 (more/back)" in caplog.text


@pytest.mark.parametrize("pattern", ["set", "set/**/*.txt", "set/*/*.txt"])
def test_what_may_be_a_folder_that_is_gone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    caplog.set_level(logging.INFO, "app")
    on_disk(tmp_path, ("set/in/a.txt", "set/in/old/b.txt"))
    for name in ("set/gone", "set/in/old/.hidden", "set/in/old/gone"):
        (tmp_path / name).symlink_to("nowhere")
    choose(LocalTree(tmp_path), at(pattern), "DATASET=it")
    assert "links to nothing: " in caplog.text and "gone" in caplog.text


@pytest.mark.parametrize("pattern", ["set", "set/*.txt", "set/b.txt"])
def test_a_file_that_is_no_file_is_refused_by_name(tmp_path: Path, pattern: str) -> None:
    on_disk(tmp_path, ("set/a.txt",))
    odd = tmp_path / "set" / "b.txt"
    odd.symlink_to("nowhere")
    with pytest.raises(NotFound, match=r"set/b\.txt is a link to what does not exist"):
        choose(LocalTree(tmp_path), at(pattern), "DATASET=it")
    odd.unlink()
    os.mkfifo(odd)
    with pytest.raises(ConfigError, match=r"set/b\.txt is a pipe, a socket or a device"):
        choose(LocalTree(tmp_path), at(pattern), "DATASET=it")


def test_a_marker_of_a_folder_is_no_file_and_an_empty_file_is_one() -> None:
    tree = BucketTree("bucket", {"in/": 0, "in/a.txt": 4, "in/old": 0, "in/old/b.txt": 0})
    for pattern in (("in",), ("in", "**"), ()):
        assert names_in_common_folder(choose(tree, pattern, "")) == ["a.txt", "old/b.txt"]
    with pytest.raises(NotFound, match=r"^DATASET=it holds no file"):
        choose(BucketTree("bucket", {"in/": 0}), ("in",), "DATASET=it")


def test_keys_that_no_disk_could_hold_are_names_too() -> None:
    tree = BucketTree("bucket", {"in//a.txt": 1, "/b.txt": 1, "in/../c.txt": 1})
    assert choose(tree, ("in", "", "*.txt"), "") == [("in", "", "a.txt")]
    assert ("", "b.txt") in choose(tree, (), "")
