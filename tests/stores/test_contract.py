"""One contract, kept by every store."""

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigError, Damaged, NotFound
from app.stores.contract import Store, is_key
from app.stores.opening import open_store
from tests.support.store_contents import keys, leave_half_written

MIB = 2**20
BAD_KEYS = ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a b", "a\\b", "a\0", "é", ".store-lock"]


class TestEveryStore:
    def test_returns_what_was_put(self, store: Store) -> None:
        store.put("a/b.json", [b"one", memoryview(b"two"), b"", b"three"])
        content, etag = store.get("a/b.json")
        assert content == b"onetwothree"
        assert etag
        assert [(info.key, info.size) for info in store.list("")] == [("a/b.json", 11)]

    def test_puts_and_fetches_content_of_many_parts(self, store: Store, tmp_path: Path) -> None:
        block = random.Random(7).randbytes(3 * MIB + 17)
        store.put("large.bin", [block, memoryview(block)[: 2 * MIB], b"x", block, block])
        path = store.fetch("large.bin", tmp_path / "down")
        assert path.read_bytes() == block + block[: 2 * MIB] + b"x" + block + block
        assert next(store.list("")).size == path.stat().st_size

    @pytest.mark.parametrize("start", [0, 1, 17 * MIB, 20 * MIB + 3])
    def test_gives_the_rest_of_an_object_in_order(self, start: int, store: Store) -> None:
        content = random.Random(7).randbytes(5 * MIB) * 4 + b"end"
        store.put("a/large.bin", [content])
        blocks = list(store.blocks("a/large.bin", start, len(content)))
        assert b"".join(blocks) == content[start:]
        assert max(map(len, blocks), default=0) <= 8 * MIB

    def test_gives_no_more_of_an_object_than_there_is(self, store: Store) -> None:
        store.put("a", [b"12345"])
        assert b"".join(store.blocks("a", 1, 3)) == b"23"
        assert b"".join(store.blocks("a", 3, 30 * MIB)) == b"45"
        assert b"".join(store.blocks("a", 9, 30)) == b""
        with pytest.raises(NotFound, match="missing"):
            list(store.blocks("missing", 0, 3))

    def test_puts_an_empty_object(self, store: Store, tmp_path: Path) -> None:
        store.put("empty", [])
        assert store.get("empty")[0] == b""
        assert store.fetch("empty", tmp_path).read_bytes() == b""

    def test_replaces_what_is_there(self, store: Store) -> None:
        store.put("a", [b"long content"])
        first = store.get("a")[1]
        store.put("a", [b"new"])
        content, second = store.get("a")
        assert content == b"new"
        assert first != second

    def test_tells_the_etag_of_an_object_of_any_size(self, store: Store) -> None:
        assert store.etag("a") is None
        store.put("a/b", [b"x"])
        assert store.etag("a/b") == store.get("a/b")[1]
        assert store.etag("a") is None and store.etag("a/b/c") is None
        store.put("large", [bytes(20 * MIB)])
        etag = store.etag("large")
        assert etag and store.put_if_match("large", b"small", etag)

    def test_says_not_found_for_a_missing_object(self, store: Store, tmp_path: Path) -> None:
        store.put("a/b", [b"x"])
        for key in ("missing", "a", "a/c", "a/b/c"):
            with pytest.raises(NotFound, match=key):
                store.get(key)
            with pytest.raises(NotFound, match=key):
                store.fetch(key, tmp_path)
            with pytest.raises(NotFound, match=key):
                store.move(key, "elsewhere")
        assert keys(store) == ["a/b"]

    def test_calls_an_object_that_is_too_large_damaged(self, store: Store) -> None:
        store.put("a", [b"12345"])
        assert store.get("a", max_bytes=5)[0] == b"12345"
        with pytest.raises(Damaged, match="more than 4 bytes"):
            store.get("a", max_bytes=4)

    def test_lists_a_folder_and_nothing_beside_it(self, store: Store) -> None:
        for key in ("b/2", "b/1", "b-c/1", "b/d/3", "bb/1", "a"):
            store.put(key, [b"x"])
        assert keys(store) == ["a", "b-c/1", "b/1", "b/2", "b/d/3", "bb/1"]
        assert keys(store, "b") == keys(store, "b/") == ["b/1", "b/2", "b/d/3"]
        assert keys(store, "none") == keys(store, "a/") == []

    def test_lists_nothing_where_nothing_was_put(self, store: Store) -> None:
        assert keys(store) == []

    def test_deletes_and_does_not_mind_missing_keys(self, store: Store) -> None:
        for key in ("a/1", "a/2", "b"):
            store.put(key, [b"x"])
        store.delete(["a/1", "a/2", "missing", "a/1/below", "missing/too"])
        store.delete([])
        assert keys(store) == ["b"]

    def test_moves_and_replaces_the_target(self, store: Store) -> None:
        store.put("from/a", [b"new"])
        store.put("to/b", [b"old"])
        store.move("from/a", "to/b")
        assert store.get("to/b")[0] == b"new"
        assert keys(store) == ["to/b"]

    def test_creates_only_what_is_absent(self, store: Store) -> None:
        etag = store.put_if_absent("a/lease", b"1")
        assert etag == store.get("a/lease")[1]
        assert store.put_if_absent("a/lease", b"2") is None
        assert store.get("a/lease")[0] == b"1"

    def test_replaces_only_what_did_not_change(self, store: Store) -> None:
        first = store.put_if_absent("lease", b"1")
        assert first
        second = store.put_if_match("lease", b"2", first)
        assert second == store.get("lease")[1] != first
        assert store.put_if_match("lease", b"3", first) is None
        assert store.get("lease")[0] == b"2"

    def test_does_not_replace_what_vanished(self, store: Store) -> None:
        etag = store.put_if_absent("lease", b"1")
        assert etag
        store.delete(["lease"])
        assert store.put_if_match("lease", b"2", etag) is None
        assert keys(store) == []

    def test_lets_one_of_many_creators_win(self, store: Store) -> None:
        needs_conditions(store)
        etags = race(lambda name: store.put_if_absent("lease", name))
        assert store.get("lease") == single_winner(etags)

    def test_lets_one_of_many_replacers_win(self, store: Store) -> None:
        needs_conditions(store)
        etag = store.put_if_absent("lease", b"old")
        assert etag
        etags = race(lambda name: store.put_if_match("lease", name, etag))
        assert store.get("lease") == single_winner(etags)

    def test_refuses_keys_that_could_lead_elsewhere(self, store: Store, tmp_path: Path) -> None:
        uses: list[Callable[[str], object]] = [
            lambda key: store.put(key, [b"x"]),
            lambda key: store.put_if_absent(key, b"x"),
            lambda key: store.put_if_match(key, b"x", "etag"),
            store.get,
            lambda key: store.fetch(key, tmp_path),
            lambda key: store.delete(["fine", key]),
            lambda key: store.move(key, "fine"),
        ]
        for key in BAD_KEYS:
            for use in uses:
                with pytest.raises(ConfigError, match="not the name of an object"):
                    use(key)
        assert not list(tmp_path.rglob("*"))

    def test_checks_itself_and_leaves_nothing(
        self, store: Store, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        store.check()
        assert store.conditional_writes is ("rclone" not in request.node.name)
        assert keys(store) == []
        assert not list(tmp_path.rglob("*"))

    def test_tells_of_what_is_half_written_and_discards_it(self, store: Store) -> None:
        beside = open_store(store.uri.removesuffix("/run"), "run-2")
        for place, key in ((store, "half"), (store, "a/b/c"), (store, "a/b/d"), (beside, "a/b/c")):
            leave_half_written(place, key)
        found = store.half_written()
        assert sorted(half.folder for half in found) == ["", "a/b", "a/b"]
        assert keys(store) == []
        for half in found:
            if half.folder == "a/b":
                store.discard(half)
                store.discard(half)  # somebody was faster: no error
        assert [half.folder for half in store.half_written()] == [""]
        assert len(beside.half_written()) == 1

    def test_names_its_root(self, store: Store) -> None:
        assert store.uri.endswith("/run")


def needs_conditions(store: Store) -> None:
    if not store.conditional_writes:
        pytest.skip("this server ignores conditions: nothing keeps two writers apart")


def race(write: Callable[[bytes], str | None]) -> dict[bytes, str | None]:
    names = [f"writer {number}".encode() for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(write, names), strict=True))


def single_winner(etags: dict[bytes, str | None]) -> tuple[bytes, str]:
    winners = [(name, etag) for name, etag in etags.items() if etag is not None]
    assert len(winners) == 1
    return winners[0]


@given(st.text(max_size=12))
def test_a_key_never_resolves_outside_its_root(text: str) -> None:
    if is_key(text):
        path = os.path.normpath(f"/root/{text}")
        assert path == f"/root/{text}"
