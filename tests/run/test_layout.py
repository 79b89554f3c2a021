"""Keys below a run, and names that are read back from them."""

import pytest

from app.run.layout import AttemptName, CheckpointName, evaluation_key, file_of, of_a_run


def test_a_checkpoint_has_one_name_in_its_place_and_in_quarantine() -> None:
    name = CheckpointName(20, 1)
    assert name.key("state.json") == "checkpoints/step-0000000020-e000001/state.json"
    assert name.quarantine_key() == "quarantine/step-0000000020-e000001/"
    assert CheckpointName.parse(str(name)) == name


def test_an_attempt_is_known_by_the_name_of_its_file() -> None:
    name = AttemptName(3, 40)
    assert name.key == "attempts/e000003-from-0000000040.json"
    assert AttemptName.parse(file_of(name.key)) == name


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("run.json", True),
        ("LATEST", True),
        (".store-partial-0-1", True),
        (CheckpointName(20, 1).key("state.json"), True),
        (CheckpointName(20, 1).quarantine_key("state.json"), True),
        ("logs/tensorboard/events.out.tfevents.0", True),
        ("report/index.html", True),
        (evaluation_key(CheckpointName(20, 1), "0f"), True),
        ("evaluations/step-20/0f.json", False),
        ("inputs/tokenizer.json.z", True),
        (AttemptName(3, 40).key, True),
        ("all.tar", False),
        ("logs", False),
        ("checkpoints/all.tar", False),
        (f"checkpoints/{CheckpointName(20, 1)}", False),
        ("checkpoints/step-20/all.tar", False),
        ("backups/run.json", False),
    ],
)
def test_what_lies_beside_a_run_is_told_from_what_is_its_own(key: str, ours: bool) -> None:
    assert of_a_run(key) is ours


def test_names_take_more_digits_where_six_or_ten_are_not_enough_and_sort_by_number() -> None:
    names = [CheckpointName(20, 1_000_000), CheckpointName(20, 999_999), CheckpointName(10**10, 1)]
    assert [CheckpointName.parse(str(name)) for name in names] == names
    assert sorted(names) == [names[1], names[0], names[2]]
    attempt = AttemptName(1_000_000, 10**10)
    assert AttemptName.parse(file_of(attempt.key)) == attempt
    assert str(CheckpointName(20, 1_000_000)) == "step-0000000020-e1000000"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "notes.txt",
        "step-20-e1",
        "e000003-from-0000000040.json.x",
        "step-00000000020-e000001",
        "step-0000000020-e0000001",
        "e0000003-from-0000000040.json",
        "step-\u0660000000020-e000001",
        "step-9999999999999-e000001",
    ],
)
def test_a_name_that_is_none_is_not_guessed_at(text: str) -> None:
    assert CheckpointName.parse(text) is None
    assert AttemptName.parse(text) is None
