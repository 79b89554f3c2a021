"""`--json`: one document on stdout, with the fields that docs/command-line.md names."""

import json
import re
from pathlib import Path

import pytest

from app.run.layout import MANIFEST
from tests.support.repository import ROOT
from tests.support.train_command import Job

COMMANDS = {
    "checkpoints list": ["checkpoints", "list"],
    "checkpoints verify": ["checkpoints", "verify"],
    "checkpoints diff": ["checkpoints", "diff", "2", "latest"],
    "evaluate": ["evaluate", "--text", "{text}", "--no_save"],
    "quarantine list": ["quarantine", "list"],
    "config": ["config"],
    "plan": ["plan", "--preemptions_per_node_day", "100", "--restart_seconds", "20"],
    "data show": ["data", "show", "--step", "1"],
    "data stats": ["data", "stats"],
}


def documented(command: str) -> set[str]:
    """All words in code of its line."""
    page = (ROOT / "docs/command-line.md").read_text("utf-8")
    (fields,) = re.findall(rf"^\| `{command}` \| (.*) \|$", page, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", fields))


def fields_of(
    document: object, within: tuple[str, ...] = ("attempts", "splits", "settings", "versions")
) -> set[str]:
    """Every key at any depth, but those below what the page does not list field by field."""
    if isinstance(document, list):
        return {key for entry in document for key in fields_of(entry, within)}
    if not isinstance(document, dict):
        return set()
    below = (value for key, value in document.items() if key not in within)
    return set(document).union(*(fields_of(value, within) for value in below))


def test_every_command_with_a_table_prints_one_document_with_the_documented_fields(
    job: Job, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text that no run has seen\n" * 3)
    assert job(["train"])[0] == 0
    for command, words in COMMANDS.items():
        code, said, log = job([*(word.format(text=text) for word in words), "--json"])
        assert code == 0, log
        found = fields_of(json.loads(said))
        assert found and found <= documented(command), command


def test_damage_is_in_the_document_and_in_the_exit_code(job: Job, tmp_path: Path) -> None:
    assert job(["train"])[0] == 0
    code, said, _ = job(["checkpoints", "list", "--json"])
    newest = json.loads(said)["checkpoints"][0]["name"]
    (tmp_path / f"store/tiny/checkpoints/{newest}/{MANIFEST}").write_text("{")
    code, said, log = job(["checkpoints", "verify", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(said)["findings"]}
    assert code == 78 and "is damaged" in log
    assert findings[newest]["damaged"] and not findings[newest]["whole"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_names_every_command(command: str) -> None:
    assert documented(command)
