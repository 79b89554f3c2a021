"""Settings: where each value came from, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from app.errors import ConfigError
from app.settings.load import load_settings
from app.settings.place import place_of_this_process
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


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


@pytest.mark.parametrize("content", [b"SEED=\xff\n", b"A=\xff\nSEED=2\n"])
def test_an_env_file_that_is_no_text_is_named(content: bytes) -> None:
    Path(".env").write_bytes(content)
    assert ".env is not UTF-8 text" in problems()


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


@pytest.mark.parametrize("link", ["tcp://10.0.0.5:9090", "udp://[fd00::5]:53"])
@pytest.mark.parametrize("name", ["METRICS_PORT", "METRIC_PORT"])
def test_what_kubernetes_sets_for_a_service_of_that_name_counts_as_unset(
    name: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("METRICS_PORT=9100\n")
    monkeypatch.setenv(name, link)
    settings = load_settings()
    assert (settings.logs.metrics_port, settings.sources["METRICS_PORT"]) == (9100, "file")


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_launcher_that_starts_several_processes_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script has it too, where one process starts
    monkeypatch.setenv(name, "1")
    place_of_this_process()
    monkeypatch.setenv(name, "2")
    with pytest.raises(ConfigError, match=f"^{name}=2 .* start it without "):
        place_of_this_process()
