"""What torch's flight recorder tells, where there is one."""

import json

import pytest

from app.ranks.flight import flight_record
from app.ranks.team import Team, Wish
from tests.support.team import in_team


def recorded(team: Team) -> list[str]:
    team.agree(Wish.GO_ON)
    team.sum([1.0])
    return [entry["profiling_name"] for entry in json.loads(flight_record())["entries"]]


def test_the_record_has_what_the_processes_did_together() -> None:
    """Between the hosts, since there is no card: of NCCL it is the same record."""
    for names in in_team(2, recorded):
        assert names[-2:] == ["gloo:all_reduce", "gloo:all_reduce"]


def test_a_torch_without_a_recorder_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._C._distributed_c10d._dump_fr_trace_json")
    assert flight_record() == b""
