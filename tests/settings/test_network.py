"""Which interface gloo is told to use."""

import os

import pytest

from app.settings.network import interface_to, talk_over_interface_to
from tests.support import needs


@needs.proc
def test_the_way_to_this_machine_is_the_loopback_interface() -> None:
    assert interface_to("127.0.0.1") == "lo"


@needs.proc
def test_gloo_is_told_the_interface_unless_the_user_has_named_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    talk_over_interface_to("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    talk_over_interface_to("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_an_address_that_leads_nowhere_leaves_the_choice_to_gloo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    talk_over_interface_to("not an address")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
