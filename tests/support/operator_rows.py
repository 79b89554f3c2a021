"""What operators do to a run on a volume, and what the next start makes of it, as a table.

`INTERRUPTED` is a run of 6 steps that was killed in step 5, with checkpoints of steps 2 and 4;
`FINISHED` is the same run after a second attempt, with a checkpoint of step 6 too.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.cli import parser as cli

INTERRUPTED, FINISHED = "interrupted", "finished"
AS_IT_WAS = "as it was"  # every file, byte for byte
RESUMED = "target reached: step 6 …"
NOTHING = "nothing to do: tiny is finished at step 6 …"


@dataclass(frozen=True)
class Row:
    """`done` by `act` to a run; then `train` with `variables` ends with the line `says`.

    … in `says` stands for anything. `left` is AS_IT_WAS, or what `kept` makes of the store.
    """

    run: str
    done: str
    act: Callable[[Path], None]
    says: str
    left: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> int:
        found = re.search(r"\(exit (\d+)\)", self.says)
        return int(found[1]) if found else 0

    @property
    def pattern(self) -> str:
        return re.escape(self.says).replace("…", ".*") + "$"


def kept(*steps: int, aside: tuple[int, ...] = ()) -> str:
    """What `left` is for a run with checkpoints of these steps, and these in quarantine."""
    text = "steps " + ", ".join(map(str, steps))
    return text + (f"; step {', '.join(map(str, aside))} in `quarantine/`" if aside else "")


def checkpoint(run: Path, step: int) -> Path:
    (found,) = run.glob(f"checkpoints/step-{step:010d}-e*")
    return found


def nothing(run: Path) -> None: ...


def remove(name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def remove_of(step: int, name: str = "") -> Callable[[Path], None]:
    """Remove that file of a checkpoint, or the whole checkpoint."""

    def act(run: Path) -> None:
        remove(str(checkpoint(run, step).relative_to(run) / name))(run)

    return act


def write(name: str, text: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)

    return act


def truncate(step: int, name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        path = checkpoint(run, step) / name
        path.write_bytes(path.read_bytes()[:-100])

    return act


def flip(step: int, name: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        path = checkpoint(run, step) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return act


def swap_weights(run: Path) -> None:
    first, second = (checkpoint(run, step) / "model.safetensors" for step in (2, 4))
    aside = first.rename(run / "aside")
    second.rename(first)
    aside.rename(second)


def foreign_files(run: Path) -> None:
    write("README.txt", "mine")(run)
    write(".DS_Store", "mine")(run)
    write("notes/today.txt", "mine")(run)
    write("checkpoints/README.txt", "mine")(run)
    write("checkpoints/keep this one/model.safetensors", "mine")(run)


def lease_of_a_dead_machine(run: Path) -> None:
    path = run / "lease.json"
    lease = json.loads(path.read_text())
    path.write_text(json.dumps({**lease, "holder": "gone:1:abc", "released": False, "ttl": 0.1}))


def edit_record(**changes: object) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        path = run / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return act


def rename(to: str) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        run.rename(run.with_name(to))

    return act


def command(*words: str) -> Callable[[Path], None]:
    """Give a command of the job, with --yes."""

    def act(run: Path) -> None:
        where = [f"--checkpoint_uri=file://{run.parent}", f"--data_dir={run.parent}-data"]
        assert cli.main([*words, "--yes", "--model=tiny", *where]) == 0

    return act


def both(*acts: Callable[[Path], None]) -> Callable[[Path], None]:
    def act(run: Path) -> None:
        for one in acts:
            one(run)

    return act


def empty_folder(run: Path) -> None:
    (run / "checkpoints" / "step-0000000009-e000001").mkdir()


def finished(
    done: str,
    act: Callable[[Path], None] = nothing,
    says: str = NOTHING,
    left: str = AS_IT_WAS,
    **variables: str,
) -> Row:
    return Row(FINISHED, done, act, says, left, variables)


def interrupted(
    done: str,
    act: Callable[[Path], None] = nothing,
    says: str = RESUMED,
    left: str = kept(6, 4, 2),
    **variables: str,
) -> Row:
    return Row(INTERRUPTED, done, act, says, left, variables)


REFUSED = "ERROR: … (exit 78)"
OTHER = "… {} was {}, is {}. Set … back, … (exit 78)"
STEPS = "TOTAL_STEPS={}, but … was started with TOTAL_STEPS=6, … (exit 78)"
EXTENDED = "target reached: step 8 …"
MADE_AGAIN = kept(6, 4, 2, aside=(6,))
FROM_BEFORE = kept(6, 4, 2, aside=(4,))
EMPTIED = both(remove("checkpoints"), remove("LATEST"))
LATER = write("attempts/e000009-from-0000000000.json", "{}")
WEIGHTS, MOMENTS, MANIFEST = "model.safetensors", "optimizer.safetensors", "manifest.json"

ROWS: list[Row] = [
    finished("nothing"),
    finished("`LATEST` removed", remove("LATEST")),
    finished("`LATEST` filled with other text", write("LATEST", "?\n")),
    finished("`attempts/` removed", remove("attempts")),
    finished("`logs/` removed", remove("logs")),
    finished("`report/` removed", remove("report")),
    finished("`lease.json` removed", remove("lease.json")),
    finished("a holder of a dead machine in `lease.json`", lease_of_a_dead_machine),
    finished("files of one's own put into the run's folder", foreign_files),
    finished("an empty folder named as a checkpoint", empty_folder),
    finished("an older checkpoint removed", remove_of(4)),
    finished("the manifest of an older checkpoint removed", remove_of(4, MANIFEST)),
    finished("the weights of an older checkpoint cut", truncate(4, WEIGHTS)),
    finished("the newest checkpoint removed", remove_of(6), RESUMED, kept(6, 4, 2)),
    finished(
        "the manifest of the newest checkpoint removed", remove_of(6, MANIFEST), RESUMED, MADE_AGAIN
    ),
    finished(
        "the manifest of the newest checkpoint cut", truncate(6, MANIFEST), RESUMED, MADE_AGAIN
    ),
    finished("the weights of the newest checkpoint cut", truncate(6, WEIGHTS), RESUMED, MADE_AGAIN),
    finished(
        "a file of the newest checkpoint removed", remove_of(6, "config.json"), RESUMED, MADE_AGAIN
    ),
    finished("a bit of the newest checkpoint flipped", flip(6, WEIGHTS)),
    finished(
        "a bit of the newest checkpoint flipped, then `ADDITIONAL_STEPS=2`",
        flip(6, MOMENTS),
        RESUMED,
        MADE_AGAIN,
        ADDITIONAL_STEPS="2",
    ),
    finished("`checkpoints/` removed", remove("checkpoints"), REFUSED),
    finished("`run.json` removed", remove("run.json"), REFUSED),
    finished("`run.json` cut to half a line", write("run.json", '{"format_version":'), REFUSED),
    finished("`run.json` of a later version", edit_record(format_version=999), REFUSED),
    finished("`SEED` changed", says=OTHER.format("SEED", 1337, 7), SEED="7"),
    finished("`SEQ_LEN` changed", says=OTHER.format("SEQ_LEN", 32, 16), SEQ_LEN="16"),
    finished(
        "`GLOBAL_BATCH_SIZE` changed",
        says=OTHER.format("GLOBAL_BATCH_SIZE", 8, 4),
        GLOBAL_BATCH_SIZE="4",
    ),
    finished(
        "`MODEL` changed, `RUN_NAME` kept",
        says=OTHER.format("MODEL", "'tiny'", "'smollm2-135m'; INIT was 'scaled', is 'normal'"),
        MODEL="smollm2-135m",
        RUN_NAME="tiny",
    ),
    finished(
        "`DATASET` changed", says=OTHER.format("DATASET", "…", "'builtin'"), DATASET="builtin"
    ),
    finished("`TOTAL_STEPS` lowered", says=STEPS.format(3), TOTAL_STEPS="3"),
    finished("`TOTAL_STEPS` raised", says=STEPS.format(9), TOTAL_STEPS="9"),
    finished("`ADDITIONAL_STEPS=2`", nothing, EXTENDED, kept(8, 6, 4, 2), ADDITIONAL_STEPS="2"),
    finished(
        "`TRAINER` changed, and `ADDITIONAL_STEPS=2`",
        nothing,
        EXTENDED,
        kept(8, 6, 4, 2),
        ADDITIONAL_STEPS="2",
        TRAINER="lightning",
    ),
    finished("`CHECKPOINT_URI` mistyped", says=RESUMED, CHECKPOINT_URI="mistyped"),
    finished("`RUN_NAME` mistyped", says=RESUMED, RUN_NAME="tyni"),
    finished(
        "the run's folder renamed, and `RUN_NAME` with it",
        rename("renamed"),
        "nothing to do: renamed is finished at step 6 …",
        RUN_NAME="renamed",
    ),
    finished(
        "`checkpoints rollback --to 2`",
        command("checkpoints", "rollback", "--to", "2"),
        RESUMED,
        kept(6, 4, 2, aside=(6, 4)),
    ),
    finished("`checkpoints prune --keep 0`", command("checkpoints", "prune", "--keep", "0")),
    finished(
        "a holder of a dead machine in `lease.json`, then `checkpoints takeover`",
        both(lease_of_a_dead_machine, command("checkpoints", "takeover")),
    ),
    finished("the checkpoints put back from a backup, after a start without them", LATER, REFUSED),
    finished(
        "that, then `checkpoints accept 6`", both(LATER, command("checkpoints", "accept", "6"))
    ),
    finished(
        "`run.json` removed, then `run repair`", both(remove("run.json"), command("run", "repair"))
    ),
    finished("`RESUME=must`", RESUME="must"),
    finished("`RESUME=must`, `RUN_NAME` mistyped", says=REFUSED, RESUME="must", RUN_NAME="tyni"),
    finished("`RESUME=never`", says=REFUSED, RESUME="never"),
    finished(
        "`checkpoints/` and `LATEST` removed",
        EMPTIED,
        REFUSED,
    ),
    interrupted("nothing"),
    interrupted(
        "`checkpoints rollback --to 2`",
        command("checkpoints", "rollback", "--to", "2"),
        left=FROM_BEFORE,
    ),
    interrupted(
        "`checkpoints/` and `LATEST` removed",
        EMPTIED,
        REFUSED,
        AS_IT_WAS,
    ),
    interrupted("`LATEST` removed", remove("LATEST")),
    interrupted("`attempts/` removed", remove("attempts")),
    interrupted("`logs/` removed", remove("logs")),
    interrupted("`lease.json` removed", remove("lease.json")),
    interrupted("`source.json` removed", remove("source.json")),
    interrupted("a holder of a dead machine in `lease.json`", lease_of_a_dead_machine),
    interrupted("files of one's own put into the run's folder", foreign_files),
    interrupted("the older checkpoint removed", remove_of(2), left=kept(6, 4)),
    interrupted("the newest checkpoint removed", remove_of(4)),
    interrupted(
        "the manifest of the newest checkpoint removed", remove_of(4, MANIFEST), left=FROM_BEFORE
    ),
    interrupted("the weights of the newest checkpoint cut", truncate(4, WEIGHTS), left=FROM_BEFORE),
    interrupted("a bit of the newest optimizer state flipped", flip(4, MOMENTS), left=FROM_BEFORE),
    interrupted("the weights of the two checkpoints exchanged", swap_weights, REFUSED, kept(4, 2)),
    interrupted("`checkpoints/` removed", remove("checkpoints"), REFUSED, AS_IT_WAS),
    interrupted("`run.json` removed", remove("run.json"), REFUSED, AS_IT_WAS),
    interrupted("`SEED` changed", nothing, OTHER.format("SEED", 1337, 7), AS_IT_WAS, SEED="7"),
    interrupted("`BATCH_SIZE` changed", BATCH_SIZE="4"),
    interrupted("`TRAINER` changed", TRAINER="lightning"),
    interrupted("`LEARNING_RATE` changed", LEARNING_RATE="0.001"),
    interrupted("`KEEP_TOP=1`", left=kept(6, 4), KEEP_TOP="1"),
    interrupted("`DATA_DIR` emptied", DATA_DIR="emptied"),
]
