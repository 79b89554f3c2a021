"""What the hub says, as one of our errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from httpx2 import LocalProtocolError

from app.errors import AccessDenied, ConfigError, Unavailable
from app.model.hub_failures import hub_failures
from app.model.huggingface import model_directory
from tests.support.hubserver import hub
from tests.support.repository import ROOT


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"HF_ENDPOINT": "hub.example.org"}, "HF_ENDPOINT is no address"),
        ({"HF_ENDPOINT": "http://127.0.0.1:99999"}, "HF_…"),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, "HF_…"),
        ({"HF_TOKEN": "hf_secré"}, "HF_TOKEN holds a sign"),
        ({"SSL_CERT_FILE": "/nonexistent.pem"}, "SSL_CERT_FILE"),
    ],
)
def test_a_mistake_on_this_side_is_no_outage(changes: dict[str, str], reason: str) -> None:
    code = (
        "from app.model.huggingface import model_directory\n"
        "from app.errors import ConfigError\n"
        "try:\n    model_directory('o/n', 'INIT_FROM')\n"
        "except ConfigError as error:\n    print(type(error).__name__, error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": "https://127.0.0.1:9", **changes},
        capture_output=True,
        text=True,
        check=True,
    )
    said = result.stdout.splitlines()[-1]
    assert said.startswith("ConfigError INIT_FROM=o/n: ")
    assert reason in said
    assert "secr" not in said


def test_a_token_with_a_line_end_is_named_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN holds a sign") as caught:  # noqa: SIM117
        with hub_failures("TOKENIZER=o/n"):
            raise LocalProtocolError("Illegal header value b'Bearer hf_secret\\n'")
    assert "secret" not in str(caught.value)


def test_a_bug_is_not_taken_for_a_failure_of_the_hub() -> None:
    with pytest.raises(ZeroDivisionError), hub_failures("TOKENIZER=o/n"):
        raise ZeroDivisionError


def test_errors_that_have_a_name_already_keep_it() -> None:
    error = ConfigError("mine")
    with pytest.raises(ConfigError) as caught, hub_failures("TOKENIZER=o/n"):
        raise error from ConnectionError()
    assert caught.value is error
