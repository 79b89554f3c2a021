import io
import json
import os
import pty
import select
import signal
import sys
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.cli.confirmation import confirmed
from app.errors import ConfigError
from app.printable import printable
from app.run.committing import commit
from app.run.journal import AttemptJournal
from app.run.layout import LEASE, CheckpointName
from app.run.lease import Lease
from app.run.retention import quarantine
from app.state.identity import RunRecord
from app.state.snapshot import STATE_FILES
from app.state.tensor_files import tensor_file
from app.stores.contract import Data
from app.stores.local import LocalStore
from app.stores.opening import open_store
from tests.support.repository import ROOT
from tests.support.stored_run import IDENTITY, FreeLease, attempt_record
from tests.support.training_state import progress

EMPTY: dict[str, Data] = {"state.json": [b"{}"]}
FORGED = "x\r\n12:00:00 nothing will be deleted\x1b[2J\u2028\u202e"
_WHAT = "step-0000000040-e000001 would be deleted"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _typed(monkeypatch: pytest.MonkeyPatch, answer: str) -> _Terminal:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stdin", _Terminal(answer))
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " yes \n"])
def test_who_says_yes_on_a_terminal_was_told_what_will_be_done(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = _typed(monkeypatch, answer)
    confirmed(_WHAT, yes=False)
    assert screen.getvalue().startswith(f"{_WHAT}\nDo this?")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "maybe\n"])
def test_anything_but_yes_is_a_no(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _typed(monkeypatch, answer)
    with pytest.raises(ConfigError, match=r"nothing was changed.*--yes"):
        confirmed(_WHAT, yes=False)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_without_a_terminal_nothing_is_asked_and_nothing_is_done(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _typed(monkeypatch, "yes\n")
    monkeypatch.setattr(sys, stream, io.StringIO("yes\n"))
    with pytest.raises(ConfigError, match="--yes"):
        confirmed(_WHAT, yes=False)


def test_yes_beforehand_is_not_asked_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    confirmed(_WHAT, yes=True)
    assert capsys.readouterr().out == f"{_WHAT}\n"


@pytest.mark.usefixtures("nothing_set")
@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        (("checkpoints", "rollback", "--to", "2"), False),
        (("checkpoints", "accept", "8"), False),
        (("checkpoints", "prune", "--keep", "0"), False),
        (("checkpoints", "takeover"), True),
        (("quarantine", "purge"), False),
        (("run", "repair"), True),
    ],
)
def test_what_a_store_says_forges_no_line_of_the_question(
    words: tuple[str, ...],
    quoted: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = open_store(f"file://{tmp_path}", "tiny")
    record = RunRecord(
        run_name=FORGED,
        created_at=FORGED,
        identity=IDENTITY.model_copy(update={"dataset": FORGED}),
        total_steps=10,
    )
    if words[0] != "run":
        store.put("run.json", [record.model_dump_json().encode()])
    AttemptJournal(store, attempt_record(1)).begin()
    for step in (2, 4, 8):
        state = progress(step).model_copy(update={"run": record, "tokens": step * 256 * 16})
        files: dict[str, Data] = dict.fromkeys(STATE_FILES, tensor_file({}))
        files["state.json"] = [state.model_dump_json().encode()]
        commit(store, CheckpointName(step, 1), files, 10.0 - step, FreeLease(store))
    quarantine(store, CheckpointName(8, 1), FORGED, FreeLease(store))
    monkeypatch.setattr(LocalStore, "exclusive_lock", lambda store: None)  # of another machine
    Lease(store, 3600, "other:1:x").acquire(0, print, lambda: False)
    lease = json.loads(store.get(LEASE)[0]) | {"holder": FORGED}
    store.put(LEASE, [json.dumps(lease).encode()])
    named = ["--model=tiny", f"--checkpoint_uri=file://{tmp_path}", f"--data_dir={tmp_path}/data"]
    assert cli.main([*words, *named]) == 78
    shown = capsys.readouterr()
    assert "nothing was changed" in shown.err
    assert shown.out.count("\n") == 1 and printable(shown.out, keep="\n") == shown.out
    assert (printable(FORGED) in shown.out) is quoted


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (b"\x03", 130, "nothing was changed: Ctrl-C at the question (exit 130)"),
        (signal.SIGTERM, 143, "stopped"),
    ],
)
def test_ctrl_c_at_the_question_changes_nothing_and_exits_as_a_shell_expects(
    stop: bytes | signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    store = open_store(f"file://{tmp_path}", "tiny")
    record = RunRecord(run_name="tiny", created_at="", identity=IDENTITY, total_steps=10)
    store.put("run.json", [record.model_dump_json().encode()])
    for step in (2, 4):
        commit(store, CheckpointName(step, 1), dict(EMPTY), 10.0 - step, FreeLease(store))
    before = sorted(info.key for info in store.list(""))
    command = [sys.executable, "-m", "app", "checkpoints", "prune", "--keep", "0", "--model=tiny"]
    command += [f"--checkpoint_uri=file://{tmp_path}", f"--data_dir={tmp_path}/data"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(command[0], command)
    shown = b""
    try:
        while b"[y/N]" not in shown:
            shown += os.read(terminal, 4096)
        _press(pid, terminal, stop)
        while True:
            # What arrives when the question is shown, but the answer not yet read, is seen only
            # when the read ends: people press it again.
            while not select.select([terminal], [], [], 10.0)[0]:
                _press(pid, terminal, stop)
            if not (chunk := _read(terminal)):
                break
            shown += chunk
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert said in shown.decode()
    assert sorted(info.key for info in store.list("")) == before


def _press(pid: int, terminal: int, stop: bytes | signal.Signals) -> None:
    if isinstance(stop, bytes):
        os.write(terminal, stop)
    else:
        os.kill(pid, stop)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the process has ended
        return b""
