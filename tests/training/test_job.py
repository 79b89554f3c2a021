"""A job is resolved without the hub where the run keeps what the hub was asked for."""

from pathlib import Path

import pytest

from tests.support.hubserver import hub, use_endpoint
from tests.support.job import newest_checkpoint
from tests.support.train_command import Job, Train, assert_refused


@pytest.mark.parametrize("variable", ["TOKENIZER", "INIT_FROM"])
def test_a_run_goes_on_at_a_new_node_while_the_hub_is_away(
    variable: str,
    train: Train,
    job: Job,
    closed_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train(TOTAL_STEPS="2", RUN_NAME="begun")[0] == 0
    repository = newest_checkpoint(tmp_path / "store" / "begun")
    files = {path.name: path.read_bytes() for path in repository.iterdir()}
    changes = {"TOTAL_STEPS": "2", variable: "o/good"}
    if variable == "INIT_FROM":
        changes |= {"MODEL": "", "TOKENIZER": ""}
    with hub(monkeypatch, tmp_path / "first", files):
        assert train(**changes, RUN_NAME="a")[0] == 0
    use_endpoint(monkeypatch, closed_endpoint, tmp_path / "second")
    changes |= {"ADDITIONAL_STEPS": "1", "DATA_DIR": str(tmp_path / "new" / "data")}
    prepared = changes | {"RUN_NAME": "a", "DATA_DIR": str(tmp_path / "prepared")}
    assert job(["prepare"], **prepared)[0] == 0
    assert job(["data", "stats"], **prepared)[0] == 0
    code, log = train(**changes, RUN_NAME="a")
    assert code == 0, log
    if variable == "TOKENIZER":
        assert "TOKENIZER=o/good: the hub cannot be reached" in log
        assert "the tokenizer in the run's newest checkpoint is used" in log
    changes["TOKENIZER"] = "o/other"
    assert_refused(train(**changes, RUN_NAME="a"), 75, "=o/")
