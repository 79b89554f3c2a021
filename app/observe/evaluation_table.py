"""The section of the page about evaluations: a row for each number, a column for each step."""

from collections.abc import Mapping, Sequence

from app.observe.markup import table, text
from app.observe.published import SOURCE, published
from app.run.evaluations import Evaluation

_MOST_STEPS = 8
_MOST_ROWS = 100

# What two results with the same task, text and metric can differ in.
_TOLD = ("limit", "fewshot", "window", "stride")


def evaluations(results: Sequence[Evaluation]) -> str:
    """Of the newest steps that were evaluated; `results` go up by step."""
    if not results:
        return ""
    steps = sorted({one.step for one in results})[-_MOST_STEPS:]
    rows: dict[tuple[str, ...], dict[int, Evaluation]] = {}
    for one in results:
        key = (one.task, one.metric, one.of, _settings(one))
        rows.setdefault(key, {})[one.step] = one
    kept = [(key, found) for key, found in sorted(rows.items()) if set(found) & set(steps)]
    beside = any(published(key[0], key[1]) is not None for key, _ in kept)
    columns = ["task", "metric", "of", "settings", *(f"step {step:,}" for step in steps)]
    cells = [_row(key, found, steps, beside) for key, found in kept[:_MOST_ROWS]]
    note = f'<p class="quiet">SmolLM2-135M: {text(SOURCE)}, so other prompts.</p>' if beside else ""
    if beside:
        columns.append("SmolLM2-135M")
    return f"<h2>Evaluations</h2>{table(columns, cells, 'evaluations')}{note}"


def _row(
    key: tuple[str, ...], found: Mapping[int, Evaluation], steps: Sequence[int], beside: bool
) -> list[str]:
    cells = [text(part) for part in key]
    cells += [_cell(found.get(step)) for step in steps]
    if beside:
        there = published(key[0], key[1])
        cells.append("–" if there is None else f"{there:.3f}")
    return cells


def _cell(one: Evaluation | None) -> str:
    if one is None:
        return "–"
    value = f"{one.value:,.4f}" if abs(one.value) < 1e9 else f"{one.value:.3e}"
    return value if one.stderr is None else f"{value} ± {one.stderr:.4f}"


def _settings(one: Evaluation) -> str:
    told = [f"{name} {one.settings[name]}" for name in _TOLD if one.settings.get(name)]
    return ", ".join(told)
