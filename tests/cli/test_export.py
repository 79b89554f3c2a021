"""`export`: what is in the folder, that `transformers` computes the same, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from app.cli import parser as cli
from app.model.huggingface import read_config
from app.model.smollm2 import SmolLM2
from app.run.checkpoints import read_manifest
from app.run.evaluations import Evaluation, write_evaluation
from app.run.view import read_view
from app.state.weights import load_pretrained
from app.stores.opening import open_store
from tests.support.error_lines import errors
from tests.support.validated_run import train_validated

Export = Callable[..., int]


@pytest.fixture(scope="module")
def trained(job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the store of a run of six steps."""
    return train_validated(job_environment, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def export(trained: str, nothing_set: None, tmp_path: Path) -> Export:
    def run(*words: str) -> int:
        named = ["--checkpoint_uri", trained, "--run_name", "tiny"]
        return cli.main(["export", *named, "--data_dir", f"{tmp_path}/data", *words])

    return run


@pytest.fixture
def checkpoint(trained: str) -> Path:
    store = open_store(trained, "tiny")
    return Path(trained.removeprefix("file://")) / "tiny" / read_view(store).committed[0].key()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_computes_what_the_checkpoint_computes(
    dtype: str, export: Export, checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "model"
    assert export("--to", str(target), "--dtype", dtype) == 0
    tensors, saved = (
        load_file(target / "model.safetensors"),
        load_file(checkpoint / "model.safetensors"),
    )
    assert "lm_head.weight" not in tensors
    kind = getattr(torch, dtype)
    assert {name: t.dtype for name, t in tensors.items()} == dict.fromkeys(saved, kind)
    for name, tensor in saved.items():
        assert torch.equal(tensors[name], tensor.to(kind)), name
    loaded: Any = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    theirs, told = loaded
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert theirs.dtype == kind
    ours = SmolLM2.empty(read_config(target), torch.device("cpu"))
    load_pretrained(target, ours)
    ids = torch.tensor([AutoTokenizer.from_pretrained(target)("def main(")["input_ids"]])
    with torch.no_grad():
        expected = theirs.float()(ids).logits
        torch.testing.assert_close(ours.float()(ids), expected, rtol=1e-4, atol=1e-4)


def test_the_card_says_what_the_store_knows_of_the_run(
    export: Export, trained: str, tmp_path: Path
) -> None:
    store = open_store(trained, "tiny")
    name = read_view(store).committed[1]
    weights = read_manifest(store, name).files["model.safetensors"].sha256
    found = Evaluation(
        step=name.step,
        checkpoint=str(name),
        weights=weights,
        task="hellaswag",
        metric="acc",
        value=0.2511,
        of="hellaswag",
        when="2026-01-01T00:00:00+00:00",
    )
    write_evaluation(store, name, [found])
    other = found.model_copy(update={"weights": "0" * 64, "value": 0.99, "task": "piqa"})
    write_evaluation(store, name, [other])
    assert export("--to", f"{tmp_path}/model", "--step", str(name.step)) == 0
    text = (tmp_path / "model/README.md").read_text("utf-8")
    told: Any = ModelCard(text).data
    assert told.library_name == "transformers"
    assert told.pipeline_tag == "text-generation"
    results = {(r.metric_name, r.metric_value) for r in told.eval_results}
    assert ("hellaswag: acc", 0.2511) in results
    assert any(metric == "validation: loss" for metric, _ in results)
    for line in (
        "| hellaswag: acc (hellaswag) | 0.2511 |",
        f"| steps | {name.step} |",
        "| attempts | 1 |",
        f"| torch | {torch.__version__.split('+')[0]}",
        "AutoModelForCausalLM.from_pretrained(place)",
    ):
        assert line in text
    assert "piqa" not in text  # it is about other weights
    picture = (tmp_path / "model/curves.svg").read_text("utf-8")
    assert picture.count("<polyline") == 4
    assert not list((tmp_path / "model").glob("state.json"))
    assert not list((tmp_path / "model").glob("optimizer*"))


def test_a_damaged_checkpoint_is_not_exported(
    export: Export, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert export("--to", f"{tmp_path}/model") == 78
    finally:
        path.write_bytes(whole)
    assert "does not match its SHA-256" in errors(capsys)[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) in ([], ["data"])


def test_what_is_there_is_replaced_only_when_that_is_asked_for_and_is_a_model(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    assert export("--to", str(target)) == 78
    assert "exists already" in errors(capsys)[-1]
    assert export("--to", str(target), "--overwrite") == 78
    assert "is not a model that was exported" in errors(capsys)[-1]
    assert (target / "mine.txt").read_text() == "mine"
    (target / "mine.txt").rename(target / "README.md")
    (target / "config.json").write_text("{}")
    assert export("--to", str(target), "--overwrite", "--dtype", "float32") == 0
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"
