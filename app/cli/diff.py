"""`checkpoints diff`: what differs between two checkpoints, of one run or of two."""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.arguments import Commands, count_from
from app.cli.named_run import existing_run, scratch_folder
from app.console import counted
from app.errors import NotFound
from app.failures import disk_failures
from app.observe.chosen_checkpoint import BEST, chosen_checkpoint
from app.printable import show
from app.run.fetching import fetch
from app.run.layout import CheckpointName
from app.run.view import RunView, read_view
from app.settings.combined import Settings
from app.stores.contract import Store
from app.training.preemption import StopRequest

if TYPE_CHECKING:  # it loads torch
    from app.state.comparison import Comparison, Description

_WIDEST = 44  # columns of a value
_Pair = tuple[Any, Any]


def add_diff(verbs: Commands) -> None:
    diff = verbs.add(
        "diff", diff_checkpoints, "compare the weights and the settings of two checkpoints"
    )
    what = "a step, a name, latest, best, or the folder of a checkpoint that was pulled"
    diff.add_argument("first", metavar="A", help=what)
    diff.add_argument("second", metavar="B", help=what)
    diff.add_argument(
        "--top", type=count_from(0), default=20, help="tensors to show, 0: all; default: 20"
    )
    diff.add_argument("--json", action="store_true", help="as JSON, with all tensors")


def diff_checkpoints(settings: Settings, arguments: argparse.Namespace, _: StopRequest) -> None:
    """Nothing is written but to a scratch folder.

    Raises NotFound where there is no such checkpoint or folder, Damaged for one that is not whole,
    IncompatibleRun for a format that cannot be read, and the store's errors.
    """
    from app.state.comparison import compare_tensors, describe

    with scratch_folder(settings) as scratch:
        source = _Source(settings, scratch)
        first, second = source.folder(arguments.first), source.folder(arguments.second)
        with disk_failures(f"{first} or {second}"):
            ours, theirs = describe(first), describe(second)
            comparison = compare_tensors(first, second)
    names = (arguments.first, arguments.second)
    if arguments.json:
        print(json.dumps(_as_json(names, ours, theirs, comparison), indent=1, allow_nan=False))
        return
    for line in _lines(names, ours, theirs, comparison, arguments.top):
        show(line)


@dataclass
class _Source:
    """Where the two come from: folders, or the run that the settings name, which is read once."""

    settings: Settings
    scratch: Path

    @cached_property
    def _run(self) -> tuple[Store, RunView]:
        store = existing_run(self.settings)
        return store, read_view(store)

    def folder(self, text: str) -> Path:
        """A folder with the weights and what describes them. A checkpoint of the run is fetched,
        and compared with its manifest; a local one stays where it is."""
        if not (text.isdecimal() or text in ("latest", BEST) or CheckpointName.parse(text)):
            if not Path(text).is_dir():
                raise NotFound(
                    f"{text} is no folder here, and no step of a run: say a step, latest, best, or "
                    "the folder of a checkpoint that was pulled"
                )
            return Path(text)
        from app.model.huggingface import MODEL_FILE
        from app.state.comparison import CONFIG_FILE
        from app.state.progress import STATE_FILE
        from app.state.snapshot import Expected

        store, view = self._run
        name = chosen_checkpoint(store, view, text)
        expected = Expected(view.record.record if view.record else None)
        wanted = (MODEL_FILE, CONFIG_FILE, STATE_FILE)
        return fetch(store, name, self.scratch / str(name), wanted, expected=expected)


def _different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, _Pair]:
    """Values that differ, by name; None where one has none."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    pairs = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _as_json(
    names: Sequence[str], ours: "Description", theirs: "Description", comparison: "Comparison"
) -> dict[str, Any]:
    """Numbers that JSON does not know are null."""
    return {
        "checkpoints": [
            {"name": name, **side.facts} for name, side in zip(names, (ours, theirs), strict=True)
        ],
        "settings": _different(ours.settings, theirs.settings),
        "versions": _different(ours.versions, theirs.versions),
        "relative_change": _number(comparison.relative),
        "equal_tensors": comparison.equal,
        "tensors": [
            {
                "name": change.name,
                "shape": change.shape,
                "relative_change": _number(change.relative),
                "largest_change": _number(change.largest),
            }
            for change in comparison.changes
        ],
        "only_in_first": comparison.only_first,
        "only_in_second": comparison.only_second,
        "other_shape": comparison.reshaped,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(
    names: Sequence[str],
    ours: "Description",
    theirs: "Description",
    comparison: "Comparison",
    top: int,
) -> Iterator[str]:
    facts = {name: (ours.facts.get(name), theirs.facts.get(name)) for name in ours.facts}
    facts |= {name: (ours.facts.get(name), value) for name, value in theirs.facts.items()}
    yield from _table("", {"": (names[0], names[1]), **facts})
    for name, side in zip(names, (ours, theirs), strict=True):
        if not side.facts:
            yield f"{name} has no state.json: nothing says what it was trained with"
    yield from _table("settings that differ", _different(ours.settings, theirs.settings))
    if ours.facts and theirs.facts:
        yield from _table("versions that differ", _different(ours.versions, theirs.versions))
    yield from _tensor_lines(comparison, top)


def _table(title: str, pairs: Mapping[str, _Pair]) -> Iterator[str]:
    if title:
        yield ""
        yield f"{title}:" if pairs else f"{title}: none"
    rows = [(name, *(_text(value) for value in pair)) for name, pair in pairs.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        yield "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _tensor_lines(comparison: "Comparison", top: int) -> Iterator[str]:
    changed = [change for change in comparison.changes if change.largest != 0]
    yield ""
    yield (
        f"{counted(len(comparison.changes), 'tensor')} in both: {len(changed):,} differ, "
        f"{comparison.equal:,} are equal; the relative change of all is {comparison.relative:.3g}"
    )
    shown = changed[:top] if top else changed
    if shown:
        yield f"{'relative':>10}  {'largest':>10}  tensor"
    for change in shown:
        yield f"{change.relative:>10.3g}  {change.largest:>10.3g}  {change.name}"
    if rest := len(changed) - len(shown):
        yield f"{rest:,} more that differ: --top 0 shows all"
    for which, shapes in (("first", comparison.only_first), ("second", comparison.only_second)):
        for name, shape in shapes.items():
            yield f"only in the {which}: {name} {list(shape)}"
    for name, (before, now) in comparison.reshaped.items():
        yield f"other shape: {name} {list(before)} -> {list(now)}"
