"""A job is resolved without the hub where the run keeps what the hub was asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings
from app.settings.presets import PRESETS, RECIPES
from app.training.job import resolve_job
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


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize("model", ["tiny", "auto"])
def test_the_embedding_of_tiny_has_a_row_for_each_token_of_any_tokenizer(
    model: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    flags = {"device": "cpu", "tokenizer": str(small_tokenizer), "data_dir": str(tmp_path)}
    job = resolve_job(load_settings({**flags, "model": model, "learning_rate": "0.25"}))
    assert job.config == replace(PRESETS["tiny"], vocab_size=300)
    assert (job.model_name, job.run_name, job.geometry.seq_len) == ("tiny", "tiny", 256)
    assert job.settings.run.total_steps == RECIPES["tiny"]["TOTAL_STEPS"]
    assert job.geometry.global_batch_size == RECIPES["tiny"]["GLOBAL_BATCH_SIZE"]
    assert job.settings.optimizer.learning_rate == 0.25
    assert job.settings.sources["TOTAL_STEPS"] == "preset"
    assert job.identity(None, "f").shape["vocab_size"] == 300


@pytest.mark.usefixtures("nothing_set")
def test_a_published_model_keeps_its_shape_and_the_general_defaults(
    small_tokenizer: Path, tmp_path: Path
) -> None:
    flags = {"device": "cpu", "tokenizer": str(small_tokenizer), "data_dir": str(tmp_path)}
    settings = load_settings({**flags, "model": "smollm2-135m"})
    job = resolve_job(settings)
    assert (job.settings, job.config) == (settings, PRESETS["smollm2-135m"])
    assert job.with_tokenizer(replace(job.tokenizer, vocab_size=299)).config == job.config


@pytest.mark.usefixtures("nothing_set")
def test_defaults_of_an_unnamed_model_are_checked_against_what_is_set(
    small_tokenizer: Path, tmp_path: Path
) -> None:
    flags = {"device": "cpu", "tokenizer": str(small_tokenizer), "data_dir": str(tmp_path)}
    settings = load_settings({**flags, "batch_size": "16"})
    with pytest.raises(ConfigError, match="GLOBAL_BATCH_SIZE=8 is not a multiple of BATCH_SIZE=16"):
        resolve_job(settings)


def test_a_run_of_tiny_begins_and_goes_on_with_its_own_defaults(
    train: Train, tmp_path: Path
) -> None:
    unset = dict.fromkeys(RECIPES["tiny"], "") | {"TOTAL_STEPS": "2"}
    code, log = train(**unset)
    assert code == 0, log
    assert "no validation: DATASET=" in log or "val loss" in log
    folder = newest_checkpoint(tmp_path / "store" / "tiny")
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 300
    assert "step = 8 sequences of 32 tokens in micro-batches of 8" in log
    code, log = train(**(unset | {"TOTAL_STEPS": "", "ADDITIONAL_STEPS": "1"}))
    assert code == 0 and "target reached: step 3 of 3" in log, log
