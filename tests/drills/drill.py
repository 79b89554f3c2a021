"""The whole job against a real container engine: train, kill, resume, extend, pull, generate.

    python3 -m tests.drills.drill

Needs Docker with compose v2, and nothing of Python but its standard library. It uses
a compose project of its own, and removes it in the end. It follows the log and asks the
engine. Exit code 0 if every check passed.

It types every command with `docker` that the pages show (`tests/support/page_commands.py`), each as
it is written: those that train, kill and stop where the drill needs them, all others at its end.
A new one is typed without a word here. Only what `SUBSTITUTIONS` says is changed.
"""

import argparse
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.page_commands import Runner, run_by, user_pages

ROOT = Path(__file__).resolve().parents[2]

TOTAL_STEPS, ADDITIONAL_STEPS, EVERY, KEEP_TOP = 40, 12, 5, 2
JOB = {
    "MODEL": "tiny",
    "DEVICE": "cpu",
    "SEQ_LEN": "64",
    "BATCH_SIZE": "2",
    "GLOBAL_BATCH_SIZE": "4",
    "TOTAL_STEPS": str(TOTAL_STEPS),
    "WARMUP_STEPS": "5",
    "CHECKPOINT_EVERY_STEPS": str(EVERY),
    "LOG_EVERY_STEPS": "1",
    "VAL_EVERY_STEPS": "0",
    "SAMPLE_EVERY_STEPS": "0",
    "KEEP_TOP": str(KEEP_TOP),
}
SHAPE = "{MODEL} on {DEVICE}, {GLOBAL_BATCH_SIZE} sequences of {SEQ_LEN} tokens".format_map(JOB)

# What the log of the job says, in one place.
STEP = r"\bstep (?P<step>\d+)/(?P<target>\d+) \| loss (?P<loss>[\d.]+)"
FRESH = r"fresh start, target step (?P<target>\d+)"
RESUMED = r"resumed from step (?P<step>\d+) .*target step (?P<target>\d+)"
REACHED = r"target reached: step (?P<step>\d+)"
TO_WRITE_TEXT = r"next, text from the model: (?P<command>.+)"
NOTHING = r"nothing to do: \S+ is finished at step (?P<step>\d+)"

# What the pages show and the drill types where it needs it.
UP = "docker compose up train"
EXTEND = "ADDITIONAL_STEPS=500 docker compose up train"
KILL = "docker kill $(docker compose ps -q train)"
STOP = "docker compose stop train"
VERIFY = "docker compose run --rm train checkpoints verify"
GENERATE = 'docker compose run --rm train generate --prompt "def main("'
PULL = (
    'docker compose run --rm -v "$PWD:/out" --user "$(id -u)" train'
    " checkpoints pull --to /out/model"
)
# What is typed in the place of the words of a page: the drill has no time for more steps.
SUBSTITUTIONS = {
    "ADDITIONAL_STEPS=500": f"ADDITIONAL_STEPS={ADDITIONAL_STEPS}",
    "-e RUN_NAME=books": "-e RUN_NAME=books -e TOTAL_STEPS=6",
}
BOOK = "The days go by, and each of them is as long as the one before. " * 2000

# And its page.
PAGE_STEP = rf"(?:training|evaluating)[^<]*: step (\d+) of {TOTAL_STEPS}<"

READ_RULES = (
    "import urllib.request as r\n"
    "print(r.urlopen('http://127.0.0.1:8888/etc/seaweedfs/filer.conf').read().decode())"
)

DRILL_SECONDS = 1200.0
BUILD_SECONDS = 900.0
STEP_SECONDS = 180.0
RESTART_SECONDS = 60.0
PAGE_SECONDS = 60.0
# Goals for a machine that does nothing else. A shared one may be slower: a miss is said, and only
# twice the goal fails.
FIRST_STEP_GOAL = 20.0
FRESH_GOAL = 300.0


class DrillError(Exception):
    """The drill cannot go on: something did not happen in time, or a command failed."""


class Drill:
    """One compose project, its clock and its score."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        self.passed = self.failed = self.slow = 0
        self.followed: list[subprocess.Popen[str]] = []
        self.shown = [command.text for command in run_by(Runner.DRILL, pages)]
        self.typed: set[str] = set()
        self.folder = tempfile.TemporaryDirectory(prefix="drill-")  # where a reader types
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            **JOB,
            "COMPOSE_PROJECT_NAME": f"smollm2-drill-{os.getpid()}",
            "COMPOSE_FILE": str(ROOT / "docker-compose.yml"),
            "S3_PORT": "0",  # any that is free
            "TENSORBOARD_PORT": "0",
            "REPORT_PORT": "0",
            "COMPOSE_ENV_FILES": os.devnull,  # a .env of the developer's must not change the drill
            "COMPOSE_ANSI": "never",
            "BUILDKIT_PROGRESS": "plain",
        }

    def check(self, sentence: str, holds: bool, detail: object = "", word: str = "ok") -> None:
        self.passed += holds
        self.failed += not holds
        shown = f": {detail}" if detail != "" else ""
        print(f"  {word if holds else 'FAILED':<6} {sentence}{shown}")

    def check_time(self, sentence: str, seconds: float, goal: float, detail: str = "") -> None:
        in_time, passed = seconds <= goal, seconds <= 2 * goal
        self.slow += passed and not in_time
        detail = f"{seconds:.1f} s{detail} (goal {goal:.0f} s)"
        self.check(sentence, passed, detail, "ok" if in_time else "slow")

    def seconds_left(self, wanted: float) -> float:
        left = DRILL_SECONDS - (time.monotonic() - self.started)
        if left <= 0:
            raise DrillError(f"the drill took longer than {DRILL_SECONDS:.0f} s")
        return min(wanted, left)

    def words(self, shown: str) -> str:
        """What is typed for a command that a page shows. Raises DrillError if none shows it."""
        if shown not in self.shown:
            raise DrillError(f"no page shows {shown}: the drill has to type what readers type")
        self.typed.add(shown)
        for written, used in SUBSTITUTIONS.items():
            shown = shown.replace(written, used)
        return shown

    def type(
        self, shown: str, timeout: float = 120.0, allowed: tuple[int, ...] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        """Type a command of the pages in a shell, and wait for its end."""
        command = ["bash", "-c", self.words(shown)]
        return self.ended(command, Path(self.folder.name), timeout, allowed)

    def docker(
        self, *arguments: str, timeout: float = 120.0, allowed: tuple[int, ...] = (0,)
    ) -> subprocess.CompletedProcess[str]:
        return self.ended(["docker", *arguments], ROOT, timeout, allowed)

    def ended(
        self, command: list[str], folder: Path, timeout: float, allowed: tuple[int, ...]
    ) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=self.seconds_left(timeout),
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DrillError(f"{' '.join(command)} did not end in {error.timeout:.0f} s") from error
        if done.returncode not in allowed:
            raise DrillError(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def run(self, *words: str, timeout: float = 120.0) -> str:
        """`docker compose run --rm --no-deps train WORDS`: its standard output."""
        command = ("compose", "run", "--rm", "--no-deps", "-T")
        return self.docker(*command, *words, timeout=timeout).stdout

    def committed_steps(self) -> list[int]:
        """Steps of the checkpoints that are complete in the store, the newest first."""
        listing = self.run("train", "checkpoints", "list", "--json")
        try:
            rows = json.loads(listing)["checkpoints"]
        except ValueError as error:
            raise DrillError(f"checkpoints list --json printed no JSON:\n{listing}") from error
        return sorted((row["step"] for row in rows if row["state"] == "committed"), reverse=True)

    def clean_up(self) -> None:
        for process in self.followed:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(
            ["docker", "compose", "down", "--volumes", "--remove-orphans", "--timeout", "2"],
            cwd=ROOT,
            env=self.environment,
            timeout=120,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        self.folder.cleanup()


class Training:
    """One `docker compose up` as a page shows it, whose log is followed."""

    def __init__(
        self, drill: Drill, shown: str = UP, service: str = "train", **changes: str
    ) -> None:
        self._service = service
        self._drill = drill
        self.started = time.monotonic()
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            ["bash", "-c", drill.words(shown)],
            cwd=drill.folder.name,
            env={**drill.environment, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        drill.followed.append(self._process)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._new.put(line.rstrip())
        self._new.put(None)

    def wait_for(self, pattern: str, timeout: float) -> re.Match[str]:
        """The next line that matches. Raises DrillError if the log ends or time runs out."""
        deadline = time.monotonic() + self._drill.seconds_left(timeout)
        while True:
            try:
                line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DrillError(
                    f"no line like {pattern!r} in {timeout:.0f} s\n{self.tail()}"
                ) from None
            if line is None:
                raise DrillError(f"the log ended without a line like {pattern!r}\n{self.tail()}")
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    def wait_for_step(self, at_least: int, timeout: float = STEP_SECONDS) -> int:
        step = -1
        while step < at_least:
            step = int(self.wait_for(STEP, timeout)["step"])
        return step

    def container(self) -> str:
        listed = self._drill.docker("compose", "ps", "--all", "--quiet", self._service)
        found = listed.stdout.split()
        if len(found) != 1:
            raise DrillError(f"one container of {self._service} expected, found {found}")
        return found[0]

    def end(self, timeout: float = STEP_SECONDS) -> int:
        """Read the log to its end; the exit code of the container."""
        try:
            self._process.wait(self._drill.seconds_left(timeout))
        except subprocess.TimeoutExpired as error:
            raise DrillError(f"training did not end in {timeout:.0f} s\n{self.tail()}") from error
        while (line := self._new.get(timeout=30)) is not None:
            self.lines.append(line)
        return self.inspected("State.ExitCode")

    def inspected(self, number: str) -> int:
        return int(self.state(number))

    def state(self, field: str) -> str:
        template = f"{{{{.{field}}}}}"
        found = self._drill.docker("inspect", "--format", template, self.container())
        return found.stdout.strip()

    def last_step(self) -> int:
        steps = [int(found["step"]) for line in self.lines if (found := re.search(STEP, line))]
        return steps[-1] if steps else -1

    def said(self, pattern: str) -> re.Match[str] | None:
        found = (re.search(pattern, line) for line in self.lines)
        return next((match for match in found if match), None)

    def tail(self) -> str:
        return "\n".join(f"    | {line}" for line in self.lines[-25:])


def build(drill: Drill) -> float:
    print("build the images")
    started = time.monotonic()
    done = drill.docker("compose", "build", "train", "s3", timeout=BUILD_SECONDS)
    cached = len(re.findall(r"^#\d+ CACHED$", done.stdout + done.stderr, re.M))
    print(f"         {time.monotonic() - started:.1f} s, {cached} steps from the cache")
    return time.monotonic() - started


def kill_in_the_middle(drill: Drill, build_seconds: float) -> int:
    """Start from nothing and SIGKILL it; the step of the newest checkpoint."""
    print("train, and kill -9 in the middle")
    training = Training(drill)
    training.wait_for(FRESH, STEP_SECONDS)
    training.wait_for_step(1)
    first_step = time.monotonic() - training.started
    drill.check_time(f"from built image to first step ({SHAPE})", first_step, FIRST_STEP_GOAL)
    both, parts = build_seconds + first_step, f", {build_seconds:.1f} s of it the build"
    drill.check_time("from clone to first step", both, FRESH_GOAL, parts)
    training.wait_for_step(3 * EVERY + 2)
    health = ["compose", "exec", "-T", "train", "python", "-m", "app", "health"]
    healthy = drill.docker(*health, allowed=(0, 75))
    drill.check("the health check passes while it trains", healthy.returncode == 0)
    look_at_the_page(drill)
    drill.type(KILL)
    code = training.end()
    drill.check("docker kill ends it at once", code == 137, f"exit {code}")
    newest, died_at = drill.committed_steps()[0], training.last_step()
    drill.check(
        "the kill cost at most two checkpoint intervals",  # one may have been on its way
        died_at - 2 * EVERY <= newest <= died_at,
        f"died at step {died_at}, newest checkpoint {newest}",
    )
    return newest


def look_at_the_page(drill: Drill) -> None:
    """As a browser on this machine does, while the job trains."""
    published = drill.docker("compose", "port", "report", "8080").stdout.strip()
    drill.check("the page is there for this machine alone", published.startswith("127.0.0.1:"))
    deadline = time.monotonic() + drill.seconds_left(PAGE_SECONDS)
    found = None
    while found is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{published}/", timeout=10) as answer:
                found = re.search(PAGE_STEP, answer.read().decode())
        except OSError:  # it starts beside the job
            pass
        time.sleep(0.5)
    drill.check("the page shows the step while it trains", found is not None, found and found[1])


def look_at_the_store(drill: Drill) -> None:
    print("look at the object store")

    def inside(*command: str) -> str:
        allowed = tuple(range(256))
        return drill.docker("compose", "exec", "-T", "s3", *command, allowed=allowed).stdout

    drill.check("it runs as a user of its own", inside("id", "-u").strip() == "10002")
    drill.check("its root is read-only", inside("sh", "-c", "touch /new || echo refused") != "")
    key = inside("cat", "/key/credentials")
    made = re.search(r"aws_access_key_id = stack-\w{16}\naws_secret_access_key = \S{40}\n", key)
    drill.check("its key was made for this installation", made is not None)
    rules = inside("python", "-c", READ_RULES)
    synced = [rule["locationPrefix"] for rule in json.loads(rules)["locations"] if rule["fsync"]]
    drill.check("what is written to a bucket is synced", synced == ["/buckets/"], synced)


def stop_in_the_middle(drill: Drill, newest: int) -> int:
    """Start again after the kill, then SIGTERM; the step of the newest checkpoint."""
    print("start again, restart the store beside it, and docker stop in the middle")
    training = Training(drill)
    resumed = training.wait_for(RESUMED, STEP_SECONDS)
    drill.check(
        "it resumes from the newest checkpoint", int(resumed["step"]) == newest, resumed["step"]
    )
    first = training.wait_for_step(0)
    drill.check("and continues with the step after it", first == newest + 1, first)
    print(f"         from start to resumed step: {time.monotonic() - training.started:.1f} s")
    drill.docker("compose", "restart", "s3")
    training.wait_for_step(newest + 2)
    started = time.monotonic()
    drill.type(STOP)
    code = training.end()
    drill.check(
        "SIGTERM ends it in order",
        code == 143,
        f"exit {code} in {time.monotonic() - started:.1f} s",
    )
    newest, last = drill.committed_steps()[0], training.last_step()
    drill.check("with its last step committed", newest >= last, f"step {last}, saved {newest}")
    return newest


def finish(drill: Drill, newest: int) -> str:
    """Returns what the last lines say to type for a text."""
    print("start again, and let it finish")
    training = Training(drill)
    code = training.end()
    resumed, reached = training.said(RESUMED), training.said(REACHED)
    drill.check(
        "it resumes from the step that SIGTERM committed",
        resumed is not None and int(resumed["step"]) == newest,
        resumed and resumed["step"],
    )
    drill.check(
        "and reaches the target", reached is not None and int(reached["step"]) == TOTAL_STEPS
    )
    drill.check("with exit code 0", code == 0, code)
    if code != 0:
        raise DrillError(training.tail())
    drill.check("and does not start again", training.inspected("RestartCount") == 0)

    print("start a finished run again")
    training = Training(drill)
    code = training.end()
    drill.check(
        "there is nothing to do, exit 0", code == 0 and training.said(NOTHING) is not None, code
    )
    following = training.said(TO_WRITE_TEXT)
    if following is None:
        raise DrillError(f"no line says how to write a text\n{training.tail()}")
    return following["command"]


def extend(drill: Drill) -> int:
    print(f"extend it: ADDITIONAL_STEPS={ADDITIONAL_STEPS}")
    target = TOTAL_STEPS + ADDITIONAL_STEPS
    training = Training(drill, EXTEND, EXTENSION_ID="drill-1")
    code = training.end()
    reached = training.said(REACHED)
    drill.check(
        f"it trains on to step {target}",
        code == 0 and reached is not None and int(reached["step"]) == target,
        f"exit {code}",
    )
    training = Training(drill, EXTEND, EXTENSION_ID="drill-1")
    code = training.end()
    drill.check(
        "the same extension is not applied twice", code == 0 and training.last_step() < 0, code
    )
    return target


def use_the_result(drill: Drill, target: int, to_write_text: str) -> None:
    print("use the result")
    steps = drill.committed_steps()
    drill.check(
        f"the store keeps the newest, the best {KEEP_TOP} and the one resumed from",
        steps[0] == target and len(steps) <= KEEP_TOP + 2,
        steps,
    )
    verified = drill.type(VERIFY).stdout
    drill.check("every byte is what was written", f"{len(steps)} checkpoints verified" in verified)
    drill.type(PULL)
    pulled = f"{drill.folder.name}/model:/pulled:ro"
    script = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "t, m = T.from_pretrained('/pulled'), M.from_pretrained('/pulled')\n"
        "ids = m.generate(**t('def main(', return_tensors='pt'), max_new_tokens=8)\n"
        "print('GENERATED', ids.shape[1], sum(p.numel() for p in m.parameters()))"
    )
    python = ("--volume", pulled, "--entrypoint", "python", "train", "-c", script)
    loaded = drill.run(*python, timeout=180)
    drill.check("a pulled checkpoint loads in transformers and generates", "GENERATED" in loaded)
    text = drill.type(GENERATE, timeout=180).stdout
    drill.check("generate continues a prompt", _continues(text))
    typed = ["sh", "-c", f"{to_write_text} --max_tokens 16"]
    text = drill.ended(typed, ROOT, 180, (0,)).stdout
    drill.check("what the log says to type writes a text", _continues(text), to_write_text)
    refused = drill.docker(
        *("compose", "run", "--rm", "--no-deps", "-T", "-e", "TOTAL_STEP=5", "train"),
        allowed=tuple(range(256)),
    )
    drill.check("a misspelled variable is refused", refused.returncode == 78, refused.returncode)


def _continues(text: str, prompt: str = "def main(") -> bool:
    return prompt in text and len(text.strip()) > len(prompt)


def type_what_else_the_pages_show(drill: Drill) -> None:
    print("type what else the pages show")
    books = Path(drill.folder.name) / "books"
    books.mkdir(mode=0o755)
    (books / "days.txt").write_text(BOOK)
    for shown in drill.shown:
        if shown in drill.typed:
            continue
        try:
            if " up " in shown:
                stays_up(drill, shown)
            else:
                drill.type(shown, timeout=240)
        except DrillError as error:
            drill.check(shown, False, error)
        else:
            drill.check(shown, True)


def stays_up(drill: Drill, shown: str) -> None:
    """Type what starts a service, wait until it is healthy, and stop it."""
    service = shown.rsplit(maxsplit=1)[-1]
    started = Training(drill, shown, service)
    deadline = time.monotonic() + drill.seconds_left(STEP_SECONDS)
    started.wait_for(service, STEP_SECONDS)
    while (health := started.state("State.Health.Status")) != "healthy":
        if time.monotonic() > deadline:
            raise DrillError(f"{service} is {health} after {STEP_SECONDS:.0f} s\n{started.tail()}")
        time.sleep(0.5)
    drill.docker("compose", "stop", "--timeout", "5", service)
    started.end()


def fail(drill: Drill) -> None:
    print("fail: a wrong setting")
    training = Training(drill, TOTAL_STEPS="none")
    training.wait_for(r"TOTAL_STEPS='none' .*\(exit 78\)", STEP_SECONDS)
    deadline = time.monotonic() + drill.seconds_left(RESTART_SECONDS)
    while not (restarts := training.inspected("RestartCount")) and time.monotonic() < deadline:
        time.sleep(0.5)
    drill.check("a failed job starts again", restarts > 0, f"{restarts} times")
    drill.docker("compose", "stop", "train")


def drilled(drill: Drill, build_seconds: float) -> None:
    newest = kill_in_the_middle(drill, build_seconds + build(drill))
    look_at_the_store(drill)
    newest = stop_in_the_middle(drill, newest)
    to_write_text = finish(drill, newest)
    use_the_result(drill, extend(drill), to_write_text)
    type_what_else_the_pages_show(drill)
    fail(drill)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--build-seconds", type=float, default=0.0, help="of the build just made")
    arguments = parser.parse_args()
    drill = Drill(user_pages())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` cleans up
    try:
        drilled(drill, arguments.build_seconds)
    except DrillError as error:
        drill.check("the drill goes on", False, error)
    finally:
        drill.clean_up()
    print(f"drill: {time.monotonic() - drill.started:.0f} s")
    print(f"{drill.passed} passed ({drill.slow} slower than the goal), {drill.failed} failed")
    return 1 if drill.failed else 0


if __name__ == "__main__":
    sys.exit(main())
