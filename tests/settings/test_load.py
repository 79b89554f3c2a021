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
        ("LOGGERS", "csv,comet"),
        ("CHECKPOINT_URI", "s3://"),
        ("CHECKPOINT_URI", "s3:/bucket/prefix"),
        ("CHECKPOINT_URI", "file:/checkpoints"),
        ("CHECKPOINT_URI", "$HOME/checkpoints"),
        ("CHECKPOINT_URI", "file://checkpoints"),
        ("CHECKPOINT_URI", "s3://bucket/../other"),
        ("CHECKPOINT_URI", "gs://bucket/prefix"),
        ("STARTED_BY", "hand"),
    ],
)
def test_a_wrong_value_names_the_variable_the_value_and_where_it_came_from(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    text = problems()
    assert text.startswith(f"{name}={value!r} (from the environment) cannot be used: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    "value",
    [
        "1e3",
        "nan",
        "inf",
        "1_000",
        "1,000",
        " 5 ",
        "5.0",
        "5.5",
        "-3",
        "0",
        "0x10",
        "\u0663",
        "9" * 12,
    ],
)
def test_a_wrong_number_is_told_with_both_bounds(value: str) -> None:
    assert problems(total_steps=value).endswith(
        "allowed: a whole number, at least 1 and at most 100000000"
    )


def test_other_kinds_of_numbers_and_switches_say_what_they_may_be() -> None:
    assert problems(learning_rate="1e-3x").endswith("allowed: a number, above 0 and at most 1")
    assert problems(grad_clip="1e400").endswith("allowed: a number, at least 0")
    assert problems(num_workers="300").endswith(
        "allowed: a whole number, at least 0 and at most 256"
    )
    assert problems(document_mask="perhaps").endswith("allowed: true or false")
    assert "white space stands around it: leave it out; allowed: " in problems(seed=" 7")
    assert "quotes are a part of the value" in problems(seed="'7'")


def test_numbers_are_taken_as_they_are_usually_written() -> None:
    optimizer = load_settings({"learning_rate": "3E-4", "weight_decay": ".5", "grad_clip": "1."})
    found = optimizer.optimizer
    assert (found.learning_rate, found.weight_decay, found.grad_clip) == (3e-4, 0.5, 1.0)


def test_a_value_without_an_end_is_not_repeated_whole() -> None:
    assert len(problems(total_steps="9" * 10_000)) < 400


def test_by_default_a_run_and_its_data_are_below_the_working_directory() -> None:
    settings = load_settings()
    assert settings.checkpoints.checkpoint_uri == f"{Path.cwd().as_uri()}/runs/checkpoints"
    assert settings.data.data_dir == Path.cwd() / "runs/data"
    assert list(Path.cwd().iterdir()) == [], "looking makes no folder"


@pytest.mark.parametrize(
    ("typed", "uri"),
    [
        ("some place", "{here}/some%20place"),
        ("./s3:place/", "{here}/s3%3Aplace"),
        ("../beside", "{above}/beside"),
        ("/some/place/", "file:///some/place"),
        ("~/place", "file:///home/me/place"),
        ("file:///some%20place", "file:///some%20place"),
        ("FILE:///place", "file:///place"),
        ("s3://bucket", "s3://bucket/"),
        ("S3://bucket/prefix/", "s3://bucket/prefix"),
    ],
)
def test_the_place_of_checkpoints_is_a_folder_in_any_notation_or_a_bucket(
    typed: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    here = Path.cwd().resolve()
    found = load_settings({"checkpoint_uri": typed}).checkpoints.checkpoint_uri
    assert found == uri.format(here=here.as_uri(), above=here.parent.as_uri())


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
