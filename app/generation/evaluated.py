"""The weights that an evaluation is about, as a Hugging Face directory on this machine."""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.data.tokenizer import TokenizerFiles, read_tokenizer
from app.failures import disk_failures
from app.model.huggingface import MODEL_FILE, model_directory, read_config
from app.model.smollm2 import SmolLM2
from app.observe.chosen_checkpoint import chosen_checkpoint
from app.run.checkpoints import read_manifest
from app.run.fetching import fetch
from app.run.layout import CheckpointName
from app.run.view import read_view
from app.settings.presets import ModelConfig
from app.state.snapshot import OPTIMIZER_FILE, Expected
from app.state.weights import load_pretrained, weights_digest
from app.stores.contract import Store


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated. `weights` is the SHA-256 (hex) of its weights.

    `name` is None for a directory that is no checkpoint of a run. `context` is the longest sequence
    that it was trained on, in tokens, as far as that is known.
    """

    directory: Path
    weights: str
    origin: str
    config: ModelConfig
    tokenizer: TokenizerFiles
    context: int
    name: CheckpointName | None = None

    def model(self, device: torch.device) -> SmolLM2:
        """The model in float32, for evaluation. Raises Damaged, NotFound, IncompatibleRun."""
        model = SmolLM2.empty(self.config, device)
        with disk_failures(str(self.directory)):
            load_pretrained(self.directory, model)
        return model.eval()


def evaluated_checkpoint(store: Store, text: str, scratch: Path) -> Evaluated:
    """The checkpoint that `text` names, all its bytes compared; the optimizer is left in the store.

    It is only read, so the run may be in training meanwhile. Raises NotFound if there is none,
    Damaged if it does not verify, and the store's errors.
    """
    view = read_view(store)
    name = chosen_checkpoint(store, view, text)
    manifest = read_manifest(store, name)
    wanted = [file for file in manifest.files if file != OPTIMIZER_FILE]
    record = view.record.record if view.record else None
    directory = fetch(
        store, name, scratch, only=wanted, required=(MODEL_FILE,), expected=Expected(record)
    )
    config = read_config(directory)
    trained_on = record.identity.seq_len if record else config.max_position_embeddings
    return Evaluated(
        directory,
        manifest.files[MODEL_FILE].sha256,
        f"{store.uri}/{name.key()}",
        config,
        read_tokenizer(directory, f"the checkpoint {name}"),
        min(config.max_position_embeddings, trained_on),
        name,
    )


def evaluated_directory(spec: str) -> Evaluated:
    """A Hugging Face directory of a plain Llama, or a hub id. Raises as `evaluated_checkpoint`."""
    setting = f"--model_dir={spec}"
    directory = model_directory(spec, "--model_dir")
    config = read_config(directory)
    tokenizer = read_tokenizer(directory, setting)
    with disk_failures(str(directory)):
        weights = weights_digest(directory)
    return Evaluated(directory, weights, spec, config, tokenizer, config.max_position_embeddings)
