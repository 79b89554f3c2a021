"""Attempts as a person sees them."""

from app.run.attempt_text import attempt_table, summary
from app.run.journal import AttemptJournal
from app.stores.contract import Store
from tests.support.stored_run import attempt_record, stored_attempts


def test_tries_to_save_that_failed_are_in_the_record_the_summary_and_the_table(
    folder: Store,
) -> None:
    journal = AttemptJournal(folder, attempt_record())
    journal.begin()
    journal.save_failed()
    journal.save_failed()
    journal.end("exit 75")
    (read,) = stored_attempts(folder, newest=10)
    assert summary(read).endswith("; 2 tries to save failed")
    once = read.model_copy(update={"step": 1, "saves": 1, "commits": 1, "failed_saves": 1})
    assert summary(once) == (
        "attempt 1: 1 step in 0:00; 1 save held training up for 0.00 s (0.00 %), it was in the "
        "store after 0.0 s; 1 try to save failed"
    )
    one_of_four = once.model_copy(update={"saves": 4, "stall_seconds": 0.5})
    assert "4 saves held training up for 0.50 s" in summary(one_of_four)
    assert ", one was in the store after 0.0 s; 1 try" in summary(one_of_four)
    assert "in the store after" not in summary(read), "nothing was"
    header, line = attempt_table([read])
    column = header.split().index("failed") + 1  # "1st step" is two words
    assert line.replace(" s ", " ").split()[column - 2] == "2"
