"""Every command that a page shows is run as it is written, or the page says what was not there.

`tests/support/page_commands.py` says who runs which. Here are those that need no container engine:
each runs in a folder of its own, in a copy of a finished run of 8 steps with a checkpoint of every
second one. What the engine runs is in `tests/drills/drill.py`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.drills.drill import (
    EXTEND,
    GENERATE,
    KILL,
    PULL,
    STOP,
    UP,
    VERIFY,
    Drill,
    type_what_else_the_pages_show,
)
from tests.support.operator_rows import command, flip, lease_of_a_dead_machine, remove
from tests.support.page_commands import (
    Command,
    Runner,
    blocks,
    commands,
    python_snippets,
    run_by,
    unrun,
    user_pages,
)
from tests.support.quiet_stop import LONG_TEXT
from tests.support.repository import ROOT
from tests.support.shipped_settings import settings_of, unknown_variables

PAGES = user_pages()
MINE = run_by(Runner.TEST, PAGES)
SNIPPETS = sorted({snippet for text in PAGES.values() for snippet in python_snippets(text)})

# What stands in a page for a run of thousands of steps, and what it is in the run of 8 steps here.
SUBSTITUTIONS = {
    "--to 4000": "--to 4",
    "accept 5000": "accept 6",
    "--step 107": "--step 7",
    "diff 2000": "diff 2",
}
# What has to have happened to the run before a command is of use.
BEFORE: Mapping[str, Callable[[Path], None]] = {
    "checkpoints accept 5000": command("checkpoints", "rollback", "--to", "4"),
    "checkpoints takeover": lease_of_a_dead_machine,
    "quarantine add": flip(6, "model.safetensors"),
    "quarantine list": command("checkpoints", "rollback", "--to", "4"),
    "quarantine purge": command("checkpoints", "rollback", "--to", "4"),
    "run repair": remove("run.json"),
    "generate <prompt.txt": lambda run: write_prompts(run, "prompt.txt"),
    "generate --prompts prompts.txt": lambda run: write_prompts(run, "prompts.txt"),
}
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+[\w/.?=-]*")
VARIABLES = re.compile(r"(?:[A-Z][A-Z0-9_]+=\S+\s*)+")


def write_prompts(run: Path, name: str) -> None:
    """Put a file of two lines where commands are typed."""
    (run.parents[2] / name).write_text("def main(\nimport argparse\n")


@pytest.fixture(scope="session")
def finished(
    job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A folder with a finished run, to be copied, and the variables that say where it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "long.txt").write_text(LONG_TEXT)  # enough of it to hold some out
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        **job_environment,
        "TRAINER": "torch",
        "TOTAL_STEPS": "8",
        "CHECKPOINT_EVERY_STEPS": "2",
        "DATASET": f"{folder}/long.txt",
        "VAL_EVERY_STEPS": "2",
        "VAL_TOKENS": "256",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "CHECKPOINT_URI": f"file://{folder}/runs/checkpoints",
    }
    log = typed(f"{sys.executable} -m app train", folder, environment)
    (folder / "tiny.log").write_text(log)
    typed(f"{sys.executable} -m app checkpoints pull --to model", folder, environment)
    return folder, environment


@pytest.fixture
def here(finished: tuple[Path, dict[str, str]], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with a copy of the run and of a pulled checkpoint, where commands can be typed."""
    made, environment = finished
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    (folder / "scripts").symlink_to(ROOT / "scripts")
    return folder, {**environment, "CHECKPOINT_URI": f"file://{folder}/runs/checkpoints"}


def typed(text: str, folder: Path, environment: Mapping[str, str]) -> str:
    """What a shell in that folder prints for this line; it has to end with 0."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


def served(text: str, folder: Path, environment: Mapping[str, str]) -> int:
    """The HTTP status of the page at the address that this line prints; then it is ended."""
    with subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        try:
            for line in process.stdout:
                said.append(line)
                if found := ADDRESS.search(line):
                    return int(urllib.request.urlopen(found[0], timeout=60).status)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    raise AssertionError(f"{text} printed no address\n{''.join(said)}")


def substituted(text: str) -> str:
    """As it is typed here: the numbers of a small run, and the Python that runs the tests."""
    for written, used in SUBSTITUTIONS.items():
        text = text.replace(written, used)
    return text.replace(".venv/bin/python ", "python ")


@pytest.mark.xdist_group("pages")
@pytest.mark.parametrize("shown", MINE, ids=lambda shown: shown.text)
def test_a_command_of_a_page_ends_well_and_says_something(
    shown: Command, here: tuple[Path, dict[str, str]]
) -> None:
    folder, environment = here
    for words, change in BEFORE.items():
        if f" {words}" in shown.text:
            change(folder / "runs" / "checkpoints" / "tiny")
    if " --serve" in shown.text:  # it goes on until it is stopped
        assert served(substituted(shown.text), folder, environment) == 200
    else:
        assert typed(substituted(shown.text), folder, environment)


@pytest.mark.xdist_group("pages")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[0])
def test_the_python_of_a_page_runs(snippet: str, here: tuple[Path, dict[str, str]]) -> None:
    folder, environment = here
    typed(f"python -c {shlex.quote(snippet)}", folder, environment)


def test_every_command_of_the_pages_is_run_or_says_what_it_needs() -> None:
    assert [str(shown) for shown in unrun(PAGES)] == [], (
        "nobody runs these: let .ci/run, the drill or a test do it, or write above the block what "
        "was not there: *Not run by a test: needs …*"
    )


def test_what_prepares_and_replaces_is_still_needed() -> None:
    shown = "\n".join(mine.text for mine in MINE)
    assert [words for words in [*SUBSTITUTIONS, *BEFORE] if words not in shown] == []


MADE_UP = """\
# A page

Run `docker compose logs train`, or look at `docker compose up` or `python -m app data`:

    A_VARIABLE=1 make fly        # as high as it can
    docker compose up train \\
        s3

*Not run by a test: needs a cluster.*

    kubectl get pods

And so on:

    kubectl get jobs
    kubectl get nodes            # not run by a test: needs nodes

1. In a list:

       python -m app fly
       2026 lines of a log
   ```sh
   python -m bench.fly
   ```

Here `git push` is not tried. *Not run by a test: needs an account.*
"""


def test_a_command_that_nobody_runs_is_found_wherever_it_stands_on_a_page() -> None:
    pages = {"made-up.md": MADE_UP}
    assert [shown.text for shown in unrun(pages)] == [
        "A_VARIABLE=1 make fly",
        "kubectl get jobs",
    ]
    assert [shown.text for shown in run_by(Runner.DRILL, pages)] == [
        "docker compose up train s3",
        "docker compose logs train",
    ]
    assert [shown.text for shown in run_by(Runner.TEST, pages)] == [
        "python -m app fly",
        "python -m bench.fly",
        "python -m app data",
    ]
    assert {shown.text: shown.needs for shown in commands("", MADE_UP) if shown.needs} == {
        "kubectl get pods": "needs a cluster",
        "kubectl get nodes": "needs nodes",
        "git push": "needs an account",
    }


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)app fly.*invalid choice"):
        typed("python -m app fly", tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})


def test_a_page_that_a_command_serves_is_asked_for(tmp_path: Path) -> None:
    server = "python -m http.server 0 --bind 127.0.0.1"
    assert served(server, tmp_path, os.environ) == 200
    with pytest.raises(AssertionError, match=r"(?s)printed no address.*no such thing"):
        served("echo no such thing", tmp_path, os.environ)


@pytest.fixture
def engine_that_refuses_to_fly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `docker` that writes down what it is asked, and ends with 1 if it is to fly."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n! echo "$*" | grep fly\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("engine_that_refuses_to_fly")
def test_the_drill_types_what_is_new_on_a_page_and_fails_where_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = 'Some words:\n\n    docker compose run --rm train fly --to "the moon"\n    docker ps\n'
    drill = Drill({"made-up.md": page})
    type_what_else_the_pages_show(drill)
    drill.folder.cleanup()
    assert (drill.passed, drill.failed) == (1, 1)
    assert (tmp_path / "asked").read_text() == "compose run --rm train fly --to the moon\nps\n"
    assert "FAILED docker compose run --rm train fly" in capsys.readouterr().out


def test_what_the_drill_types_itself_is_shown_on_a_page() -> None:
    drill = Drill(PAGES)
    shown = [drill.words(command) for command in (UP, EXTEND, KILL, STOP, VERIFY, PULL, GENERATE)]
    drill.folder.cleanup()
    assert shown[1].startswith("ADDITIONAL_STEPS=12 ")


def test_a_line_of_a_page_that_sets_variables_sets_those_that_the_job_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [
        (page, line.strip())
        for page, text in PAGES.items()
        for block in blocks(text)
        for line in block.lines
        if VARIABLES.fullmatch(line.strip())
    ]
    assert len(lines) > 5
    for page, line in lines:
        values = dict(word.split("=", 1) for word in shlex.split(line))
        assert unknown_variables(values) == [], page
        settings_of(values, monkeypatch, tmp_path)
        for name in values:
            monkeypatch.delenv(name)
