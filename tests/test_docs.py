"""What the pages name is in the tree: paths, functions, tests, modules, links and their anchors.

A path is written from the repository's root, from `tests/` or from `app/`.
`file::name` names a function, a class or `Class.method`. `…name` stands for whatever comes before
the name, where the file or the class is clear. `<name>` in a path stands for something new.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    if path.name != "CHANGELOG.md"  # history: it names what there was
)
FOLDERS = ("app/", "bench/", "docs/", "k8s/", "scripts/", "tests/", ".ci/")
CODE = re.compile(r"```.*?```|`[^`\n]+`|^ {4}[^\n]*$", re.DOTALL | re.MULTILINE)
LONGEST_README = 160
PLACEHOLDER = re.compile(r"[<>*{}$]")


def words(text: str) -> Iterator[str]:
    """What is written as code, word by word, without the marks around a word."""
    for code in CODE.findall(text):
        for word in code.replace("`", " ").split():
            yield word.strip("\"'(),;:")


def found(path: str) -> Path | None:
    """The file or folder that a page names so; a bare name is that of any module."""
    places = [ROOT / path, ROOT / "tests" / path, ROOT / "app" / path]
    if "/" not in path and path.endswith(".py"):
        places += ROOT.glob(f"app/**/{path}")
    return next((place for place in places if place.exists()), None)


@cache
def names(path: Path) -> frozenset[str]:
    """Functions and classes of a module, and the methods of its classes as `Class.method`."""

    def inside(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{prefix}{child.name}.")

    return frozenset(inside(ast.parse(path.read_text("utf-8")), ""))


def has(path: Path, name: str) -> bool:
    if name.startswith("…"):
        return any(f".{known}".endswith(f".{name[1:]}") for known in names(path))
    return name in names(path)


def missing(text: str) -> Iterator[str]:
    """Each word of `text` that names something in this tree that is not there."""
    last: Path | None = None  # the file that `…name` belongs to
    for word in words(text):
        if PLACEHOLDER.search(word) or "://" in word:
            continue
        path, _, name = word.partition("::")
        if word.startswith("…test_"):
            if last is None or not has(last, word):
                yield word
        elif path.startswith(FOLDERS) or path.endswith(".py"):
            last = found(path)
            if last is None or (name and not has(last, name)):
                yield word
    for module in re.findall(r"python3? -m ((?:app|bench|tests)[\w.]*)", text):
        if not (found(module.replace(".", "/") + ".py") or found(module.replace(".", "/"))):
            yield f"-m {module}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


def links(page: Path) -> set[Path]:
    """The pages that it links to, as files of this tree."""
    targets = re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text("utf-8"))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


def unreachable(root: Path) -> set[str]:
    """Pages below docs/ that the README does not lead to; those of docs/ itself in one step."""
    readme = root / "README.md"
    near, seen, ahead = links(readme), {readme}, {readme}
    while ahead:
        seen |= ahead
        ahead = {page for known in ahead for page in links(known) if page.exists()} - seen
    deep = {page for page in root.glob("docs/*/**/*.md") if page not in seen}
    far = {page for page in root.glob("docs/*.md") if page not in near}
    return {str(page.relative_to(root)) for page in deep | far}


def test_a_newcomer_reads_at_most_160_lines() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= LONGEST_README


def test_every_page_is_one_click_from_the_readme() -> None:
    assert unreachable(ROOT) == set()


def test_a_page_that_no_way_leads_to_is_found(tmp_path: Path) -> None:
    for name, text in {
        "README.md": "[near](docs/near.md#part), [away](https://example.com/a.md)",
        "docs/near.md": "[far](far.md), [why](why/known.md)",
        "docs/far.md": "[back](../README.md)",
        "docs/why/known.md": "",
        "docs/why/lost.md": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert unreachable(tmp_path) == {"docs/far.md", "docs/why/lost.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert list(missing(page.read_text("utf-8"))) == []
    assert list(dead_links(page)) == []


@pytest.mark.parametrize(
    "named",
    [
        "`app/gone.py`",
        "`test_gone.py`",
        "`app/stores/opening.py::gone`",
        "`run/test_lease.py::test_gone`",
        "`run/test_lease.py` and `…test_gone`",
        "    python -m tests.drills.gone --kills 1",
        "    python3 tests/drills/gone.py",
        "```\nscripts/gone\n```",
    ],
)
def test_what_is_not_there_is_found(named: str) -> None:
    assert len(list(missing(named))) == 1


@pytest.mark.parametrize(
    "named",
    [
        "`app/stores/opening.py::open_store`",
        "`app/run/lease.py::Lease.acquire`",
        "`drills/test_kill_anywhere.py`, `…test_kills_anywhere_cost_not_one_bit`",
        "`app/stores/<name>.py`",
        "    python -m app train",
    ],
)
def test_what_is_there_is_not_complained_of(named: str) -> None:
    assert list(missing(named)) == []
