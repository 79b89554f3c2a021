"""run.json: identity, extensions, and what a damaged record does."""

import json
from pathlib import Path

import pytest

from app.errors import Damaged, Fenced, IncompatibleRun
from app.run.layout import RECORD
from app.run.record import (
    already_applied,
    check_identity,
    create_record,
    extend,
    load_record,
)
from app.state.identity import Identity
from app.stores.contract import Store
from tests.support.stored_run import IDENTITY


def test_a_record_is_read_as_it_was_written(folder: Store) -> None:
    assert load_record(folder) is None
    created = create_record(folder, "run", IDENTITY, 100)
    assert load_record(folder) == created
    assert created.record.target == 100


def test_two_processes_cannot_both_create_it(folder: Store) -> None:
    create_record(folder, "run", IDENTITY, 100)
    with pytest.raises(Fenced):
        create_record(folder, "run", IDENTITY, 100)


def test_a_record_from_before_there_was_a_choice_is_of_adamw_and_normal(folder: Store) -> None:
    content = json.loads(create_record(folder, "run", IDENTITY, 100).record.model_dump_json())
    del content["identity"]["optimizer"], content["identity"]["init"]
    folder.put(RECORD, [json.dumps(content).encode()])
    stored = load_record(folder)
    assert stored is not None
    check_identity(stored.record, IDENTITY, folder.uri)
    with pytest.raises(IncompatibleRun, match="OPTIMIZER was 'adamw', is 'muon'"):
        check_identity(stored.record, IDENTITY.model_copy(update={"optimizer": "muon"}), folder.uri)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format_version": 1}', b"\xff\x00"])
def test_a_damaged_record_is_never_taken_for_no_record(folder: Store, content: bytes) -> None:
    folder.put(RECORD, [content])
    with pytest.raises(Damaged, match=r"run\.json is damaged"):
        load_record(folder)


def test_a_newer_format_is_refused(folder: Store) -> None:
    record = create_record(folder, "run", IDENTITY, 100).record
    newer = record.model_copy(update={"format_version": 99})
    folder.put(RECORD, [newer.model_dump_json().encode()])
    with pytest.raises(IncompatibleRun, match="format 99"):
        load_record(folder)


def test_what_only_a_newer_version_knows_is_not_called_damage(folder: Store) -> None:
    content = json.loads(create_record(folder, "run", IDENTITY, 100).record.model_dump_json())
    newer = {"format_version": 2, "identity": content["identity"] | {"mixing": "new"}}
    folder.put(RECORD, [json.dumps(content | newer).encode()])
    with pytest.raises(IncompatibleRun, match=r"run\.json has format 2.*use the newer image"):
        load_record(folder)
    folder.put(RECORD, [json.dumps(content | newer | {"format_version": 1}).encode()])
    with pytest.raises(Damaged, match=r"run\.json is damaged \(identity\.mixing"):
        load_record(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "smollm2-135m"}, "MODEL was 'tiny', is 'smollm2-135m'"),
        ({"global_batch_size": 32}, "GLOBAL_BATCH_SIZE was 16, is 32"),
        ({"seq_len": 128}, "SEQ_LEN was 256, is 128"),
        ({"seed": 1}, "SEED was 1337, is 1"),
        ({"optimizer": "muon"}, "OPTIMIZER was 'adamw', is 'muon'"),
        ({"init": "scaled"}, "INIT was 'normal', is 'scaled'"),
        ({"dataset": "x.txt", "dataset_fingerprint": "d2"}, "DATASET was 'builtin', is 'x.txt'"),
        ({"dataset_fingerprint": "d2"}, "DATASET 'builtin' changed its content"),
        ({"tokenizer_fingerprint": "t2"}, "TOKENIZER 'builtin' changed its content"),
        ({"shape": {"hidden_size": 65}}, "the shape of the model"),
    ],
)
def test_other_settings_are_refused_by_name(
    folder: Store, change: dict[str, object], text: str
) -> None:
    record = create_record(folder, "run", IDENTITY, 100).record
    with pytest.raises(IncompatibleRun) as caught:
        check_identity(record, IDENTITY.model_copy(update=change), folder.uri)
    assert text in str(caught.value)
    check_identity(record, IDENTITY, folder.uri)


def test_the_same_data_under_another_path_is_the_same_run(folder: Store) -> None:
    record = create_record(folder, "run", IDENTITY, 100).record
    check_identity(record, IDENTITY.model_copy(update={"dataset": "/elsewhere"}), folder.uri)


@pytest.mark.parametrize("other", ["../{name}", "{path}", "{path}/", "."])
def test_a_folder_recorded_as_it_was_typed_is_the_same_under_its_own_path(
    other: str, folder: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = other.format(name=tmp_path.name, path=tmp_path)
    record = create_record(folder, "run", _begun_from(typed), 100).record
    check_identity(record, _begun_from(str(tmp_path)), folder.uri)
    for elsewhere in (f"{tmp_path}/other", "owner/name", None):
        with pytest.raises(IncompatibleRun, match="INIT_FROM was"):
            check_identity(record, _begun_from(elsewhere), folder.uri)


def _begun_from(spec: str | None) -> Identity:
    return IDENTITY.model_copy(update={"init_from": spec})


def test_a_finished_run_is_extended_once_for_an_id(folder: Store) -> None:
    stored = create_record(folder, "run", IDENTITY, 100)
    for step in (100, 105, 150, 150):
        stored = extend(folder, stored, step=step, additional_steps=50, extension_id="a").stored
        assert stored.record.horizons == (100, 150)
    assert load_record(folder) == stored


def test_an_id_that_comes_again_is_said_and_another_number_of_steps_too(folder: Store) -> None:
    stored = create_record(folder, "run", IDENTITY, 100)
    record = extend(folder, stored, step=100, additional_steps=50, extension_id="a").stored.record
    applied = "ADDITIONAL_STEPS=50 (EXTENSION_ID=a) is applied already: from step 100 to step 150"
    assert already_applied(record, 50, "a") == applied
    other = already_applied(record, 60, "a")
    assert other is not None and other.endswith("; for another one, set another EXTENSION_ID")
    for additional_steps, extension_id in [(50, "b"), (50, None), (0, "a")]:
        assert already_applied(record, additional_steps, extension_id) is None


def test_an_unfinished_run_goes_on_to_its_recorded_target(folder: Store) -> None:
    stored = create_record(folder, "run", IDENTITY, 100)
    outcome = extend(folder, stored, step=60, additional_steps=50, extension_id=None)
    assert outcome.stored.record.target == 100
    assert outcome.note is not None and "not finished" in outcome.note


def test_an_unfinished_run_is_extended_at_once_where_an_id_says_which_start_asked(
    folder: Store,
) -> None:
    stored = create_record(folder, "run", IDENTITY, 100)
    outcome = extend(folder, stored, step=0, additional_steps=50, extension_id="a")
    assert outcome.stored.record.horizons == (100,), "there is no checkpoint yet"
    for step in (60, 100, 150):
        stored = extend(folder, stored, step=step, additional_steps=50, extension_id="a").stored
        assert stored.record.horizons == (100, 150)
    outcome = extend(folder, stored, step=120, additional_steps=10, extension_id="b")
    assert outcome.stored.record.horizons == (100, 150, 160)
    assert outcome.note == "ADDITIONAL_STEPS=10: extended from step 150 to step 160"


def test_without_an_id_every_finished_start_extends(folder: Store) -> None:
    stored = create_record(folder, "run", IDENTITY, 100)
    for step in (100, 110, 120):
        stored = extend(folder, stored, step=step, additional_steps=10, extension_id=None).stored
    assert stored.record.horizons == (100, 110, 120, 130)


def test_an_extension_that_lost_a_race_stops(folder: Store) -> None:
    stale = create_record(folder, "run", IDENTITY, 100)
    extend(folder, stale, step=100, additional_steps=10, extension_id="a")
    with pytest.raises(Fenced):
        extend(folder, stale, step=100, additional_steps=10, extension_id="b")
