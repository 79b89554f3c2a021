"""Rules for the tests themselves: what they may import of each other, and what they may patch."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.repository import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))
PATCHERS = {"setattr", "delattr", "patch", "object"}  # monkeypatch's, and those of unittest.mock


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Every name that an import gives, and what it stands for in full."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({(a.asname or a.name.split(".")[0]): a.name for a in node.names})
        elif isinstance(node, ast.ImportFrom):
            found.update({(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names})
    return found


def imports_of_test_modules(source: str) -> list[str]:
    names = imported_names(ast.parse(source)).values()
    return [name for name in names if re.match(r"tests\.(\w+\.)*test_", name)]


def internal(dotted: str) -> bool:
    """Whether a part of the name is private, or written like a constant."""
    return any(
        (part.startswith("_") and not part.endswith("__")) or re.fullmatch("[A-Z][A-Z0-9_]*", part)
        for part in dotted.split(".")
    )


def text(node: ast.expr | None) -> str:
    """A string, with ? for each part of it that is only known when the test runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) or "?" for part in node.values)
    return ""


def patched_internals(source: str) -> list[str]:
    """What of app is patched there that is private, a constant, or cannot be told."""
    return list(_patched(ast.parse(source)))


def _patched(tree: ast.Module) -> Iterator[str]:
    names = imported_names(tree)
    for node in ast.walk(tree):
        named = text(node) if isinstance(node, ast.expr) else ""
        if re.fullmatch(r"app(\.[\w?]+)+", named) and (internal(named) or named.endswith("?")):
            yield f"line {node.lineno}: {named}"  # type: ignore[attr-defined]
        targets: list[tuple[ast.expr, str]] = []
        if isinstance(node, ast.Call) and len(node.args) > 1:
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in PATCHERS and (attribute := text(node.args[1])):
                targets = [(node.args[0], attribute)]
        elif isinstance(node, ast.Assign):
            targets = [
                (target.value, target.attr)
                for target in node.targets
                if isinstance(target, ast.Attribute) and _origin(target, names).startswith("app.")
            ]
        for target, attribute in targets:
            origin = _origin(target, names)
            if origin.split(".")[0] in ("", "app") and internal(
                f"{ast.unparse(target)}.{attribute}"
            ):
                yield f"line {target.lineno}: {ast.unparse(target)}.{attribute}"


def _origin(node: ast.expr, names: dict[str, str]) -> str:
    """Where the first name of `a.b.c` was imported from; empty if it was not."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_module_imports_from_another(path: Path) -> None:
    assert imports_of_test_modules(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_patches_what_is_private_or_a_constant(path: Path) -> None:
    assert patched_internals(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.run.test_lease import FakeTime",
        "from tests.run import test_lease",
        "import tests.test_architecture",
        "def test():\n    from tests.drills.test_sigterm import started",
    ],
)
def test_an_import_from_a_test_module_is_found(source: str) -> None:
    assert len(imports_of_test_modules(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "monkeypatch.setattr('app.stores.s3._STALE', 1)",
        "patch.setattr('app.observe.metrics.MOST_ROWS', 1)",
        "mock.patch('app.data.data_dir._try_lock')",
        "monkeypatch.setattr(f'app.data.{room}.PIECE_SIZE', 1)",
        "monkeypatch.setattr(f'app.data.pieces.{name}', 1)",
        "at('app.training.attempt.Attempt._log_row', 3, act)",
        "from app.training import spot\nmonkeypatch.setattr(spot, '_ANSWER_SECONDS', 1)",
        "import app.data.pieces as p\np.LONG_ROW = 3",
        "from app.data.preparation import Preparation\nsetattr(Preparation, '_wait', 1)",
        "from app.data import data_dir as locks\nmock.patch.object(locks, '_try_lock')",
        "monkeypatch.setattr(attempt, '_advance', interrupt)",
        "monkeypatch.setattr(attempt._metrics, 'add', rows.append)",
    ],
)
def test_a_patched_internal_is_found(source: str) -> None:
    assert len(patched_internals(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "monkeypatch.setattr('app.stores.local.os.fsync', failing)",
        "monkeypatch.setattr(f'app.{room}.write_durably', write)",
        "import torch\nmonkeypatch.setattr(torch._C, '_get', 1)",
        "monkeypatch.setattr(store, 'put', refuse)",
        "class Fake:\n    def __init__(self):\n        self._seen = []",
    ],
)
def test_other_patches_are_left_alone(source: str) -> None:
    assert patched_internals(source) == []
