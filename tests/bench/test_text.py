"""The text that the benches of the data path are measured on."""

import json
from pathlib import Path

from bench.text import write_text


def test_text_is_the_same_each_time_and_repeats_no_document(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    write_text(first, 12_000_000)  # more than one round of the documents
    write_text(second, 12_000_000)
    assert first.read_bytes() == second.read_bytes()
    assert 12_000_000 <= first.stat().st_size < 14_000_000
    rounds: dict[str, set[str]] = {}
    for line in first.read_text().splitlines():
        text = json.loads(line)["text"]
        rounds.setdefault(text.splitlines()[0], set()).add(text)
    assert list(rounds) == ["# 0", "# 1"]
    assert len(set.union(*rounds.values())) == sum(map(len, rounds.values()))
