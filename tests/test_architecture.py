"""Rules that hold for the whole of app/: rooms and imports, sizes, who reads the environment."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.rooms import ImportGraph, drawing, listing, wrong_arrows
from tests.support.imports_of_command import HEAVY
from tests.support.repository import APP, MODULES, ROOT

MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60  # from its `def` to its last line, both included


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return ImportGraph(APP)


def made_up(folder: Path, files: Mapping[str, str]) -> ImportGraph:
    """The graph of an app of these files: path below app/, and content."""
    for name, content in files.items():
        path = folder / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return ImportGraph(folder / "app")


def test_the_rooms_are_in_order(graph: ImportGraph) -> None:
    print("\n".join(listing(graph)))
    assert graph.problems() == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path, graph: ImportGraph) -> None:
    here = path.relative_to(APP.parent).as_posix()
    assert [problem for problem in wrong_arrows(graph) if problem.startswith(f"{here}:")] == []


def test_the_picture_of_the_rooms_is_current(graph: ImportGraph) -> None:
    assert (ROOT / "docs" / "rooms.svg").read_text("utf-8") == drawing(graph), (
        "docs/rooms.svg is stale: draw it with `python scripts/rooms.py --draw`"
    )


def test_the_picture_changes_with_an_import_and_with_a_purpose(tmp_path: Path) -> None:
    files = {"stores/__init__.py": '"""Objects."""', "stores/s3.py": "", "cli/main.py": ""}
    before = drawing(made_up(tmp_path, files))
    assert "Objects." in before and ">stores<" in before
    with_import = drawing(made_up(tmp_path, {"cli/main.py": "import app.stores.s3"}))
    with_purpose = drawing(made_up(tmp_path, {**files, "stores/__init__.py": '"""Keys."""'}))
    assert len({before, with_import, with_purpose}) == 3


def test_rooms_and_arrows_are_printed(tmp_path: Path) -> None:
    graph = made_up(
        tmp_path,
        {
            "__init__.py": "__version__ = '1'",
            "errors.py": "",
            "stores/__init__.py": '"""Objects."""',
            "stores/s3.py": "import app\nfrom app.errors import AppError",
            "stores/local.py": "import app.errors\nfrom app import errors",
            "cli/main.py": "def late():\n    from app.stores import s3, local",
        },
    )
    assert list(listing(graph)) == [
        "room         modules  imports",
        "errors             1  -",
        "stores             2  errors 2",
        "cli                1  stores 2",
        "2 arrows between rooms, 4 between their modules",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "from app.cli.main import run",
        "import app.cli.main",
        "from app.cli import main",
        "from ..cli.main import run",
        "from ..cli import main",
    ],
)
def test_a_wrong_arrow_is_named_with_its_line(statement: str, tmp_path: Path) -> None:
    files = {"stores/s3.py": f"import os\n{statement}", "cli/main.py": "import app.stores.s3"}
    graph = made_up(tmp_path, files)
    assert "app/stores/s3.py:2 imports app.cli.main, but stores comes before cli" in (
        graph.problems()
    )


def test_a_file_that_lies_too_far_left_is_named(tmp_path: Path) -> None:
    files = {
        "stores/cache.py": "import app.data.shards",
        "data/shards.py": "import app.data.locks",
        "data/locks.py": "",
        "training/start.py": "import app.stores.cache",
    }
    assert made_up(tmp_path, files).problems() == [
        "app/stores/cache.py:1 imports app.data.shards, but stores comes before data",
        "app/stores/cache.py lies in the wrong room: it imports app.data.shards, so it belongs in "
        "data or further right",
    ]


def test_a_file_that_lies_too_far_right_is_named(tmp_path: Path) -> None:
    files = {
        "stores/s3.py": "import app.stores.local",
        "stores/local.py": "import app.data.locks",
        "data/locks.py": "import app.errors",
        "data/shards.py": "import app.data.locks",
        "errors.py": "",
    }
    assert made_up(tmp_path, files).problems() == [
        "app/stores/local.py:1 imports app.data.locks, but stores comes before data",
        "app/data/locks.py lies in the wrong room: app.stores.local imports it, so it belongs in "
        "stores or further left",
    ]


def test_a_file_that_no_room_can_take_is_not_said_to_lie_in_a_wrong_one(tmp_path: Path) -> None:
    files = {
        "stores/local.py": "import app.data.locks",
        "stores/s3.py": "import app.stores.local",
        "data/locks.py": "import app.data.shards",
        "data/shards.py": "",
    }
    assert made_up(tmp_path, files).problems() == [
        "app/stores/local.py:1 imports app.data.locks, but stores comes before data"
    ]


@pytest.mark.parametrize("path", ["helpers.py", "helpers/text.py"])
def test_what_the_order_does_not_name_is_named(path: str, tmp_path: Path) -> None:
    (problem,) = made_up(tmp_path, {path: ""}).problems()
    assert problem == f"app/{path}: helpers has no place in the order of the rooms"


def test_a_circle_inside_a_room_is_named_once(tmp_path: Path) -> None:
    files = {
        "data/a.py": "import app.data.b",
        "data/b.py": "import app.data.c, app.data.d",
        "data/c.py": "def late():\n    from app.data import a",
        "data/d.py": "",
    }
    assert made_up(tmp_path, files).problems() == [
        "a circle of imports in data: app.data.a -> app.data.b -> app.data.c -> app.data.a"
    ]


@pytest.mark.parametrize("content", ["", "X = 1", '"""Objects."""\nfrom app.stores import s3'])
def test_a_package_holds_a_docstring_alone(content: str, tmp_path: Path) -> None:
    graph = made_up(tmp_path, {"stores/__init__.py": content, "stores/s3.py": ""})
    assert graph.problems() == ["app/stores/__init__.py holds something else than a docstring"]


def test_the_trainers_do_not_know_each_other(graph: ImportGraph) -> None:
    trainers = {"app.training.train_torch", "app.training.train_lightning"}
    between = [found for found in graph.imports if {found.importer, found.imported} == trainers]
    assert between == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_files_and_functions_stay_readable(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            n_lines = (node.end_lineno or 0) - node.lineno + 1
            assert n_lines <= MOST_LINES_OF_A_FUNCTION, node.name


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_settings_reads_the_environment(path: Path) -> None:
    if path.is_relative_to(APP / "settings"):
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"os.environ", "os.getenv", "os.environb"}


def test_the_command_line_answers_before_torch_is_imported() -> None:
    code = f"import sys, app.cli.parser; print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
