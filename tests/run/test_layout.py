"""Keys below a run, and names that are read back from them."""

import pytest

from app.run.layout import AttemptName, CheckpointName, file_of


def test_a_checkpoint_has_one_name_in_its_place_and_in_quarantine() -> None:
    name = CheckpointName(20, 1)
    assert name.key("state.json") == "checkpoints/step-0000000020-e000001/state.json"
    assert name.quarantine_key() == "quarantine/step-0000000020-e000001/"
    assert CheckpointName.parse(str(name)) == name


def test_an_attempt_is_known_by_the_name_of_its_file() -> None:
    name = AttemptName(3, 40)
    assert name.key == "attempts/e000003-from-0000000040.json"
    assert AttemptName.parse(file_of(name.key)) == name


@pytest.mark.parametrize("text", ["", "notes.txt", "step-20-e1", "e000003-from-0000000040.json.x"])
def test_a_name_that_is_none_is_not_guessed_at(text: str) -> None:
    assert CheckpointName.parse(text) is None
    assert AttemptName.parse(text) is None
