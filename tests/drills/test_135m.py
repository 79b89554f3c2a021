"""The one test at full size: a step of 135M becomes a checkpoint that transformers loads."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.run.committing import commit
from app.run.fetching import fetch
from app.run.layout import CheckpointName
from app.settings.presets import PRESETS
from app.settings.variables import OptimizerSettings
from app.state.snapshot import capture, huggingface_files
from app.stores.opening import open_store
from app.training.optimizer import build_optimizer
from tests.support.stored_run import FreeLease
from tests.support.training_state import progress


@pytest.mark.slow
def test_a_trained_135m_checkpoint_loads_in_transformers_with_the_same_logits(
    tmp_path: Path, small_tokenizer: Path
) -> None:
    config = PRESETS["smollm2-135m"]
    model = SmolLM2(config)
    model.initialize(1337)
    optimizer = build_optimizer(model, OptimizerSettings(), torch.device("cpu"))
    tokens = torch.randint(0, 300, (1, 65), generator=torch.Generator().manual_seed(1))
    loss = LossFunction(model, compile_model=False, fused=True)(tokens)
    loss.backward()
    optimizer.step()

    store = open_store(f"file://{tmp_path}", "run")
    name = CheckpointName(1, 1)
    files = capture(model, optimizer, progress(1)).files(
        huggingface_files(config, small_tokenizer, 0, 0)
    )
    commit(store, name, files, loss.item(), FreeLease(store))
    directory = fetch(store, name, tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.num_parameters() == 134_515_008
    assert loaded.dtype == torch.float32
    with torch.no_grad():
        ours, theirs = model(tokens), loaded(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    text = "usage: prog [-h] —  naïve"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
