"""Each file of the newest checkpoint flipped, cut and removed in turn, on both stores.

Through the start that a job makes: what is damaged is set aside with its reason, the next
newest checkpoint is restored, and the run ends with the bits of the run that met no damage.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from app.errors import Fenced, Preempted
from app.run.layout import LATEST, LEASE, MANIFEST, CheckpointName
from app.settings.load import load_settings
from app.state.progress import Progress
from app.state.snapshot import restore
from app.stores.contract import Store
from app.stores.opening import open_store
from app.training.attempt import Attempt
from app.training.start import open_attempt
from app.training.train_torch import train
from tests.support.job import Outcome, outcome
from tests.support.quiet_stop import QuietStop

pytestmark = pytest.mark.slow

NEWEST, BEFORE = CheckpointName(4, 1), CheckpointName(2, 1)
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
    MANIFEST,
)


@dataclass(frozen=True)
class Run:
    """A run that was stopped at step 4 of 6, with checkpoints of steps 2 and 4.

    `objects` is all that it left in the store; `ending` is how it ends undisturbed.
    """

    flags: dict[str, str]
    store: Store
    objects: dict[str, bytes]
    ending: Outcome

    def open(self) -> Attempt:
        attempt = open_attempt(load_settings(self.flags), QuietStop())
        assert attempt is not None
        return attempt

    def put_back(self) -> None:
        """Make the store what it was when the run was stopped."""
        here = {info.key for info in self.store.list("")}
        self.store.delete(sorted(here - self.objects.keys()))
        for key, content in self.objects.items():
            if key not in here or self.store.get(key, 1 << 30)[0] != content:
                self.store.put(key, [content])


def to_the_end(attempt: Attempt, stop_at: int = 6) -> None:
    original = attempt.step_done

    def step_done(loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        return original(loss, grad_norm) or attempt.step == stop_at

    attempt.step_done = step_done  # type: ignore[method-assign]
    train(attempt)
    try:
        attempt.finish()
    except Preempted:
        assert attempt.step == stop_at
    attempt.close("the test is over")


@pytest.fixture(scope="module", params=["volume", "s3"])
def run(
    request: pytest.FixtureRequest,
    job_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        uri = f"file://{tmp_path_factory.mktemp('rot')}"
        if request.param == "s3":
            patch.setenv("AWS_ENDPOINT_URL_S3", request.getfixturevalue("s3_server"))
            request.getfixturevalue("s3_client").create_bucket(Bucket="bit-rot")
            uri = "s3://bit-rot/prefix"
        flags = {name.lower(): value for name, value in job_environment.items()}
        flags |= {"checkpoint_uri": uri, "trainer": "torch", "total_steps": "6"}
        flags |= {"global_batch_size": "4", "checkpoint_every_steps": "2", "keep_top": "9"}
        begun = Run(flags, open_store(uri, "tiny"), {}, Outcome({}, []))
        to_the_end(begun.open(), stop_at=4)
        keys = [info.key for info in begun.store.list("")]
        objects = {key: begun.store.get(key, 1 << 30)[0] for key in keys}
        to_the_end(begun.open())
        yield Run(flags, begun.store, objects, outcome(begun.store))


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("harm", [_flip, _cut, None], ids=["flipped", "cut", "removed"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_set_aside_whole_and_the_one_before_is_restored(
    file: str,
    harm: Callable[[bytes], bytes] | None,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run.put_back()
    damage(run, file, harm)
    attempt = run.open()
    attempt.close("the test is over")
    assert attempt.step == 2
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 1 and f"DAMAGED CHECKPOINT {NEWEST} moved to" in said[0].getMessage()
    assert_restored(attempt, run.objects[BEFORE.key("model.safetensors")])
    assert_set_aside(run, file, harm)


@pytest.mark.parametrize(
    ("file", "harm"), [("optimizer.safetensors", _flip), (MANIFEST, _cut), (MANIFEST, None)]
)
def test_a_run_that_met_damage_ends_with_the_same_bits(
    file: str, harm: Callable[[bytes], bytes] | None, run: Run
) -> None:
    run.put_back()
    damage(run, file, harm)
    to_the_end(run.open())
    assert outcome(run.store).differences(run.ending) == []


def test_a_manifest_that_is_gone_beside_others_is_no_upload_cut_short(run: Run) -> None:
    """LATEST names what was whole once; what no one ever named is removed."""
    run.put_back()
    cut_short = CheckpointName(6, 1)
    run.store.put(cut_short.key("model.safetensors"), [b"half"])
    run.store.delete([NEWEST.key(MANIFEST)])
    run.open().close("the test is over")
    folders = {info.key.split("/")[1] for info in run.store.list("checkpoints/")}
    assert folders == {str(BEFORE)}
    assert len(list(run.store.list("quarantine/"))) == len(FILES)


@pytest.mark.parametrize("damaged", [True, False])
def test_a_start_that_loses_the_run_while_it_restores_sets_nothing_aside_and_puts_up_no_fence(
    damaged: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.put_back()
    if damaged:
        damage(run, "model.safetensors", _flip)
    keys = {info.key for info in run.store.list("")}

    def taken_over(*arguments: Any) -> Progress:
        record = json.loads(run.store.get(LEASE)[0]) | {"holder": "successor", "epoch": 3}
        run.store.put(LEASE, [json.dumps(record).encode()])
        return restore(*arguments)

    monkeypatch.setattr("app.training.restoring.restore", taken_over)
    with pytest.raises(Fenced, match="successor"):
        run.open()
    assert {info.key for info in run.store.list("")} == keys


def damage(run: Run, file: str, harm: Callable[[bytes], bytes] | None) -> None:
    assert run.objects[LATEST].decode().strip() == str(NEWEST)
    assert {key for key in run.objects if key.startswith(NEWEST.key())} >= {
        NEWEST.key(name) for name in FILES
    }
    key = NEWEST.key(file)
    if harm is None:
        run.store.delete([key])
    else:
        run.store.put(key, [harm(run.objects[key])])


def assert_restored(attempt: Attempt, weights: bytes) -> None:
    saved = load(weights)
    restored = attempt.model.state_dict()
    compared = [name for name in saved if torch.equal(saved[name], restored[name])]
    assert len(compared) == len(saved) > 10


def assert_set_aside(run: Run, file: str, harm: Callable[[bytes], bytes] | None) -> None:
    """Every byte that was left is kept, and the reason names the file."""
    # Fetched, not got: of a copied object moto gives the checksum of the parts of its source.
    with tempfile.TemporaryDirectory() as folder:
        quarantined = {
            info.key.rsplit("/", 1)[1]: run.store.fetch(info.key, Path(folder)).read_bytes()
            for info in run.store.list("quarantine/")
        }
    # A manifest that says something else of a file is found by that file.
    named = file.removesuffix(".json") if file == MANIFEST else file
    assert named in json.loads(quarantined.pop("reason.json"))["reason"]
    expected = {
        key.removeprefix(NEWEST.key()): content
        for key, content in run.objects.items()
        if key.startswith(NEWEST.key())
    }
    if harm is None:
        del expected[file]
    else:
        expected[file] = harm(expected[file])
    assert quarantined == expected
