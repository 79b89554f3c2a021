"""Bad input: one clear line, the right exit code, and nothing written."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from app.data.data_dir import OWN_FOLDER, DataDir, own_folder
from app.run.layout import LEASE, CheckpointName
from app.run.lease import Lease, LeaseRecord
from app.run.view import read_view
from app.stores.limits import StoreLimits
from app.stores.opening import open_store
from app.training.attempt import Attempt
from app.training.checkpointing import Checkpointing
from app.training.preemption import Interrupted
from app.training.step_log import StepLog
from tests.support.fake_time import FakeTime
from tests.support.interposed import Answer, Interposed
from tests.support.job import newest_checkpoint
from tests.support.store_contents import leave_half_written
from tests.support.stored_run import stored_attempts
from tests.support.train_command import Train, assert_refused, error_lines, files_below


def assert_nothing_written(store: Path) -> None:
    left = [name for name in files_below(store) if "/.store-" not in f"/{name}"]
    assert left == []


def test_a_dataset_that_does_not_exist(train: Train, tmp_path: Path) -> None:
    assert_refused(train(DATASET=str(tmp_path / "no.txt")), 78, "DATASET")
    assert_nothing_written(tmp_path / "store")


def test_an_empty_dataset(train: Train, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert_refused(train(DATASET=str(tmp_path / "empty.txt")), 78, "DATASET")
    assert_nothing_written(tmp_path / "store")


def test_a_dataset_shorter_than_one_sequence(train: Train, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Three short words.\n")
    assert_refused(train(DATASET=str(tmp_path / "short.txt")), 78, "DATASET")
    assert_nothing_written(tmp_path / "store")


def test_a_dataset_without_the_text_column(train: Train, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"body": f"line {i}"}) + "\n" for i in range(50))
    (tmp_path / "rows.jsonl").write_text(lines)
    outcome = train(DATASET=str(tmp_path / "rows.jsonl"))
    assert_refused(outcome, 78, "TEXT_COLUMN")
    assert "body" in outcome[1]
    assert_nothing_written(tmp_path / "store")


def test_another_document_mask_is_said_and_goes_on(train: Train) -> None:
    assert train(TOTAL_STEPS="1")[0] == 0
    code, log = train(TOTAL_STEPS="1", ADDITIONAL_STEPS="1", DOCUMENT_MASK="true")
    assert code == 0
    assert "DOCUMENT_MASK changed during the run: True, was False" in log


def test_a_tokenizer_larger_than_the_vocabulary(train: Train, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(49_153)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")),
        eos_token="w0",
    )
    tokenizer.save_pretrained(tmp_path / "large")
    large = {"TOKENIZER": str(tmp_path / "large"), "MODEL": "smollm2-135m"}
    assert_refused(train(**large), 78, "49153 tokens")
    assert_nothing_written(tmp_path / "store")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_volume(train: Train, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o555)
    assert_refused(train(), 77, "CHECKPOINT_URI")
    assert_nothing_written(tmp_path / "store")


def test_a_file_where_the_volume_should_be(train: Train, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    assert_refused(train(), 78, "CHECKPOINT_URI")
    assert (tmp_path / "store").read_text() == "a file where the folder should be"


def test_device_cuda_without_a_gpu(train: Train, tmp_path: Path) -> None:
    assert_refused(train(DEVICE="cuda"), 78, "DEVICE=cuda")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"GLOBAL_BATCH_SIZE": "4"}, "GLOBAL_BATCH_SIZE was 8, is 4"),
        ({"SEQ_LEN": "16"}, "SEQ_LEN was 32, is 16"),
        ({"SEED": "1"}, "SEED was 1337, is 1"),
        ({"OPTIMIZER": "muon"}, "OPTIMIZER was 'adamw', is 'muon'"),
        ({"MODEL": "smollm2-135m", "RUN_NAME": "tiny"}, "MODEL was 'tiny', is 'smollm2-135m'"),
        ({"TOTAL_STEPS": "9"}, "TOTAL_STEPS=9"),
    ],
)
def test_a_run_of_other_settings(
    change: dict[str, str], text: str, train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    before = files_below(tmp_path / "store")
    assert_refused(train(**change), 78, text)
    assert files_below(tmp_path / "store") == before


def test_a_run_begun_from_a_folder_goes_on_however_the_folder_is_typed(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert train()[0] == 0
    shutil.copytree(newest_checkpoint(tmp_path / "store" / "tiny"), tmp_path / "begin")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, log = train(MODEL="", INIT_FROM="../begin")
    assert code == 0 and "weights from ../begin" in log, log
    monkeypatch.chdir(tmp_path)
    code, log = train(MODEL="", INIT_FROM=f"{tmp_path}/begin")
    assert code == 0 and "nothing to do: begin is finished" in log, log
    shutil.copytree(tmp_path / "begin", tmp_path / "other" / "begin")
    weights = tmp_path / "other/begin/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = train(MODEL="", INIT_FROM="other/begin")
    assert_refused(again, 78, f"INIT_FROM was '{tmp_path}/begin', is '{tmp_path}/other/begin'")


def test_a_damaged_newest_checkpoint_is_set_aside_with_one_loud_line(
    train: Train, tmp_path: Path
) -> None:
    assert train(TOTAL_STEPS="8")[0] == 0
    run = tmp_path / "store" / "tiny"
    weights = newest_checkpoint(run) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, log = train(TOTAL_STEPS="8", ADDITIONAL_STEPS="2")
    assert code == 0, log
    loud = error_lines(log)
    assert len(loud) == 1 and "DAMAGED CHECKPOINT step-0000000008" in loud[0]
    assert "resumed from step 6" in log
    assert (run / "quarantine").is_dir()


def test_with_every_checkpoint_damaged_it_never_starts_from_zero(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    run = tmp_path / "store" / "tiny"
    for state in run.glob("checkpoints/*/state.json"):
        state.write_bytes(state.read_bytes() + b" ")
    assert_refused(train(ADDITIONAL_STEPS="2"), 78, "no valid checkpoint is left")


def test_checkpoints_without_a_run_record_are_not_overwritten(train: Train, tmp_path: Path) -> None:
    assert train()[0] == 0
    (tmp_path / "store" / "tiny" / "run.json").unlink()
    assert_refused(train(), 78, "no run.json")


@pytest.mark.parametrize("left", ["LATEST", "logs/metrics.jsonl", "quarantine/x/reason.json"])
def test_any_trace_of_a_run_without_its_record_is_not_overwritten(
    left: str, train: Train, tmp_path: Path
) -> None:
    trace = tmp_path / "store" / "tiny" / left
    trace.parent.mkdir(parents=True)
    trace.write_text("step-0000000002-e000001\n")
    assert_refused(train(), 78, f"holds {left}, but no run.json")
    assert trace.read_text() == "step-0000000002-e000001\n"


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_lists_too_little_is_damaged(
    file: str, train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    newest = newest_checkpoint(tmp_path / "store" / "tiny")
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["files"][file]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    code, log = train(ADDITIONAL_STEPS="2", TOTAL_STEPS="4")
    assert code == 0, log
    assert f"does not list {file}" in log and "resumed from step 2" in log


def test_lost_steps_are_counted_once_however_many_starts_end_before_their_first_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train()[0] == 0
    run = tmp_path / "store" / "tiny"
    shutil.rmtree(newest_checkpoint(run))  # its rows stay, as those of a save cut short
    (run / "LATEST").write_text(newest_checkpoint(run).name)
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "begin", Mock(side_effect=Interrupted(signal.SIGTERM)))
        logs = [train()[1] for _ in range(2)]
    assert ["attempt 1 lost 2 steps after step 2" in log for log in logs] == [True, False]
    assert train()[0] == 0
    store = open_store(f"file://{tmp_path}/store", "tiny")
    assert [read.steps_lost for read in stored_attempts(store, newest=9)] == [0, 2, 0, 0]


def test_steps_of_another_store_are_not_called_lost(train: Train, tmp_path: Path) -> None:
    shared = {"DATA_DIR": str(tmp_path / "data")}
    another = {**shared, "CHECKPOINT_URI": f"file://{tmp_path}/another"}
    assert train(**shared)[0] == 0
    assert train(**another, TOTAL_STEPS="8")[0] == 0
    code, log = train(**shared, ADDITIONAL_STEPS="2")
    assert code == 0 and "lost" not in log, log
    folders = sorted((tmp_path / "data" / "logs").iterdir())
    assert all(folder.name.startswith("tiny-") for folder in folders)
    assert sorted((folder / "store.txt").read_text() for folder in folders) == [
        f"file://{tmp_path}/{store}/tiny\n" for store in ("another", "store")
    ]


@pytest.mark.parametrize(("whose", "lost"), [("this run", True), ("another run", False)])
def test_logs_of_an_earlier_version_count_if_they_are_of_this_run(
    whose: str, lost: bool, train: Train, tmp_path: Path
) -> None:
    shared = {"DATA_DIR": str(tmp_path / "data")}
    assert train(**shared)[0] == 0
    (logs,) = (tmp_path / "data" / "logs").iterdir()
    former = logs.rename(logs.with_name("tiny")) / "metrics.jsonl"
    rows = former.read_text().splitlines(keepends=True)
    rows.append(rows[-1].replace('"step": 4', '"step": 9'))
    former.write_text("".join(rows if whose == "this run" else rows[-1:]))
    code, log = train(**shared, ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert ("attempt 1 lost 5 steps after step 4" in log) is lost, log


def test_local_logs_tell_two_endpoints_apart_and_those_of_an_earlier_version_are_read(
    train: Train, bucket: str, s3_server: str, tmp_path: Path
) -> None:
    data_dir, uri = DataDir(tmp_path / "data"), f"s3://{bucket}/x"
    shared = {"DATA_DIR": str(data_dir.path), "CHECKPOINT_URI": uri}
    assert train(**shared)[0] == 0
    (logs,) = (data_dir.path / "logs").iterdir()
    assert (logs / "store.txt").read_text() == f"{uri}/tiny at {s3_server}\n"
    former = logs.rename(data_dir.logs("tiny", f"{uri}/tiny")) / "metrics.jsonl"
    assert former.parent != logs
    rows = former.read_text().splitlines(keepends=True)
    former.write_text("".join([*rows, rows[-1].replace('"step": 4', '"step": 9')]))
    code, log = train(**shared, ADDITIONAL_STEPS="2")
    assert code == 0 and "attempt 1 lost 5 steps after step 4" in log, log
    assert logs.exists()


def test_a_late_checkpoint_is_set_aside_with_one_loud_line(train: Train, tmp_path: Path) -> None:
    assert train(KEEP_TOP="9")[0] == 0
    run = tmp_path / "store" / "tiny"
    (run / "attempts" / "e000002-from-0000000002.json").write_text("{}")
    code, log = train()
    assert code == 0, log
    assert [line for line in error_lines(log) if "LATE CHECKPOINT step-0000000004-e000001" in line]
    assert "resumed from step 2" in log


def test_a_finished_run_does_not_need_its_data_any_more(train: Train, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("word after word\n" * 400)
    assert train(DATASET=str(corpus))[0] == 0
    before = files_below(tmp_path / "store")
    moved = tmp_path / "moved" / "corpus.txt"
    moved.parent.mkdir()
    corpus.rename(moved)
    code, log = train(DATASET=str(corpus))
    assert code == 0 and "nothing to do: tiny is finished at step 4" in log, log
    code, log = train(DATASET=str(moved))
    assert code == 0 and "nothing to do" in log, log
    assert_refused(train(DATASET=str(corpus), SEED="1"), 78, "SEED was 1337, is 1")
    assert_refused(train(DATASET=str(corpus), ADDITIONAL_STEPS="2"), 78, f"{corpus} does not exist")
    corpus.write_text("other words\n" * 400)
    assert_refused(train(DATASET=f"{tmp_path}/c*.txt"), 78, "DATASET was")
    assert files_below(tmp_path / "store") == before


def test_a_deleted_lease_does_not_turn_the_epochs_back(train: Train, tmp_path: Path) -> None:
    assert train()[0] == 0
    (tmp_path / "store" / "tiny" / "lease.json").unlink()
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert "(attempt 2)" in log
    assert newest_checkpoint(tmp_path / "store" / "tiny").name == "step-0000000006-e000002"


def test_a_killed_restore_leaves_nothing_behind(
    train: Train, tmp_path: Path, job_environment: dict[str, str]
) -> None:
    restores = Path(job_environment["DATA_DIR"]) / "restore"
    left = restores / f"{OWN_FOLDER}killed" / "step" / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with own_folder(restores) as living:
        assert not left.exists()
        assert train()[0] == 0
        assert [path for path in restores.iterdir() if path.is_dir()] == [living]
    assert not living.exists()


def test_who_waits_for_the_run_gives_signs_of_life(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = LeaseRecord(holder="other:1:x", epoch=1, renewal=0, ttl=30, expires_at=0)
    lease = tmp_path / "store/tiny" / LEASE
    lease.parent.mkdir(parents=True)
    lease.write_text(holder.model_dump_json())
    epochs = []

    def beat() -> None:
        epochs.append(LeaseRecord.model_validate_json(lease.read_bytes()).epoch)

    monkeypatch.setattr("app.training.start.beat", beat)
    monkeypatch.setattr(
        "app.training.start.Lease", functools.partial(Lease, clock=FakeTime().clock)
    )
    code, log = train(TOTAL_STEPS="2")
    assert code == 0, log
    assert "taking over from other:1:x" in log
    assert epochs.count(1) > 20, "one of the start, and one for each look at the lease"


@pytest.mark.parametrize(
    ("uri", "run_name"), [("data", "restore"), ("data/restore", "tiny"), ("data/downloads", "tiny")]
)
def test_checkpoints_in_a_working_folder_of_the_data_are_refused_and_stay(
    train: Train, tmp_path: Path, uri: str, run_name: str
) -> None:
    data_dir = tmp_path / "data"
    mine = tmp_path / uri / run_name / "checkpoints/step-0000000002-e000001/model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"weights")
    changes = {"CHECKPOINT_URI": f"file://{tmp_path}/{uri}", "RUN_NAME": run_name}
    outcome = train(**changes, DATA_DIR=str(data_dir))
    assert_refused(outcome, 78, f"CHECKPOINT_URI=file://{tmp_path}/{uri} with RUN_NAME={run_name}")
    assert mine.read_bytes() == b"weights"


def test_a_volume_without_room_for_a_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.stores.local.LocalStore.free_bytes", lambda self: 10_000_000)
    assert_refused(train(), 75, "has 10.0 MB free, and a checkpoint of tiny takes 23.6 MB")
    assert_nothing_written(tmp_path / "store")


def test_an_upload_that_was_cut_short_does_not_take_the_room_of_the_next(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train()[0] == 0
    half = tmp_path / "store/tiny/checkpoints/step-0000000006-e000001/model.safetensors"
    half.parent.mkdir()
    half.write_bytes(bytes(15_000_000))
    partial = half.with_name(".store-partial-0-0")
    partial.write_bytes(bytes(15_000_000))
    monkeypatch.setattr("app.stores.local.LocalStore.free_bytes", lambda self: 10_000_000)
    code, log = train(ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert not half.parent.exists()


def test_what_is_free_and_what_a_start_will_free_are_told_apart(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train()[0] == 0
    half = tmp_path / "store/tiny/checkpoints/step-0000000006-e000001/model.safetensors"
    half.parent.mkdir()
    half.write_bytes(bytes(5_000_000))
    monkeypatch.setattr("app.stores.local.LocalStore.free_bytes", lambda self: 10_000_000)
    text = "has 10.0 MB free, 5.0 MB more without what is left of broken uploads, and a checkpoint"
    assert_refused(train(ADDITIONAL_STEPS="2"), 75, text)


@pytest.mark.parametrize("place", ["volume", "s3"])
def test_what_a_killed_attempt_left_half_written_is_gone_after_the_next_start(
    place: str, train: Train, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    century = StoreLimits(stale_upload=100 * 365 * 86_400)  # moto dates every upload to 2010
    monkeypatch.setattr(
        "app.training.groundwork.open_store", functools.partial(open_store, limits=century)
    )
    uri = f"s3://{bucket}/x" if place == "s3" else f"file://{tmp_path}/store"
    assert train(CHECKPOINT_URI=uri)[0] == 0
    store = open_store(uri, "tiny")
    leave_half_written(store, CheckpointName(6, 1).key("model.safetensors"))
    assert len(store.half_written()) == 1
    assert train(CHECKPOINT_URI=uri, ADDITIONAL_STEPS="2")[0] == 0
    assert store.half_written() == []


def test_a_damaged_checkpoint_is_kept_and_so_gives_no_room(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train()[0] == 0
    newest = newest_checkpoint(tmp_path / "store/tiny")
    (newest / "manifest.json").unlink()
    monkeypatch.setattr("app.stores.local.LocalStore.free_bytes", lambda self: 10_000_000)
    assert_refused(train(), 75, "has 10.0 MB free, and a checkpoint of tiny takes 23.6 MB")
    assert (newest / "model.safetensors").exists()


def test_a_record_whose_checkpoints_vanished_is_not_started_again(
    train: Train, tmp_path: Path
) -> None:
    assert train()[0] == 0
    shutil.rmtree(tmp_path / "store" / "tiny" / "checkpoints")
    assert_refused(train(), 78, "LATEST")


def test_validation_needs_held_out_text(train: Train, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("word " * 400)
    outcome = train(DATASET=str(tmp_path / "one.txt"), VAL_EVERY_STEPS="1")
    assert_refused(outcome, 78, "VAL_EVERY_STEPS")


def test_validation_of_less_than_a_sequence(train: Train, tmp_path: Path) -> None:
    outcome = train(VAL_EVERY_STEPS="1", VAL_TOKENS="256", SEQ_LEN="257")
    assert outcome[0] == 78 and "VAL_TOKENS=256" in outcome[1]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key(
    name: str, train: Train, rclone_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "wrong-and-secret")
    code, log = train(CHECKPOINT_URI=f"s3://{rclone_bucket}/x")
    assert_refused((code, log), 77, "access denied")
    assert "wrong-and-secret" not in log


def test_a_store_without_conditional_writes_trains_and_says_so(
    train: Train, rclone_bucket: str
) -> None:
    uri = f"s3://{rclone_bucket}/x"
    code, log = train(CHECKPOINT_URI=uri)
    assert code == 0, log
    assert "SINGLE-WRITER PROTECTION IS OFF" in log
    code, log = train(CHECKPOINT_URI=uri, ADDITIONAL_STEPS="2")
    assert code == 0, log
    assert "resumed from step 4" in log and "target reached: step 6 of 6" in log


def test_a_bucket_that_forbids_deletion_trains_resumes_and_says_that_pruning_is_off(
    train: Train, bucket: str, s3_answers: Interposed
) -> None:
    def no_deletion(environ: dict[str, Any]) -> Answer | None:
        deletes = environ["REQUEST_METHOD"] == "DELETE"
        return (403, "<Error><Code>AccessDenied</Code></Error>") if deletes else None

    s3_answers.answering = no_deletion
    uri = f"s3://{bucket}/x"
    log = ""
    for more in ("0", "2"):
        code, log = train(CHECKPOINT_URI=uri, KEEP_TOP="0", ADDITIONAL_STEPS=more)
        assert code == 0, log
        assert log.count("PRUNING IS OFF") == 1 and log.count("WARNING") == 1, log
    assert "resumed from step 4" in log
    store = open_store(uri, "tiny")
    assert [stored.name.step for stored in read_view(store).checkpoints] == [6, 4, 2]
    newest = read_view(store).checkpoints[0].name
    store.put(newest.key("model.safetensors"), [b"damaged"])
    code, log = train(CHECKPOINT_URI=uri, KEEP_TOP="0")
    assert code == 0, log
    assert "DAMAGED CHECKPOINT" in log and "has to stay" in log
    assert "resumed from step 4" in log and "target reached: step 6 of 6" in log


def test_a_missing_bucket_and_a_dead_endpoint(
    train: Train, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    assert_refused(train(CHECKPOINT_URI="s3://no-such-bucket/x"), 78, "no-such-bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    at_once = functools.partial(open_store, limits=StoreLimits(restart_wait=0))
    monkeypatch.setattr("app.training.groundwork.open_store", at_once)
    assert_refused(train(CHECKPOINT_URI="s3://bucket/x"), 75, "127.0.0.1:9")


@pytest.mark.usefixtures("own_handlers")
@pytest.mark.parametrize("trainer", ["lightning", "torch"])
def test_a_second_ctrl_c_ends_with_130_and_commits_nothing(
    trainer: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepLog, "log_row", Mock(side_effect=KeyboardInterrupt))
    code, log = train(TRAINER=trainer)
    assert code == 130 and "interrupted twice" in log, log
    assert read_view(open_store(f"file://{tmp_path}/store", "tiny")).newest_step == 0


@pytest.mark.parametrize(("trainer", "status"), [("lightning", 0), ("torch", "text")])
def test_a_library_that_ends_the_process_is_a_bug_that_costs_no_step(
    trainer: str, status: int | str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepLog, "log_row", Mock(side_effect=SystemExit(status)))
    code, log = train(TRAINER=trainer)
    assert code == 1 and f"SystemExit({status!r})" in log and "a bug" in log, log
    assert read_view(open_store(f"file://{tmp_path}/store", "tiny")).newest_step == 1


def test_a_library_that_ends_the_process_before_the_training_is_a_bug_too(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.groundwork.open_store", Mock(side_effect=SystemExit(0)))
    assert train()[0] == 1


def test_a_device_without_room_for_the_last_copy_ends_the_job_with_78(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr(Checkpointing, "wait_for_commits", Mock(side_effect=full))
    assert_refused(train(TOTAL_STEPS="1"), 78, "2.00 GiB asked for")
