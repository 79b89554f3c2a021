"""One run on two containers, as on two machines: each is killed, one is stopped, and it goes on.

    python3 -m tests.drills.node_drill

As `tests.drills.drill` in all else: it needs Docker with compose v2, makes a compose project of its
own, and removes it in the end. Each container has a disk and an address of its own; what they share
is the stack's object store. They are told their numbers as the pods of an Indexed Job are.
"""

import re
import signal
import sys
import time
from collections.abc import Sequence

from tests.drills.drill import STEP, Drill, DrillError, build

STEPS, EVERY = 20, 5
RUN, UNDISTURBED = "two-nodes", "one-node"
COMES_SECONDS = 240.0
PEER_TIMEOUT = 10
# Where this was written the two halves of a batch gave the same bits as all of it at once. Another
# processor may add in another order. A missing step moves weights by about the learning rate.
LARGEST_DIFFERENCE = 1e-5

COMPARE = f"""
import subprocess, sys
from safetensors.numpy import load_file
made = []
for name in ("{UNDISTURBED}", "{RUN}"):
    words = ["checkpoints", "pull", "--run_name", name, "--to", f"/tmp/{{name}}"]
    subprocess.run([sys.executable, "-m", "app", *words], check=True, stdout=sys.stderr)
    made.append(load_file(f"/tmp/{{name}}/model.safetensors"))
print("DIFFERENCE", max(abs(made[0][key] - made[1][key]).max() for key in made[0]))
"""


class Node:
    """One container that trains. Its log is read as a whole, whenever it is looked at."""

    def __init__(self, drill: Drill, number: int, attempt: str, nodes: int, run: str = RUN) -> None:
        self._drill = drill
        self.name = self._name(number, attempt)
        variables = {
            "RUN_NAME": run,
            "NUM_NODES": str(nodes),
            "JOB_COMPLETION_INDEX": str(number),
            "MASTER_ADDR": self._name(0, attempt),
            "DATA_DIR": "/tmp/data",  # of this container
            "OMP_NUM_THREADS": "1",
            "TOTAL_STEPS": str(STEPS),
            "CHECKPOINT_EVERY_STEPS": str(EVERY),
            "PRECISION": "32-true",
            "PEER_TIMEOUT": str(PEER_TIMEOUT),
        }
        given = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
        options = ("run", "--detach", "--no-deps", "--name", self.name)
        drill.docker("compose", *options, *given, "train", "train")

    def _name(self, number: int, attempt: str) -> str:
        return f"{self._drill.environment['COMPOSE_PROJECT_NAME']}-{attempt}-{number}"

    def log(self) -> str:
        done = self._drill.docker("logs", self.name)
        return done.stdout + done.stderr

    def wait_for_step(self, at_least: int) -> None:
        deadline = time.monotonic() + self._drill.seconds_left(COMES_SECONDS)
        while self.last_step() < at_least:
            if time.monotonic() > deadline or self._state("Running") != "true":
                raise DrillError(f"{self.name} did not come to step {at_least}\n{self.log()}")
            time.sleep(0.2)

    def last_step(self) -> int:
        return max((int(found["step"]) for found in re.finditer(STEP, self.log())), default=-1)

    def stop(self, how: str) -> None:
        """`kill` or, with its grace, `stop`: what the engine is asked for."""
        self._drill.docker(how, self.name)

    def end(self) -> int:
        self._drill.docker("wait", self.name, timeout=COMES_SECONDS)
        return int(self._state("ExitCode"))

    def _state(self, field: str) -> str:
        template = f"{{{{.State.{field}}}}}"
        return self._drill.docker("inspect", "--format", template, self.name).stdout.strip()


def logs(nodes: Sequence[Node]) -> str:
    return "\n".join(f"--- {node.name}\n{node.log()}" for node in nodes)


def newest_step(drill: Drill) -> int:
    listed = drill.run("-e", f"RUN_NAME={RUN}", "train", "checkpoints", "list", "--json")
    steps = re.findall(r'"step": (\d+)', listed)
    return max(map(int, steps), default=0)


def ended(drill: Drill, attempt: str, how: str, number: int, step: int) -> None:
    """Train on both until `step`, end one of them, and look at what the other makes of it."""
    print(f"train on two nodes, and docker {how} node {number}")
    other, own = {"kill": (75, 137), "stop": (143, 143)}[how]
    nodes = [Node(drill, 0, attempt, 2), Node(drill, 1, attempt, 2)]
    nodes[0].wait_for_step(step)
    nodes[number].stop(how)
    code = nodes[1 - number].end()
    drill.check(f"the other one ends with {other}", code == other, code)
    drill.check(f"and it itself with {own}", nodes[number].end() == own)
    made, newest = nodes[0].last_step(), newest_step(drill)
    drill.check("no step is lost but the one in progress", newest >= made, f"{newest} of {made}")
    if code != other or newest < made:
        raise DrillError(logs(nodes))


def drilled(drill: Drill) -> None:
    build(drill)
    drill.docker("compose", "up", "--detach", "--wait", "s3", timeout=COMES_SECONDS)
    undisturbed = Node(drill, 0, "undisturbed", 1, UNDISTURBED)
    drill.check("an undisturbed run on one node ends", undisturbed.end() == 0)
    ended(drill, "first", "kill", 1, 3)
    ended(drill, "second", "kill", 0, 7)
    ended(drill, "third", "stop", 1, 11)
    print("go on with one node alone")
    alone = Node(drill, 0, "fourth", 1)
    if code := alone.end():
        raise DrillError(f"exit {code}\n{alone.log()}")
    drill.check("it reaches the target", alone.last_step() == STEPS, alone.last_step())
    said = drill.run("--entrypoint", "python", "train", "-c", COMPARE, timeout=COMES_SECONDS)
    found = re.search(r"DIFFERENCE ([\d.e-]+)", said)
    largest = float(found[1]) if found else float("inf")
    detail = f"{largest:.1e} at the most"
    drill.check(
        "the weights are those of the undisturbed run", largest <= LARGEST_DIFFERENCE, detail
    )


def main() -> int:
    drill = Drill({})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` cleans up
    try:
        drilled(drill)
    except DrillError as error:
        drill.check("the drill goes on", False, error)
    finally:
        drill.clean_up()
    print(f"drill of two nodes: {time.monotonic() - drill.started:.0f} s")
    print(f"{drill.passed} passed, {drill.failed} failed")
    return 1 if drill.failed else 0


if __name__ == "__main__":
    sys.exit(main())
