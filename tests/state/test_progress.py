"""state.json: what is wrong in it is found before anything is done with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.errors import Damaged, IncompatibleRun
from app.state.identity import RunRecord
from app.state.progress import STATE_FILE, Progress, decode_progress
from app.state.snapshot import capture, restore
from tests.support.stored_run import IDENTITY
from tests.support.training_state import progress, trained, write

RECORD = RunRecord(run_name="run", created_at="2026", identity=IDENTITY, total_steps=10)
WRONG: list[Any] = [
    None,
    True,
    -1,
    0.5,
    10**6,
    10**400,
    1e308,
    "",
    "nonsense",
    "9" * 10**6,
    [],
    [[]],
    {},
]
WRONG += [{"": None}, {"step": 2}, float("nan"), float("inf")]
# The values that are a right one of some field.
RIGHT: dict[str, list[Any]] = {
    "format_version": ["1"],
    "run": [None],
    "train_loss": [None, 0.5, 10**6],
    "validation_loss": [None, 0.5, 10**6],
    "validation_perplexity": [None, 0.5, 10**6, 1e308],
    "learning_rate": [None, 0.5],
    "saved_at": [-1, 0.5, 10**6],
    "document_mask": [True],
    "versions": [{}],
    "precision": [None, "", "nonsense"],
    "device": [None, "", "nonsense"],
}


def _state(**changes: Any) -> dict[str, Any]:
    made = progress(2).model_copy(update={"run": RECORD, "tokens": 2 * 256 * 16})
    return {**json.loads(made.model_dump_json()), **changes}


def _checked(state: dict[str, Any]) -> Progress:
    found = decode_progress(json.dumps(state).encode())
    found.check(2, RECORD)
    return found


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all that is in `value`, of a list only of its first and last item."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(n, value[n]) for n in sorted({0, len(value) - 1}) if value]
    return [path] * bool(path) + [
        leaf for key, inner in items for leaf in _leaves(inner, (*path, key))
    ]


def _replaced(state: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copy: Any = json.loads(json.dumps(state))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def test_a_state_is_read_as_it_was_written() -> None:
    assert _checked(_state()).step == 2


def test_a_state_of_a_version_that_wrote_less_is_read() -> None:
    state = _state(tokens=20)
    for name in ("run", "precision", "device", "validation_loss", "document_mask"):
        del state[name]
    assert _checked(state).run is None


@pytest.mark.parametrize("name", list(Progress.model_fields))
def test_every_field_with_a_wrong_value_is_damage(name: str) -> None:
    for value in WRONG:
        state = _state(**{name: value})
        if any(value is right or value == right for right in RIGHT.get(name, [])):
            _checked(state)
            continue
        with pytest.raises((Damaged, IncompatibleRun)) as caught:
            _checked(state)
        assert name == "format_version" or caught.type is Damaged, (name, value)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_value_anywhere_is_damage_or_read_and_never_another_error(value: Any) -> None:
    state = _state()
    for path in _leaves(state):
        try:
            found = _checked(_replaced(state, path, value))
        except (Damaged, IncompatibleRun):
            continue
        assert (found.step, found.tokens) == (2, 8192), path
        found.random.restore()


@pytest.mark.parametrize("name", ["torch_cpu", "torch_cuda", "numpy", "python"])
def test_every_part_of_the_random_state_is_validated(name: str) -> None:
    state = _state()
    for value in (*WRONG, "AAAA", ["AAAA"], [3, [0] * 625, None], [3, [1] * 624 + [625], None]):
        if name == "torch_cuda" and value == []:
            continue
        with pytest.raises(Damaged, match=r"state\.json is not a training state"):
            _checked(state | {"random": state["random"] | {name: value}})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 7}, "SEED was 1337, is 7"),
        ({"dataset_fingerprint": "d2"}, "DATASET 'builtin' changed its content"),
        ({"init_from": "a/b"}, "INIT_FROM was None, is 'a/b'"),
    ],
)
def test_a_state_of_another_run_is_damage_that_says_what_differs(
    change: dict[str, Any], text: str
) -> None:
    other = RECORD.model_copy(update={"identity": IDENTITY.model_copy(update=change)})
    with pytest.raises(Damaged, match="it is of another run: .*" + text):
        _checked(_state(run=other.model_dump()))


def test_a_state_of_another_length_of_the_run_is_of_another_run() -> None:
    with pytest.raises(Damaged, match="TOTAL_STEPS was 10, is 11"):
        _checked(_state(run=RECORD.model_copy(update={"total_steps": 11}).model_dump()))


def test_a_state_of_another_step_than_its_checkpoint_is_damage() -> None:
    with pytest.raises(Damaged, match="of step 2, its checkpoint of step 3"):
        decode_progress(json.dumps(_state()).encode()).check(3, RECORD)


def test_a_step_beyond_the_target_is_damage_also_where_no_run_is_carried() -> None:
    with pytest.raises(Damaged, match="beyond the run's target 10"):
        progress(11).check(11, RECORD)


def test_a_state_of_a_newer_version_is_not_called_damaged(tmp_path: Path) -> None:
    model, optimizer = trained()
    write(capture(model, optimizer, progress(2)), tmp_path)
    newer = json.loads((tmp_path / STATE_FILE).read_text()) | {"format_version": 99}
    newer["random"]["jax"] = "of a later day"
    (tmp_path / STATE_FILE).write_text(json.dumps(newer))
    with pytest.raises(IncompatibleRun, match=r"state\.json has format 99.*use the newer image"):
        restore(tmp_path, model, optimizer)
