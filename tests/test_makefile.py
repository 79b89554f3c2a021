"""`make`, and scripts/environment behind it, with stand-ins for Python that install nothing."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.repository import ROOT

TARGETS = ["train", "test", "check", "report", "clean"]
EXTRAS = ["trackers", "evaluation", "gguf"]
REQUIREMENTS = [
    *("requirements.txt", "requirements-test.txt", "requirements-store.txt"),
    *(f"requirements-{extra}.txt" for extra in EXTRAS),
]
# Makes an environment with itself as its Python, and writes down what else it is asked for.
STAND_IN = """\
#!/bin/sh
case "$*" in
  *version_info*) exit "${STAND_IN_OLD:-0}" ;;
  *ensurepip*) exit "${STAND_IN_BARE:-0}" ;;
  *fcntl*) exec "$REAL_PYTHON" "$@" ;;
  "-c ") exit 0 ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *) echo "$*" >>asked; exit "${STAND_IN_CODE:-0}" ;;
esac
"""

pytestmark = needs.make


class Checkout:
    """A folder with the files that make reads, where `python3.11` is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        for name in ["Makefile", "scripts/environment", *REQUIREMENTS]:
            shutil.copy(ROOT / name, folder / name)
        for name in ("app", "bench", "tests", "runs"):
            (folder / name).mkdir()
        tools = folder / "tools"
        tools.mkdir()
        (tools / "python3.11").write_text(STAND_IN)
        (tools / "python3.11").chmod(0o755)
        for tool in ("sh", "make", "env", "sed", "cat", "cmp", "cp", "rm", "mkdir", "dirname"):
            self.link(tool)
        for tool in ("grep", "uname", "find"):
            self.link(tool)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": str(self.folder / "tools"), "REAL_PYTHON": sys.executable}

    def link(self, tool: str) -> None:
        found = shutil.which(tool)
        assert found, tool
        (self.folder / "tools" / tool).symlink_to(found)

    def make(self, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["make", *words],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[str]:
        """What Python was asked for since the last look."""
        file = self.folder / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a folder")


def test_make_alone_lists_what_there_is_with_a_line_each(checkout: Checkout) -> None:
    listed = checkout.make().stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == [f"make {name}" for name in TARGETS]
    assert all(len(line.split("\t")[1]) > 10 for line in listed)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert targets == ["help", *TARGETS]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert phony and phony[1].split() == targets


def test_the_first_call_installs_and_the_second_only_trains(checkout: Checkout) -> None:
    first = checkout.make("train", "TOTAL_STEPS=60")
    assert first.returncode == 0, first.stderr
    torch, packages, train = checkout.asked()
    assert re.search(r" --no-deps .*--extra-index-url https://\S+/cpu torch==[\d.]+$", torch)
    assert packages.endswith("-r requirements.txt") and train == "-m app train"
    assert checkout.make("train").returncode == 0
    assert checkout.asked() == ["-m app train"]


def test_two_calls_at_once_work_on_the_environment_one_after_the_other(checkout: Checkout) -> None:
    with (checkout.folder / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            ["make", "train"],
            cwd=checkout.folder,
            env=checkout.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiting.stderr is not None
        assert "waiting for another make" in waiting.stderr.readline()
        assert checkout.asked() == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and checkout.asked()[-1] == "-m app train"


def test_a_call_that_has_nothing_to_install_waits_for_nobody(checkout: Checkout) -> None:
    checkout.make("train")
    with (checkout.folder / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert checkout.make("train").returncode == 0


def test_a_folder_that_cannot_be_written_to_is_named(checkout: Checkout) -> None:
    (checkout.folder / ".venv.lock").mkdir()  # refused to root, too
    refused = checkout.make("train")
    assert refused.returncode == 2
    assert f"{checkout.folder} cannot be written to (Is a directory)" in refused.stderr


def test_tests_install_what_they_need_beside_that(checkout: Checkout) -> None:
    assert checkout.make("train").returncode == 0
    checkout.asked()
    (checkout.folder / "tools/python").symlink_to("python3.11")
    assert checkout.make("test", "ARGS=-k lease").returncode == 0
    tests, *extras, store, run = checkout.asked()
    assert "-r requirements-test.txt -c requirements.txt" in tests
    assert len(extras) == len(EXTRAS)
    for extra, line in zip(EXTRAS, extras, strict=True):
        assert f"-r requirements-{extra}.txt -c requirements.txt" in line
    assert "-r requirements-store.txt --require-hashes" in store
    assert run == "-m pytest -k lease"


@pytest.mark.parametrize("extra", EXTRAS)
def test_optional_packages_are_installed_by_name_and_once(extra: str, checkout: Checkout) -> None:
    assert checkout.make("train", EXTRAS=extra).returncode == 0
    *_, packages, train = checkout.asked()
    assert f"-r requirements-{extra}.txt -c requirements.txt" in packages
    assert train == "-m app train"
    assert checkout.make("train", EXTRAS=extra).returncode == 0
    assert checkout.asked() == ["-m app train"]


def test_an_unknown_name_of_optional_packages_is_refused(checkout: Checkout) -> None:
    refused = checkout.make("train", EXTRAS="tracker")
    assert refused.returncode == 2 and "-m app train" not in checkout.asked()
    assert f"there is no tracker. Known: {' '.join(EXTRAS)}" in refused.stderr


def test_where_there_is_no_build_of_the_store_the_rest_is_installed(checkout: Checkout) -> None:
    uname = checkout.folder / "tools/uname"
    uname.unlink()
    uname.write_text("#!/bin/sh\necho Darwin arm64\n")
    uname.chmod(0o755)
    assert checkout.make("check").returncode != 0, "there is no scripts/check here"
    asked = checkout.asked()
    assert len(asked) == 2 + len(EXTRAS) and not any("extra-index" in line for line in asked)
    assert not any("requirements-store" in line for line in asked)


def test_a_machine_with_a_gpu_gets_the_usual_torch(checkout: Checkout) -> None:
    (checkout.folder / "tools/nvidia-smi").symlink_to("sh")
    assert checkout.make("train").returncode == 0
    assert len(checkout.asked()) == 2


@pytest.mark.parametrize(("index", "calls"), [("https://example.com/whl", 3), ("", 2)])
def test_another_index_of_torch_can_be_named_or_none(
    index: str, calls: int, checkout: Checkout
) -> None:
    assert checkout.make("train", TORCH_INDEX_URL=index).returncode == 0
    asked = checkout.asked()
    assert len(asked) == calls and (index in asked[0])


def test_an_install_that_failed_is_made_again(checkout: Checkout) -> None:
    failed = checkout.make("train", STAND_IN_CODE="1")
    assert failed.returncode == 2 and "-m app train" not in checkout.asked()
    assert checkout.make("train").returncode == 0
    _, packages, train = checkout.asked()
    assert packages.endswith("-r requirements.txt --force-reinstall") and train == "-m app train"


def test_a_failed_install_of_what_tests_need_costs_training_nothing(checkout: Checkout) -> None:
    checkout.make("train")
    assert checkout.make("test", STAND_IN_CODE="1").returncode == 2
    checkout.asked()
    assert checkout.make("train").returncode == 0
    assert checkout.asked() == ["-m app train"]
    (checkout.folder / "tools/python").symlink_to("python3.11")
    assert checkout.make("test").returncode == 0
    tests, *_ = checkout.asked()
    assert "-r requirements-test.txt --force-reinstall" in tests


def test_an_environment_that_broke_off_while_it_was_made_is_made_anew(checkout: Checkout) -> None:
    checkout.make("train")
    (checkout.folder / ".venv/half").touch()
    (checkout.folder / ".venv/unfinished").touch()
    assert checkout.make("train").returncode == 0
    assert not (checkout.folder / ".venv/half").exists()


def test_a_python_whose_path_has_a_space_can_be_named(checkout: Checkout) -> None:
    folder = checkout.folder / "tools/a folder"
    folder.mkdir()
    named = (checkout.folder / "tools/python3.11").rename(folder / "python")
    assert checkout.make("train", PYTHON=str(named)).returncode == 0


def test_other_requirements_are_installed(checkout: Checkout) -> None:
    checkout.make("train")
    checkout.asked()
    with (checkout.folder / "requirements.txt").open("a") as file:
        file.write("another==1\n")
    assert checkout.make("train").returncode == 0
    assert len(checkout.asked()) == 3


def test_a_folder_that_was_moved_gets_an_environment_of_its_own(checkout: Checkout) -> None:
    checkout.make("train")
    checkout.asked()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert checkout.make("train").returncode == 0
    assert len(checkout.asked()) == 3


def test_without_a_python_that_is_new_enough_one_line_says_what_to_do(checkout: Checkout) -> None:
    refused = checkout.make("train", STAND_IN_OLD="1")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Python 3.11 or newer is needed, and none is found as ")
    assert "PYTHON=/path/to/python3" in refused.stderr
    named = checkout.make("train", PYTHON="/no/python").stderr
    assert named.startswith("Python 3.11 or newer is needed, and none is found as /no/python.")
    assert not (checkout.folder / ".venv").exists()


def test_without_the_modules_for_environments_the_package_is_named(checkout: Checkout) -> None:
    refused = checkout.make("train", STAND_IN_BARE="1")
    assert refused.returncode == 2 and "install the package python3-venv" in refused.stderr
    assert not (checkout.folder / ".venv").exists()


def test_an_environment_that_make_did_not_make_is_left_alone(checkout: Checkout) -> None:
    (checkout.folder / ".venv").mkdir()
    (checkout.folder / ".venv/mine").touch()
    refused = checkout.make("train")
    assert refused.returncode == 2 and "make did not make it" in refused.stderr
    assert checkout.make("clean").returncode == 0
    assert (checkout.folder / ".venv/mine").exists()


def test_clean_removes_what_make_made_and_never_a_run(checkout: Checkout) -> None:
    checkout.make("train")
    (checkout.folder / "runs/checkpoint").touch()
    (checkout.folder / "app/__pycache__").mkdir()
    (checkout.folder / ".mypy_cache").mkdir()
    before = {path.name for path in checkout.folder.iterdir()}
    assert checkout.make("clean").returncode == 0
    after = {path.name for path in checkout.folder.iterdir()}
    assert before - after == {".venv", ".mypy_cache"}
    assert (checkout.folder / "runs/checkpoint").exists()
    assert not (checkout.folder / "app/__pycache__").exists()


def test_the_exit_code_of_the_training_is_said(checkout: Checkout) -> None:
    checkout.make("train")
    ended = checkout.make("train", STAND_IN_CODE="75")
    assert ended.returncode == 2 and "Error 75" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_training_which_ends_in_its_own_time(
    number: signal.Signals, checkout: Checkout
) -> None:
    """Ctrl-C goes to the whole group; who ends `make` alone means the training too."""
    checkout.make("train")
    python = checkout.folder / ".venv/bin/python"
    python.write_text(
        "#!/bin/sh\n[ \"$1\" = -c ] && exit\ntrap 'echo saved; exit 143' INT TERM\n"
        "echo trains\nwhile :; do :; done\n"
    )
    running = subprocess.Popen(
        ["make", "train"],
        cwd=checkout.folder,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout
    assert running.stdout.readline() == "trains\n"
    if number is signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    assert running.communicate(timeout=60)[0] == "saved\n"
    assert running.returncode != 0
