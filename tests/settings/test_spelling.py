"""Misspelled names of variables, and names that only look like one."""

from pathlib import Path

import pytest

from app.settings.load import load_settings
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


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
        ("MODL", "MODEL"),
        ("SEEED", "SEED"),
        ("SED", "SEED"),
        ("SEDE", "SEED"),
        ("sead", "SEED"),
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


def test_foreign_names_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMPILER", "MODELS", "DATABASE", "SERVICE", "SPEED", "LOGGER"):
        monkeypatch.setenv(name, "x")
    for name in ("HOME", "MODE", "AWS_REGION", "HF_TOKEN", "KUBERNETES_PORT", "LOGNAME", "SHLVL"):
        monkeypatch.setenv(name, "x")
    load_settings()


def test_a_short_name_is_reported_where_its_value_fits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTI", "scaled")
    assert problems() == "INTI is not a variable of this job; did you mean INIT?"


_ORDINARY = {
    # shells, terminals and tools
    **dict.fromkeys(
        ("SHELL", "PWD", "OLDPWD", "USER", "LOGNAME", "TERM", "LANG", "TZ", "EDITOR"), "x"
    ),
    **dict.fromkeys(
        ("PAGER", "VISUAL", "DISPLAY", "MAIL", "PATH", "PS1", "IFS", "UID", "HOSTNAME"), "x"
    ),
    **{"SED": "/usr/bin/sed", "GREP": "grep", "CC": "cc", "LINES": "24", "COLUMNS": "80"},
    **{
        "SPEED": "9600",
        "UNIT": "1",
        "INT": "1",
        "EXIT": "0",
        "SEND": "1",
        "FEED": "1",
        "SEEDS": "3",
    },
    **{"MODE": "fast", "MODELS": "a", "TRAIN": "1", "TRACE": "1", "DEBUG": "1", "VERBOSE": "1"},
    **{"EPOCHS": "3", "BATCH": "8", "STEPS": "5", "RANK": "0", "LOCAL_RANK": "0", "RESULTS": "x"},
    **{"INVOCATION_ID": "x", "JOURNAL_STREAM": "8:1", "SYSTEMD_EXEC_PID": "1", "SSH_TTY": "x"},
    **{
        "XDG_SESSION_ID": "1",
        "XDG_DATA_DIRS": "/usr/share",
        "DATA": "/d",
        "LESS": "-R",
        "SHLVL": "1",
    },
    # CI
    **{"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_RUN_ID": "1", "RUNNER_NAME": "x"},
    **{"CI_JOB_NAME": "x", "BUILD_ID": "1", "JOB_NAME": "x", "NODE_NAME": "x", "BUILD_NUMBER": "1"},
    **{"TRAVIS": "true", "JENKINS_URL": "x", "WORKSPACE": "/w", "STAGE_NAME": "x", "TAG_NAME": "x"},
    # clusters, GPUs and libraries
    **{
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "REDIS_SERVICE_PORT": "6379",
        "METRICS_SERVICE_PORT": "1",
    },
    **{"METRICS_PORT_9090_TCP_ADDR": "10.0.0.5", "MODEL_SERVICE_HOST": "10.0.0.5", "POD_NAME": "x"},
    **{
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "NVIDIA_VISIBLE_DEVICES": "all",
    },
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    **{
        "PYTHONPATH": "x",
        "VIRTUAL_ENV": "x",
        "CONDA_PREFIX": "x",
        "HF_HOME": "x",
        "LD_LIBRARY_PATH": "x",
    },
}


def test_ordinary_shells_ci_and_clusters_raise_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _ORDINARY.items():
        monkeypatch.setenv(name, value)
    load_settings()
