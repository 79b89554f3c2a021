"""Settings as one value: what they mean together, and how they are printed."""

import re

import pytest

from app.console import redacted
from app.settings.load import load_settings
from app.settings.variables import variables
from tests.support.refused_settings import problems

pytestmark = pytest.mark.usefixtures("nothing_set")


@pytest.mark.parametrize(("batch", "whole"), [(2, 5), (16, 8), (7, 24), (65_536, 1_048_575)])
def test_batch_sizes_that_do_not_divide_are_answered_with_some_that_do(
    batch: int, whole: int
) -> None:
    text = problems(batch_size=str(batch), global_batch_size=str(whole))
    advice = re.search(r": set BATCH_SIZE=(\d+) or GLOBAL_BATCH_SIZE=(\d+)$", text)
    assert advice is not None, text
    load_settings({"batch_size": advice[1], "global_batch_size": str(whole)})
    load_settings({"batch_size": str(batch), "global_batch_size": advice[2]})


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"global_batch_size": "5"}, "GLOBAL_BATCH_SIZE=5 is not a multiple of BATCH_SIZE=2"),
        ({"model": "tiny", "seq_len": "512"}, "SEQ_LEN=512 is above the context of MODEL=tiny"),
        ({"seq_len": "4096"}, "at most 2048 tokens"),
        ({"seq_len": "1024", "val_every_steps": "5", "val_tokens": "512"}, "VAL_TOKENS=512"),
        ({"init_from": "a/b", "model": "tiny"}, "MODEL=tiny has no meaning with INIT_FROM=a/b"),
        ({"init_from": "a/b", "init": "scaled"}, "INIT=scaled has no meaning with INIT_FROM=a/b"),
        ({"device": "mps", "devices": "2"}, "DEVICES=2, but an Apple GPU serves one process"),
        ({"dataset_config": "x"}, "DATASET_CONFIG has no meaning with DATASET=builtin"),
    ],
)
def test_an_impossible_combination_is_refused(flags: dict[str, str], reason: str) -> None:
    assert reason in problems(**flags)


def test_a_default_that_is_typed_out_is_no_contradiction() -> None:
    load_settings({"init_from": "a/b", "model": "auto", "init": "normal"})


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE"])
def test_a_run_lies_elsewhere_behind_another_endpoint(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, places in (("s3://bucket/x", 3), ("file:///x", 1)):
        found = set()
        for value in (None, "http://first:9000", "http://second:9000"):
            if value:
                monkeypatch.setenv(name, value)
            found.add(load_settings({"checkpoint_uri": uri}).run_place)
        monkeypatch.delenv(name)
        assert len(found) == places and all(uri in place for place in found)


def test_the_endpoint_of_s3_alone_counts_before_that_of_all_services(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://everything:9000")
    place = load_settings({"checkpoint_uri": "s3://bucket/x"}).run_place
    assert place.endswith("in s3://bucket/x at AWS_ENDPOINT_URL_S3=http://store:9000")


def test_printed_values_are_what_a_user_would_type() -> None:
    given = {
        "grace_seconds": "25",
        "document_mask": "true",
        "learning_rate": "3e-07",
        "z_loss": "0",
    }
    settings = load_settings(given)
    shown = {variable.name: settings.shown(variable) for variable in variables()}
    assert shown["GRADIENT_CHECKPOINTING"] == "false"
    assert (shown["RUN_NAME"], shown["GRAD_CLIP"], shown["ADAM_EPSILON"]) == ("", "1", "1e-08")
    assert {name: shown[name.upper()] for name in given} == given
    again = load_settings({name.lower(): value for name, value in shown.items()})
    assert all(again.value(variable) == settings.value(variable) for variable in variables())


def test_printed_values_hide_credentials() -> None:
    settings = load_settings({"dataset": "https://example.org/x.txt?token=verysecret"})
    shown = [settings.shown(variable) for variable in variables()]
    assert not any("verysecret" in value for value in shown)
    assert redacted("token hf_abcdefghijkl") == "token hf_***"
    signed = "https://host/x.jsonl?X-Amz-Signature=verysecret&X-Amz-Security-Token=verysecret'"
    assert "verysecret" not in redacted(signed)
    assert "verysecret" not in problems(batch_size="0", dataset=signed)
