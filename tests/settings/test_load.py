"""Settings: sources, bounds, misspellings, combinations, and no secret in print."""

import re
from pathlib import Path

import pytest

from app.console import redacted
from app.errors import ConfigError
from app.settings.load import load_settings, variable_table
from app.settings.variables import variables

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.chdir(tmp_path)


def problems(**flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags)
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_defaults_are_those_of_the_original_project() -> None:
    settings = load_settings()
    assert (settings.run.total_steps, settings.run.seed) == (5000, 1337)
    assert (settings.batch.batch_size, settings.batch.global_batch_size) == (2, 16)
    optimizer = settings.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (3e-4, 0.1)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.adam_epsilon) == (
        0.9,
        0.999,
        1e-8,
    )
    assert (settings.checkpoints.checkpoint_every_steps, settings.checkpoints.keep_top) == (20, 5)


def test_flag_beats_environment_beats_file_beats_default(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SEED=1\nTOTAL_STEPS=1\nLOG_EVERY_STEPS=1\n")
    monkeypatch.setenv("SEED", "2")
    monkeypatch.setenv("TOTAL_STEPS", "2")
    settings = load_settings({"seed": "3"})
    assert (settings.run.seed, settings.run.total_steps) == (3, 2)
    sources = settings.sources
    assert [sources[n] for n in ("SEED", "TOTAL_STEPS", "LOG_EVERY_STEPS", "MODEL")] == [
        "flag",
        "environment",
        "file",
        "default",
    ]


def test_an_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTAL_STEPS", "")
    settings = load_settings()
    assert settings.run.total_steps == 5000
    assert settings.sources["TOTAL_STEPS"] == "default"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TOTAL_STEP", "TOTAL_STEPS"),
        ("TOTAL_STPES", "TOTAL_STEPS"),
        ("BATCHSIZE", "BATCH_SIZE"),
        ("LR_SCHEDULER", "LR_SCHEDULE"),
        ("CHECKPOINT_EVERY", "CHECKPOINT_EVERY_STEPS"),
        ("MODLE", "MODEL"),
        ("modle", "MODEL"),
        ("DATSET", "DATASET"),
        ("TOKENISER", "TOKENIZER"),
        ("PRECISSION", "PRECISION"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelled_name_is_reported_with_the_nearest_one(
    name: str, nearest: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}=7\n")
    else:
        monkeypatch.setenv(name, "7")
    assert problems() == f"{name} is not a variable of this job; did you mean {nearest}?"


@pytest.mark.parametrize("content", [b"SEED=\xff\n", b"A=\xff\nSEED=2\n"])
def test_an_env_file_that_is_no_text_is_named(content: bytes) -> None:
    Path(".env").write_bytes(content)
    assert ".env is not UTF-8 text" in problems()


def test_foreign_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPILER", "MODELS", "DEVICES", "DATABASE", "SERVICE", "SPEED", "LOGGER"):
        monkeypatch.setenv(name, "x")
    for name in ("HOME", "MODE", "AWS_REGION", "HF_TOKEN", "KUBERNETES_PORT", "LOGNAME", "SHLVL"):
        monkeypatch.setenv(name, "x")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOTAL_STEPS", "0"),
        ("TOTAL_STEPS", "many"),
        ("LEARNING_RATE", "-1"),
        ("LEARNING_RATE", "nan"),
        ("MODEL", "huge"),
        ("RUN_NAME", "../other"),
        ("RUN_NAME", "x" * 101),
        ("RUN_NAME", "run\n"),
        ("EXTENSION_ID", "a/b"),
        ("BATCH_SIZE", "0"),
        ("PRECISION", "fp8"),
        ("GRADIENT_CHECKPOINTING", "perhaps"),
        ("LOGGERS", "wandb"),
        ("CHECKPOINT_URI", "s3://"),
        ("CHECKPOINT_URI", "/checkpoints"),
        ("CHECKPOINT_URI", "file://checkpoints"),
        ("CHECKPOINT_URI", "s3://bucket/../other"),
        ("CHECKPOINT_URI", "gs://bucket/prefix"),
    ],
)
def test_a_wrong_value_names_the_variable_the_value_and_where_it_came_from(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    text = problems()
    assert text.startswith(f"{name}={value!r} (from the environment) cannot be used: ")
    assert "\n" not in text


def test_every_problem_gets_a_line_of_its_own() -> None:
    assert len(problems(total_steps="0", seed="x", model="huge").splitlines()) == 3


@pytest.mark.parametrize(("batch", "whole"), [(2, 5), (16, 8), (7, 24), (65_536, 1_048_575)])
def test_batch_sizes_that_do_not_divide_are_answered_with_some_that_do(
    batch: int, whole: int
) -> None:
    text = problems(batch_size=str(batch), global_batch_size=str(whole))
    advice = re.search(r": set BATCH_SIZE=(\d+) or GLOBAL_BATCH_SIZE=(\d+)$", text)
    assert advice is not None, text
    load_settings({"batch_size": advice[1], "global_batch_size": str(whole)})
    load_settings({"batch_size": str(batch), "global_batch_size": advice[2]})


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"global_batch_size": "5"}, "GLOBAL_BATCH_SIZE=5 is not a multiple of BATCH_SIZE=2"),
        ({"model": "tiny", "seq_len": "512"}, "SEQ_LEN=512 is above the context of MODEL=tiny"),
        ({"seq_len": "4096"}, "at most 2048 tokens"),
        ({"seq_len": "1024", "val_every_steps": "5", "val_tokens": "512"}, "VAL_TOKENS=512"),
        ({"init_from": "a/b", "model": "tiny"}, "MODEL=tiny has no meaning with INIT_FROM=a/b"),
        ({"init_from": "a/b", "init": "scaled"}, "INIT=scaled has no meaning with INIT_FROM=a/b"),
        ({"dataset_config": "x"}, "DATASET_CONFIG has no meaning with DATASET=builtin"),
    ],
)
def test_an_impossible_combination_is_refused(flags: dict[str, str], reason: str) -> None:
    assert reason in problems(**flags)


def test_credentials_in_a_uri_are_refused_and_never_repeated() -> None:
    text = problems(checkpoint_uri="s3://AKIAEXAMPLE:verysecret@bucket/x")
    assert "credentials do not belong in a URI" in text
    assert "verysecret" not in text


@pytest.mark.parametrize(
    "dataset",
    [
        "https://user:verysecret@host/x.txt",
        "https://verysecret@host/x.txt",
        "http://user:verysecret/verysecret@host/x.txt",
        "HTTPS://user:very secret verysecret@host/x.txt",
        "s3://key:verysecret@bucket/x",
        "https://user:5,verysecret@host/x.txt",
        "builtin:0.5,https://user:verysecret@host/x.txt:0.5",
    ],
)
def test_credentials_in_dataset_are_refused_and_never_repeated(dataset: str) -> None:
    text = problems(dataset=dataset)
    assert text.startswith("DATASET=*** (from a flag) cannot be used: credentials do not belong")
    assert "secret" not in text


@pytest.mark.parametrize("name", ["INIT_FROM", "TOKENIZER"])
def test_credentials_in_another_address_are_refused_too(name: str) -> None:
    text = problems(**{name.lower(): "https://user:very/secret@host/x"})
    assert text.startswith(f"{name}=*** (from a flag) cannot be used: credentials do not belong")
    assert "secret" not in text


@pytest.mark.parametrize(
    "dataset",
    ["http://host:80/x@y.txt", "s3://bucket/x@y", "o/name@main", "s3://bucket:1,name@main:2"],
)
def test_an_at_sign_elsewhere_is_no_credential(dataset: str) -> None:
    assert load_settings({"dataset": dataset}).data.dataset == dataset


def test_printed_values_are_what_a_user_would_type() -> None:
    given = {
        "grace_seconds": "25",
        "document_mask": "true",
        "learning_rate": "3e-07",
        "z_loss": "0",
    }
    settings = load_settings(given)
    shown = {variable.name: settings.shown(variable) for variable in variables()}
    assert shown["GRADIENT_CHECKPOINTING"] == "false"
    assert (shown["RUN_NAME"], shown["GRAD_CLIP"], shown["ADAM_EPSILON"]) == ("", "1", "1e-08")
    assert {name: shown[name.upper()] for name in given} == given
    again = load_settings({name.lower(): value for name, value in shown.items()})
    assert all(again.value(variable) == settings.value(variable) for variable in variables())


def test_printed_values_hide_credentials() -> None:
    settings = load_settings({"dataset": "https://example.org/x.txt?token=verysecret"})
    shown = [settings.shown(variable) for variable in variables()]
    assert not any("verysecret" in value for value in shown)
    assert redacted("token hf_abcdefghijkl") == "token hf_***"
    signed = "https://host/x.jsonl?X-Amz-Signature=verysecret&X-Amz-Security-Token=verysecret'"
    assert "verysecret" not in redacted(signed)
    assert "verysecret" not in problems(batch_size="0", dataset=signed)


def test_every_variable_has_help_and_a_unique_name() -> None:
    rows = list(variables())
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.info.description for row in rows)


def test_the_table_in_the_readme_is_the_generated_one() -> None:
    assert variable_table() in README.read_text("utf-8"), (
        "README.md is stale: replace its table by the output of `python -m app config --markdown`"
    )
