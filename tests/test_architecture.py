"""Rules that hold for the whole of app/: import direction, sizes, who reads the environment."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"
MODULES = sorted(APP.rglob("*.py"))

# Each room imports only from rooms above it. The first four are modules: the ground.
ORDER = [
    "errors",
    "console",
    "heartbeat",
    "failures",
    "settings",
    "model",
    "stores",
    "data",
    "state",
    "run",
    "observe",
    "generation",
    "training",
    "cli",
    "__main__",
]
HEAVY = {"torch", "pytorch_lightning", "transformers", "datasets", "tensorboard", "numpy"}


def room(path: Path) -> str:
    """app/stores/s3.py and app/stores/contract.py are both in the room `stores`."""
    return path.relative_to(APP).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "app":
                yield from (f"app.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    assert here in ORDER, f"{here} has no place in the order of imports"
    for name in imported(parsed(path)):
        if name.startswith("app."):
            there = name.split(".")[1]
            assert there == here or ORDER.index(there) < ORDER.index(here), (
                f"{here} imports {there}"
            )


def test_the_trainers_do_not_know_each_other() -> None:
    assert "app.training.train_torch" not in set(
        imported(parsed(APP / "training/train_lightning.py"))
    )
    assert "app.training.train_lightning" not in set(
        imported(parsed(APP / "training/train_torch.py"))
    )


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_and_functions_stay_readable(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
    for node in ast.walk(parsed(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno <= 62, node.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_settings_reads_the_environment(path: Path) -> None:
    if room(path) == "settings":
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"os.environ", "os.getenv", "os.environb"}


def test_the_command_line_answers_before_torch_is_imported() -> None:
    import subprocess
    import sys

    code = f"import sys, app.cli.parser; print(sorted({sorted(HEAVY)!r} & sys.modules.keys()))"
    code = code.replace(repr(sorted(HEAVY)) + " &", f"set({sorted(HEAVY)!r}) &")
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=APP.parent, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
