"""The age of a process."""

from app.run.clock import seconds_of_this_process


def test_the_age_of_this_process_is_known() -> None:
    age = seconds_of_this_process()
    assert age is not None and 0 < age < 24 * 3600
