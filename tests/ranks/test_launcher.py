"""The launcher: what it starts, what it hands on, and with which code it ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.ranks.launcher import Launcher, Patience
from app.settings.place import Place

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("own_handlers")

# A worker of so many words, one for each rank: a code to end with, or what to do.
WORKER = """
import os, signal, sys
rank, deeds = int(os.environ["RANK"]), sys.argv[1].split(",")
stopped = lambda number, frame: os._exit(143)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, stopped)
news = os.environ.get("APP_LAUNCHER_NEWS")
if news and deeds[0] != "refuses":
    os.write(int(news), b"port 1\\ntraining\\n" if "early" not in sys.argv else b"port 1\\n")
deed = deeds[rank]
if deed == "refuses":
    os._exit(78)
if deed == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "is paused":
    os.kill(os.getpid(), signal.SIGSTOP)
if deed == "asks":  # with a signal to the launcher, once all others are there
    os.kill(os.getppid(), int(sys.argv[2]))
if deed in ("waits", "asks"):
    signal.pause()
os._exit(int(deed))
"""


def launched(
    *deeds: str, more: str = "", grace: float = 60, kills: Callable[[], int] = lambda: 0
) -> int:
    command = [sys.executable, "-c", WORKER, ",".join(deeds), more]
    return Launcher(command, len(deeds), Patience(grace, 0.5), kills).run()


@pytest.mark.parametrize(
    ("deeds", "code"),
    [
        (("0", "0", "0"), 0),
        (("75", "78"), 78),
        (("75", "77"), 77),
        (("143", "75"), 143),
        (("75", "1"), 1),
        (("79", "75"), 79),
        (("0", "75"), 0),  # rank 0 has committed the last step
        (("75", "is killed"), 75),
    ],
    ids=str,
)
def test_the_decisive_code_is_the_jobs(deeds: tuple[str, ...], code: int) -> None:
    assert launched(*deeds) == code


def test_what_rank_0_refuses_no_other_process_is_started_for() -> None:
    assert launched("refuses", "1") == 78


def test_a_process_that_fails_before_all_have_come_ends_the_rest() -> None:
    assert launched("waits", "77", "waits", more="early") == 77


def test_a_kill_by_the_system_for_want_of_memory_is_137_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = iter([3, 4])
    assert launched("75", "is killed", kills=lambda: next(counted)) == 137
    assert "rank 1 was killed by the system since memory ran out" in caplog.text
    assert "BATCH_SIZE" in caplog.text


def test_a_kill_by_anybody_else_is_named_with_its_rank(caplog: pytest.LogCaptureFixture) -> None:
    assert launched("75", "is killed") == 75
    assert "rank 1 was killed by SIGKILL" in caplog.text


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name
)
def test_signals_are_handed_on_to_all(number: signal.Signals) -> None:
    assert launched("waits", "asks", more=str(int(number))) == 143


def test_a_process_that_stops_in_order_stops_the_others() -> None:
    assert launched("waits", "143", "waits") == 143


@pytest.mark.parametrize("more", ["", "early"], ids=["in training", "before all have come"])
def test_a_paused_process_is_killed_and_the_others_go_on_without_it(
    more: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert launched("75" if not more else "waits", "is paused", more=more) == 75
    assert "rank 1 is killed: it is paused" in caplog.text


def test_what_does_not_end_after_the_run_is_over_is_killed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert launched("0", "waits", grace=0.5) == 0
    assert "rank 1 is killed: it hangs" in caplog.text


# Runs the launcher as a process of its own, since Ctrl-Z pauses it.
LAUNCHER = """
import sys
from app.ranks.launcher import Launcher, Patience
sys.exit(Launcher([sys.executable, "-c", sys.argv[1]], 3, Patience(60, 0.5)).run())
"""
PAUSED_WORKER = """
import os, signal
if news := os.environ.get("APP_LAUNCHER_NEWS"):
    os.write(int(news), b"port 1\\ntraining\\n")
os.write(1, f"{os.environ['RANK']} {os.getpid()}\\n".encode())  # whole, beside those of others
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
signal.pause()
"""


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for(pids: list[int], *states: str) -> None:
    until = time.monotonic() + 60
    while not all(state_of(pid) in states for pid in pids):
        assert time.monotonic() < until, [state_of(pid) for pid in pids]
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_z_pauses_all_of_them_for_as_long_as_one_likes_and_none_is_killed_for_it() -> None:
    """`peer`, after which a paused process is killed, is over more than once in the pause."""
    command = [sys.executable, "-c", LAUNCHER, PAUSED_WORKER]
    launcher = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    workers = [int(launcher.stdout.readline().split()[1]) for _ in range(3)]
    launcher.send_signal(signal.SIGTSTP)
    wait_for([launcher.pid, *workers], "T")
    paused_at = time.monotonic()
    while time.monotonic() < paused_at + 1.5:  # the wait is what is tested
        assert state_of(launcher.pid) == "T"
        time.sleep(0.05)
    launcher.send_signal(signal.SIGCONT)
    wait_for([launcher.pid, *workers], "S")
    launcher.send_signal(signal.SIGTERM)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, said
    assert "is killed" not in said


def test_workers_share_the_cores_and_the_loopback_interface() -> None:
    script = (
        "import os\n"
        "if news := os.environ.get('APP_LAUNCHER_NEWS'):\n"
        "    os.write(int(news), b'port 4711\\ntraining\\n')\n"
        "e = os.environ\n"
        "right = e['OMP_NUM_THREADS'] and e['GLOO_SOCKET_IFNAME'] == 'lo'\n"
        "right = right and e.get('MASTER_PORT', '') == ('4711' if e['RANK'] == '1' else '')\n"
        "os._exit(0 if right else 78)\n"
    )
    assert Launcher([sys.executable, "-c", script], 2, Patience(60, 1), lambda: 0).run() == 0


@pytest.mark.parametrize(
    ("deeds", "code"),
    [
        (("0", "is killed"), 0),  # rank 0 has said that the last step is committed
        (("is killed", "0"), 0),
        (("143", "143"), 143),
        (("75", "is killed"), 75),
        (("143", "75"), 143),
    ],
    ids=str,
)
def test_the_code_of_another_node_is_that_of_its_own_processes(
    deeds: tuple[str, ...], code: int
) -> None:
    command = [sys.executable, "-c", WORKER, ",".join(["", "", *deeds]), ""]
    place = Place(address="127.0.0.1", port=1, node=1, nodes=2)
    assert Launcher(command, 2, Patience(60, 0.5), lambda: 0, place).run() == code


def test_the_processes_of_a_node_take_the_ranks_that_the_nodes_meeting_gave_them() -> None:
    script = (
        "import os\n"
        "if news := os.environ.get('APP_LAUNCHER_NEWS'):\n"
        "    os.write(int(news), b'port 29500 7 9\\ntraining\\n')\n"
        "    os._exit(0 if os.environ['RANK'] == '2' else 78)\n"
        "e = os.environ\n"
        "named = [e[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'NODE_RANK', 'NUM_NODES')]\n"
        "os._exit(0 if named == ['8', '9', '1', '1', '2'] else 78)\n"
    )
    place = Place(address="127.0.0.1", port=29500, node=1, nodes=2)
    command = [sys.executable, "-c", script]
    assert Launcher(command, 2, Patience(60, 1), lambda: 0, place).run() == 0
