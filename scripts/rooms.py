"""The rooms of app/: which imports which, what is wrong with that, and a picture of it.

    python scripts/rooms.py           print rooms, arrows and what is wrong; then exit 1
    python scripts/rooms.py --draw    write the picture, docs/rooms.svg, too

A room is a package in app/, or one of the modules that lie in app/ itself. An arrow goes from a
module to a module that it imports, wherever in the file, also inside a function.
"""

import argparse
import ast
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

# The one place where the order of the rooms is written. A room imports only from its left.
GROUND = ("printable", "errors", "heartbeat", "failures", "process", "console")
ORDER = (
    *GROUND,
    "settings",
    "model",
    "stores",
    "data",
    "state",
    "run",
    "observe",
    "generation",
    "ranks",
    "training",
    "cli",
    "__main__",
)


@dataclass(frozen=True)
class Import:
    """One line of one file: `importer` imports `imported`. Both are modules of app."""

    importer: str
    line: int
    imported: str


class ImportGraph:
    """The modules below a folder `app`, and which imports which."""

    def __init__(self, app: Path) -> None:
        self.app = app
        self.paths: dict[str, Path] = {}
        for path in sorted(app.rglob("*.py")):
            parts = path.relative_to(app.parent).with_suffix("").parts
            self.paths[".".join(parts).removesuffix(".__init__")] = path

    @cached_property
    def imports(self) -> list[Import]:
        return [found for module in self.paths for found in self._imports_of(module)]

    @cached_property
    def rooms(self) -> dict[str, list[str]]:
        """The modules of each room, in the order of the rooms; those without a place come last."""
        found: dict[str, list[str]] = {name: [] for name in ORDER}
        for module in self.paths:
            if module != "app":
                found.setdefault(room_of(module), []).append(module)
        return {name: modules for name, modules in found.items() if modules}

    @cached_property
    def arrows(self) -> Counter[tuple[str, str]]:
        """(room, other room): how many pairs of their modules import one the other."""
        pairs = {(found.importer, found.imported) for found in self.imports}
        rooms = Counter((room_of(importer), room_of(imported)) for importer, imported in pairs)
        return Counter({pair: n for pair, n in rooms.items() if pair[0] != pair[1]})

    def purpose(self, room: str) -> str:
        """The first line of the room's docstring."""
        docstring = (
            ast.get_docstring(self.tree(f"app.{room}")) if f"app.{room}" in self.paths else ""
        )
        return (docstring or "").partition("\n")[0]

    def size(self, room: str) -> int:
        """How many modules are in the room, without the `__init__.py` of a package."""
        return sum(self.paths[name].name != "__init__.py" for name in self.rooms.get(room, ()))

    def where(self, module: str) -> str:
        return self.paths[module].relative_to(self.app.parent).as_posix()

    def problems(self) -> list[str]:
        """Everything wrong, one line each."""
        checks = (unknown_rooms, wrong_arrows, wrong_rooms, circles, code_in_packages)
        return [problem for check in checks for problem in check(self)]

    def tree(self, module: str) -> ast.Module:
        return ast.parse(self.paths[module].read_text("utf-8"), str(self.paths[module]))

    def _imports_of(self, module: str) -> Iterator[Import]:
        """Without what a module imports of itself, and without the version in `app`."""
        package = module if self.paths[module].name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(self.tree(module)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package.split(".")[: -node.level + 1 or None] if node.level else []
                origin = ".".join([*start, *([node.module] if node.module else [])])
                names = [f"{origin}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                imported = self._module(name)
                if imported not in ("", "app", module):
                    yield Import(module, node.lineno, imported)

    def _module(self, name: str) -> str:
        """The module that `name` is or comes from: `app.model.loss.z_loss` is of app.model.loss."""
        while name and name not in self.paths:
            name = name.rpartition(".")[0]
        return name


def room_of(module: str) -> str:
    """app.stores.s3 and app.stores are both in `stores`."""
    return module.split(".")[1]


def unknown_rooms(graph: ImportGraph) -> Iterator[str]:
    """Rooms and modules that the order does not name."""
    for name, modules in graph.rooms.items():
        if name not in ORDER:
            yield f"{graph.where(modules[0])}: {name} has no place in the order of the rooms"


def wrong_arrows(graph: ImportGraph) -> Iterator[str]:
    """Imports from a room further right."""
    for found in graph.imports:
        here, there = room_of(found.importer), room_of(found.imported)
        if {here, there} <= set(ORDER) and ORDER.index(there) > ORDER.index(here):
            yield (
                f"{graph.where(found.importer)}:{found.line} imports {found.imported}, "
                f"but {here} comes before {there}"
            )


def wrong_rooms(graph: ImportGraph) -> Iterator[str]:
    """Files that break the order where they lie, and would not break it in another room.

    A file may lie no further left than any module that it imports, and no further right than
    any that imports it. Where the two leave no room at all, moving the file does not help: then
    one name in it lies in the wrong room, and `wrong_arrows` says which. Where a move of either
    file at the ends of an arrow helps, both are named.
    """
    imports: defaultdict[str, dict[int, str]] = defaultdict(dict)
    importers: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for found in graph.imports:
        here, there = room_of(found.importer), room_of(found.imported)
        if {here, there} <= set(ORDER):
            imports[found.importer][ORDER.index(there)] = found.imported
            importers[found.imported][ORDER.index(here)] = found.importer
    for module in graph.paths:
        first = max(imports[module], default=0)
        last = min(importers[module], default=len(ORDER) - 1)
        if module == "app" or room_of(module) not in ORDER or first > last:
            continue
        place = ORDER.index(room_of(module))
        if place < first:
            reason = f"it imports {imports[module][first]}, so it belongs in {ORDER[first]}"
            yield f"{graph.where(module)} lies in the wrong room: {reason} or further right"
        elif place > last:
            reason = f"{importers[module][last]} imports it, so it belongs in {ORDER[last]}"
            yield f"{graph.where(module)} lies in the wrong room: {reason} or further left"


def circles(graph: ImportGraph) -> Iterator[str]:
    """Circles of imports inside a room, the shortest through each module, each of them once."""
    inside: defaultdict[str, set[str]] = defaultdict(set)
    for found in graph.imports:
        if room_of(found.importer) == room_of(found.imported):
            inside[found.importer].add(found.imported)
    seen: set[frozenset[str]] = set()
    for start in graph.paths:
        ways: list[tuple[str, ...]] = [(start,)]
        reached = {start}
        for way in ways:  # grows while it is read: the shortest ways come first
            if start in inside[way[-1]]:
                if frozenset(way) not in seen:
                    seen.add(frozenset(way))
                    yield f"a circle of imports in {room_of(start)}: {' -> '.join((*way, start))}"
                break
            ways += [(*way, step) for step in sorted(inside[way[-1]] - reached)]
            reached |= inside[way[-1]]


def code_in_packages(graph: ImportGraph) -> Iterator[str]:
    """Packages whose `__init__.py` is not a docstring alone."""
    for module, path in graph.paths.items():
        if path.name == "__init__.py" and module != "app":
            match graph.tree(module).body:
                case [ast.Expr(ast.Constant(str()))]:
                    continue
            yield f"{graph.where(module)} holds something else than a docstring"


def listing(graph: ImportGraph) -> Iterator[str]:
    """The rooms in their order, each with how often it imports from which other room."""
    yield f"{'room':<12} {'modules':>7}  imports"
    for name in graph.rooms:
        used = [f"{to} {graph.arrows[name, to]}" for to in graph.rooms if graph.arrows[name, to]]
        yield f"{name:<12} {graph.size(name):>7}  {', '.join(used) or '-'}"
    yield f"{len(graph.arrows)} arrows between rooms, {graph.arrows.total()} between their modules"


_STYLE = """
  svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
        --paper: #ffffff; --box: #f4f6fa; --edge: #c3cbd9; --ink: #1c2430; --quiet: #5a6678;
        --shaft: #aab6c8; --bead: #2f6fb5; --bead-ink: #ffffff; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #12161d; --box: #1d242f; --edge: #3b4656; --ink: #e8edf4; --quiet: #a0abbb;
          --shaft: #556274; --bead: #7db4ec; --bead-ink: #0e141c; } }
  .paper { fill: var(--paper) } .box { fill: var(--box); stroke: var(--edge) }
  .name { font-size: 16px; font-weight: 600; fill: var(--ink) }
  .text { font-size: 12.5px; fill: var(--quiet) } .title { font-size: 13px; fill: var(--ink) }
  .shaft { fill: none; stroke: var(--shaft); stroke-width: 1.5 } .way { stroke-dasharray: 1 4 }
  .head { fill: var(--shaft) } .bead { fill: var(--bead) }
  .count { font-size: 11.5px; font-weight: 600; fill: var(--bead-ink); text-anchor: middle }
"""
_TOP, _ROW, _BOX = 132, 76, (24, 470, 62)  # pixels; the box's left edge, width and height
_FIRST, _COLUMN = 560, 46  # where the first column is, and how far it is to the next


def drawing(graph: ImportGraph) -> str:
    """The rooms as an SVG: the last one on top, so that every arrow goes down.

    From each box a dotted way leads to the right, and from the top a shaft down into each box. A
    bead where they cross is an arrow: the room on the left imports the one that the shaft leads
    to. Its number says how many pairs of modules do. The modules of the ground are one box.
    """
    floors = [name for name in reversed(ORDER) if name in graph.rooms and name not in GROUND]
    floors.append("the ground")
    columns = {name: _FIRST + _COLUMN * number for number, name in enumerate(floors[1:])}
    width, height = max(columns.values()) + 84, _TOP + _ROW * len(floors) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="The rooms of app/">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
        *_legend(),
    ]
    for name, x in columns.items():
        parts += _shaft(name, x, _y(floors.index(name)))
    for number, name in enumerate(floors):
        beads = {columns[to]: _count(graph, name, to) for to in floors[number + 1 :]}
        parts += _way({x: n for x, n in beads.items() if n}, _y(number))
        parts += _box(graph, name, _y(number))
    return "\n".join([*parts, "</svg>", ""])


def _y(floor: int) -> int:
    return _TOP + _ROW * floor


def _count(graph: ImportGraph, room: str, to: str) -> int:
    return sum(graph.arrows[room, name] for name in (GROUND if to == "the ground" else (to,)))


def _legend() -> list[str]:
    lines = (
        "The rooms of app/, drawn by scripts/rooms.py from the imports.",
        "Every arrow goes down: a room may import any room below it, and none above.",
        "A bead on a row: this room imports from the room to which the column leads,",
        "with the number of pairs of modules of which one imports the other.",
    )
    return [_text(_BOX[0], 36 + 20 * n, "title", line) for n, line in enumerate(lines)]


def _shaft(name: str, x: int, y: int) -> list[str]:
    """The column of a room: its name, a line down to its row, and then left, into its box."""
    edge, turn = _BOX[0] + _BOX[1], y + 16
    return [
        f'<path class="shaft" d="M{x} {_TOP - 8}V{turn - 8}q0 8 -8 8H{edge + 8}"/>',
        f'<path class="head" d="M{edge + 1} {turn}l10 -5v10z"/>',
        f'<text class="title" transform="translate({x + 4} {_TOP - 16}) rotate(-45)">{name}</text>',
    ]


def _way(beads: dict[int, int], y: int) -> list[str]:
    """From the box on a floor to the right, with a bead for each arrow."""
    if not beads:
        return []
    level = y + 44
    parts = [f'<path class="shaft way" d="M{_BOX[0] + _BOX[1]} {level}H{max(beads)}"/>']
    for x, n in beads.items():
        parts.append(f'<circle class="bead" cx="{x}" cy="{level}" r="{9 + min(n, 20) / 5:g}"/>')
        parts.append(_text(x, level + 4, "count", str(n)))
    return parts


def _box(graph: ImportGraph, name: str, y: int) -> list[str]:
    left, width, height = _BOX
    if name == "the ground":
        n, purpose = sum(map(graph.size, GROUND)), f"{', '.join(GROUND)}: what every room needs."
    else:
        n, purpose = graph.size(name), graph.purpose(name)
    size = f"{n} module{'s' * (n > 1)}"
    return [
        f'<rect class="box" x="{left}" y="{y}" width="{width}" height="{height}" rx="6"/>',
        _text(left + 14, y + 21, "name", name),
        _text(left + width - 14, y + 21, "text", size, "end"),
        *(
            _text(left + 14, y + 38 + 16 * row, "text", line)
            for row, line in enumerate(textwrap.wrap(purpose.replace("`", ""), 64))
        ),
    ]


def _text(x: int, y: int, kind: str, text: str, anchor: str = "") -> str:
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x}" y="{y}"{anchored}>{escape(text)}</text>'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", action="store_true", help="write docs/rooms.svg")
    root = Path(__file__).resolve().parents[1]
    graph = ImportGraph(root / "app")
    if parser.parse_args().draw:
        (root / "docs" / "rooms.svg").write_text(drawing(graph), "utf-8")
    problems = graph.problems()
    print("\n".join([*listing(graph), *problems]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
