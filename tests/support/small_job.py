"""What a job of seconds needs, made on the fly: a tokenizer, a text, and its variables."""

import argparse
from pathlib import Path

from app.settings.presets import RECIPES
from app.settings.values import as_typed
from app.settings.variables import variables

# The general defaults, where the tiny model has others. Not INIT: a run from INIT_FROM refuses it.
GENERAL_DEFAULTS = {
    variable.name: as_typed(variable.info.default)
    for variable in variables()
    if variable.name in RECIPES["tiny"] and variable.name not in ("INIT", "TOTAL_STEPS")
}

_TEXT = argparse.__doc__ or ""


def make_tokenizer(directory: Path) -> None:
    """A byte-level BPE of 300 tokens, quick to make and to load."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    end = "<|endoftext|>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)
    fast.save_pretrained(directory)


def small_job(folder: Path, tokenizer: Path) -> dict[str, str]:
    """Variables of a run of seconds: 8 sequences of 32 tokens a step, about 7 steps an epoch."""
    (folder / "corpus.txt").write_text(_TEXT[:4000])
    return {
        **GENERAL_DEFAULTS,
        "MODEL": "tiny",
        "DEVICE": "cpu",
        "DATASET": str(folder / "corpus.txt"),
        "TOKENIZER": str(tokenizer),
        "DATA_DIR": str(folder / "data"),
        "SEQ_LEN": "32",
        "BATCH_SIZE": "2",
        "GLOBAL_BATCH_SIZE": "8",
        "WARMUP_STEPS": "2",
        "OMP_NUM_THREADS": "1",
    }
