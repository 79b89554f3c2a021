"""What NCCL is asked for, by variables that torch reads itself."""

import os

import pytest

from app.settings.nccl import ask_nccl


def test_a_lost_peer_leaves_the_process_alive_and_the_last_collectives_are_recorded() -> None:
    environment: dict[str, str] = {}
    ask_nccl(environment)
    assert environment == {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "2", "TORCH_FR_BUFFER_SIZE": "256"}


def test_what_the_user_has_set_stays_under_the_former_name_too() -> None:
    own = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3", "TORCH_NCCL_TRACE_BUFFER_SIZE": "9"}
    environment = dict(own)
    ask_nccl(environment)
    assert environment == own


def test_it_is_torchs_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    ask_nccl()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "2"
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7"
