"""What the hub says, as one of our errors."""

from pathlib import Path

import pytest

from app.errors import AccessDenied, ConfigError, Unavailable
from app.model.hub_failures import hub_failures
from app.model.huggingface import model_directory
from tests.support.hubserver import hub


def test_a_hub_that_refuses_a_model_without_a_word_denies_access(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub(monkeypatch, tmp_path, {}):
        with pytest.raises(AccessDenied, match=r"^INIT_FROM=o/forbidden: .*HF_TOKEN"):
            model_directory("o/forbidden", "INIT_FROM")
        with pytest.raises(Unavailable, match=r"^INIT_FROM=o/busy: "):
            model_directory("o/busy", "INIT_FROM")


def test_the_cause_below_a_wrapped_error_decides() -> None:
    with pytest.raises(Unavailable, match="cannot be reached \\(no route\\)"):  # noqa: SIM117
        with hub_failures("TOKENIZER=o/n"):
            try:
                raise ConnectionError("no route")
            except ConnectionError as error:
                raise OSError("cannot load it") from error


def test_a_bug_is_not_taken_for_a_failure_of_the_hub() -> None:
    with pytest.raises(ZeroDivisionError), hub_failures("TOKENIZER=o/n"):
        raise ZeroDivisionError


def test_errors_that_have_a_name_already_keep_it() -> None:
    error = ConfigError("mine")
    with pytest.raises(ConfigError) as caught, hub_failures("TOKENIZER=o/n"):
        raise error from ConnectionError()
    assert caught.value is error
