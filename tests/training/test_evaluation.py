"""Validation: the same number however it is computed, over text that is never trained on."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer

from app.data.limits import DataLimits
from app.data.loader import ValidationBatches, training_loader
from app.data.pieces import held_out
from app.data.sample_order import BatchGeometry, corpus_order
from app.data.shard_index import ShardIndex, Tally
from app.data.shards import ShardWriter, TokenShards
from app.data.tokenizer import read_tokenizer
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.observe.rows import perplexity
from app.ranks.team import Team
from app.settings.place import Place
from app.settings.presets import PRESETS
from app.settings.variables import ComputeSettings, DataSettings
from app.training.compute import resolve_compute
from app.training.evaluation import evaluate
from tests.support.forked_job import ForkedJobRunner, signal_in_step
from tests.support.job import newest_checkpoint
from tests.support.prepared import prepare

SEQ_LEN = 16
DOCUMENTS = [f"<{i}> " + "a few words of it " * (i % 5 + 1) for i in range(700)]


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    """Seven sequences and a few tokens more."""
    tokens = torch.randint(0, 300, (7 * SEQ_LEN + 5,), generator=torch.Generator().manual_seed(1))
    writer = ShardWriter(tmp_path, ShardIndex(source="s", tokenizer="t"))
    writer.append("validation", tokens.numpy().astype("uint16"))
    writer.seal(Tally(position=None, pieces=1, documents=1))
    return TokenShards(tmp_path, "validation", writer.index)


def loss_of(shards: TokenShards, batch_size: int, end_token: int | None = None) -> float:
    model = SmolLM2(PRESETS["tiny"])
    model.initialize(3)
    compute = resolve_compute(ComputeSettings(device="cpu", precision="32-true", compile="false"))
    loss = evaluate(
        model,
        LossFunction(model, compile_model=False, end_token=end_token),
        ValidationBatches(shards, SEQ_LEN, batch_size, max_tokens=10_000),
        compute,
        lambda seconds_left: True,
        Team(Place(), 60),
    )
    assert loss is not None
    return loss


@pytest.mark.parametrize("end_token", [None, 5])
def test_the_loss_is_the_same_for_every_batch_size(
    shards: TokenShards, end_token: int | None
) -> None:
    """Seven sequences: a last, smaller batch counts by its tokens and not as a batch."""
    one = loss_of(shards, 1, end_token)
    for batch_size in (2, 3, 4, 7, 8):
        assert loss_of(shards, batch_size, end_token) == pytest.approx(one, rel=1e-6)


def test_the_loss_is_the_mean_over_all_tokens(shards: TokenShards) -> None:
    model = SmolLM2(PRESETS["tiny"])
    model.initialize(3)
    tokens = torch.from_numpy(shards.read(0, 7 * SEQ_LEN + 1).astype("int64"))
    rows = torch.stack([tokens[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(7)])
    with torch.no_grad():
        logits = model(rows[:, :-1]).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
    assert loss_of(shards, 4) == pytest.approx(float(expected), rel=1e-6)


def txt(folder: Path, texts: Sequence[str]) -> str:
    for number, text in enumerate(texts):
        (folder / f"{number:05d}.txt").write_text(text)
    return str(folder / "*.txt")


def jsonl(folder: Path, texts: Sequence[str]) -> str:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(folder / "a.jsonl")


def parquet(folder: Path, texts: Sequence[str]) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), folder / "a.parquet")
    return str(folder / "a.parquet")


@pytest.mark.parametrize("write", [txt, jsonl, parquet])
def test_no_held_out_document_is_ever_trained_on(
    write: Callable[[Path, Sequence[str]], str],
    small_tokenizer: Path,
    tmp_path: Path,
) -> None:
    """What the loader shows in two epochs and what validation shows, as text."""
    (tmp_path / "texts").mkdir()
    data = DataSettings(
        dataset=write(tmp_path / "texts", [*DOCUMENTS, *DOCUMENTS[200:400]]), data_dir=tmp_path
    )
    tokenizer = read_tokenizer(small_tokenizer, "TOKENIZER=small")
    prepared = prepare(data, tokenizer, shard_tokens=3000, limits=DataLimits(batch_characters=5000))
    codec = Tokenizer.from_file(str(small_tokenizer / "tokenizer.json"))
    order = corpus_order(prepared.train.n_tokens, SEQ_LEN, complete=True, seed=1)
    assert order.n_sequences is not None
    steps = 2 * order.n_sequences // 8
    batches = training_loader(
        prepared.train,
        order.sequences,
        BatchGeometry(2, 8, SEQ_LEN),
        0,
        steps,
        num_workers=0,
        pin_memory=False,
    )
    trained = "".join(codec.decode_batch([row for batch in batches for row in batch.tolist()]))
    validation = ValidationBatches(prepared.validation, SEQ_LEN, 2, 10**6)
    validated = "".join(
        codec.decode_batch([row[:-1].tolist() for batch in validation for row in batch])
    )
    held = [text.split()[0] for text in DOCUMENTS if held_out(text)]
    kept = [text.split()[0] for text in DOCUMENTS if not held_out(text)]
    assert len(held) > 3
    # A mark such as <123> may be cut by the border of a sequence, in validation only.
    assert not [mark for mark in held if mark in trained]
    assert not [mark for mark in kept if mark in validated]
    assert len([mark for mark in held if mark in validated]) >= len(held) - 2
    assert len([mark for mark in kept if mark in trained]) > 0.6 * len(kept)


def test_an_epoch_shows_every_token_of_every_document_but_the_last_few(
    small_tokenizer: Path, tmp_path: Path
) -> None:
    """The sequences of an epoch, put back into the corpus's order, are the documents."""
    data = DataSettings(dataset=jsonl(tmp_path, DOCUMENTS), data_dir=tmp_path)
    tokenizer = read_tokenizer(small_tokenizer, "TOKENIZER=small")
    prepared = prepare(data, tokenizer)
    order = corpus_order(prepared.train.n_tokens, SEQ_LEN, complete=True, seed=1)
    n = order.n_sequences
    assert n is not None
    batches = training_loader(
        prepared.train,
        order.sequences,
        BatchGeometry(1, 1, SEQ_LEN),
        n,
        2 * n,
        num_workers=0,
        pin_memory=False,
    )
    rows = {order.sequence_at(n + i): batch[0].tolist() for i, batch in enumerate(batches)}
    shown = [token for sequence in range(n) for token in rows[sequence][:-1]] + rows[n - 1][-1:]
    left_out = prepared.train.n_tokens - len(shown)
    assert 0 <= left_out < SEQ_LEN
    shown += prepared.train.read(len(shown), left_out).tolist()
    codec = Tokenizer.from_file(str(small_tokenizer / "tokenizer.json"))
    text = codec.decode(shown, skip_special_tokens=False)
    assert text.split("<|endoftext|>")[:-1] == [t for t in DOCUMENTS if not held_out(t)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_validation_is_the_same_from_both_trainers_and_after_a_kill(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    """In the rows, in the log, and in the checkpoint's state.json."""
    (tmp_path / "long.txt").write_text(
        "\n".join(f"Line {number} of a text that is long enough." for number in range(20_000))
    )
    runs: dict[str, tuple[list[Any], dict[str, Any]]] = {}
    for name, trainer in (("a", "torch"), ("b", "lightning"), ("c", "torch")):
        runner = ForkedJobRunner(job_environment).with_(
            DATASET=str(tmp_path / "long.txt"),
            DATA_DIR=str(tmp_path / "data"),
            CHECKPOINT_URI=f"file://{tmp_path}/{name}",
            TRAINER=trainer,
            TOTAL_STEPS="8",
            CHECKPOINT_EVERY_STEPS="2",
            VAL_EVERY_STEPS="3",
            VAL_TOKENS="256",
            DOCUMENT_MASK="true",
        )
        if name == "c":
            # Killed after the evaluation of step 6, whose checkpoint the next start finds.
            stopped = runner.preceded_by(signal_in_step, 7, signal.SIGKILL).run("train")
            assert stopped.code == -signal.SIGKILL
        finished = runner.run("train")
        assert finished.code == 0, finished.log
        lines = (tmp_path / name / "tiny" / "logs" / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        state = json.loads((newest_checkpoint(tmp_path / name / "tiny") / "state.json").read_text())
        keys = ("step", "validation_loss", "validation_perplexity")
        runs[name] = [tuple(row[key] for key in keys) for row in rows], state
        _, loss, ppl = runs[name][0][5]
        assert f"val loss {loss:.4f} (ppl {ppl:,.1f})" in finished.log or name == "c"
    assert runs["a"][0] == runs["b"][0] == runs["c"][0]
    measured = [(step, loss) for step, loss, _ in runs["a"][0] if loss is not None]
    assert [step for step, _ in measured] == [1, 3, 6, 8], "the last step too"
    for _, state in runs.values():
        assert state["step"] == 8
        assert state["validation_loss"] == measured[-1][1]
        assert state["validation_perplexity"] == perplexity(measured[-1][1])
        assert state["document_mask"] is True
