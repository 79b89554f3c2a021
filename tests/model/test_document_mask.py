"""Packed documents that do not see each other: as if each had been computed alone."""

import dataclasses
import shutil

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from app.model.document_mask import block_mask, boolean_mask, document_places
from app.model.loss import LossFunction
from app.model.smollm2 import SmolLM2
from app.settings.presets import PRESETS

END = 0
SMALL = dataclasses.replace(
    PRESETS["smollm2-135m"],
    vocab_size=61,
    hidden_size=72,
    intermediate_size=96,
    num_hidden_layers=3,
)


def packed(batch: int, length: int) -> Tensor:
    """Token ids in which about one in eight ends a document, among them two in a row."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, SMALL.vocab_size, (batch, length), generator=generator)
    tokens[torch.rand(batch, length, generator=generator) < 0.125] = END
    tokens[0, 5:7] = END
    tokens[-1, 0] = END
    return tokens


def model(**options: bool) -> SmolLM2:
    made = SmolLM2(SMALL, **options).double()
    made.initialize(5)
    return made


def gradients(of: SmolLM2, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in of.named_parameters() if p.grad is not None}


def one_by_one(of: SmolLM2, tokens: Tensor) -> Tensor:
    """The mean loss of `tokens` (B, T + 1), with one call of the model for each document."""
    total = torch.zeros((), dtype=torch.float64)
    for row in tokens:
        inputs, targets, start = row[:-1], row[1:], 0
        for stop in [*(torch.where(inputs == END)[0] + 1).tolist(), len(inputs)]:
            if stop > start:
                logits = of(inputs[None, start:stop])[0]
                total = total + F.cross_entropy(logits, targets[start:stop], reduction="sum")
            start = stop
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def test_a_document_ends_with_its_end_token_and_the_next_one_starts_at_zero() -> None:
    documents, positions = document_places(
        torch.tensor([[7, 8, END, END, 9, 9], [END] + [5] * 5]), END
    )
    assert documents.tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 1]]
    assert positions.tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_documents_one_by_one(
    gradient_checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loss itself is made in float32 by design; float64 tells more about the rest.
    monkeypatch.setattr(Tensor, "float", lambda self: self.double())
    tokens = packed(3, 65)
    together = model(gradient_checkpointing=gradient_checkpointing)
    together.train()
    alone = model()
    loss = LossFunction(together, compile_model=False, end_token=END)(tokens)
    reference = one_by_one(alone, tokens)
    assert abs(float(loss) - float(reference)) < 1e-12
    ours, theirs = gradients(together, loss), gradients(alone, reference)
    assert ours.keys() == theirs.keys() and len(ours) == len(list(alone.parameters()))
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).abs().max() < 1e-12, name
    without = LossFunction(model(), compile_model=False)(tokens)
    assert abs(float(without) - float(reference)) > 1e-6


def test_a_sequence_of_one_document_is_computed_as_without_the_mask() -> None:
    tokens = packed(2, 33).clamp(min=1)
    masked = LossFunction(model(), compile_model=False, end_token=END)(tokens)
    assert masked.item() == pytest.approx(
        LossFunction(model(), compile_model=False)(tokens).item(), abs=1e-7
    )


def test_nothing_of_another_document_reaches_a_token() -> None:
    tokens = packed(1, 40).clamp(min=1)
    tokens[0, 19] = END
    changed = tokens.clone()
    changed[0, :19] = changed[0, :19] % 60 + 1
    of = model()

    def logits(ids: Tensor) -> Tensor:
        documents, positions = document_places(ids, END)
        return of(ids, positions, boolean_mask(documents))

    difference = (logits(tokens) - logits(changed)).abs().amax(-1)[0]
    assert difference[20:].max() == 0
    assert difference[:20].min() > 0


def test_without_an_end_token_the_model_is_called_as_ever() -> None:
    """Off means bit for bit the arithmetic that is compared with transformers."""
    tokens, of = packed(2, 33), SmolLM2(SMALL)
    of.initialize(5)
    plain = F.cross_entropy(of(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
    assert torch.equal(LossFunction(of, compile_model=False)(tokens), plain)


@pytest.mark.parametrize("length", [64, 200])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_block_mask_shows_what_the_boolean_mask_shows(length: int, autocast: bool) -> None:
    """FlexAttention has no backward pass on CPU; this compares the forward passes."""
    tokens, of = packed(2, length), SmolLM2(SMALL)
    of.initialize(5)
    documents, positions = document_places(tokens, END)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        blocks = of(tokens, positions, block_mask(documents, compiled=False))
        boolean = of(tokens, positions, boolean_mask(documents))
        plain = of(tokens)
    tolerance = 0.1 if autocast else 1e-4
    assert (blocks - boolean).abs().max() < tolerance < (plain - boolean).abs().max()


def test_one_graph_of_the_compiler_serves_every_batch_with_its_own_documents() -> None:
    """What is captured, without the C++ or Triton made from it: only the mask's tensors differ."""
    of = SmolLM2(dataclasses.replace(SMALL, num_hidden_layers=1))
    of.initialize(5)
    captured = torch.compile(of, backend="eager", fullgraph=True)
    with torch.no_grad():
        for shift in (0, 1, 2):
            tokens = packed(2, 200).roll(shift, dims=1)
            documents, positions = document_places(tokens, END)
            mask = block_mask(documents, compiled=False)
            with torch.compiler.set_stance("default" if shift == 0 else "fail_on_recompile"):
                logits = captured(tokens, positions, mask)
            assert (logits - of(tokens, positions, boolean_mask(documents))).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of CPU code needs g++")
@pytest.mark.timeout(900)  # on a busy machine it takes minutes
def test_the_compiled_model_takes_the_compiled_block_mask() -> None:
    tokens, of = packed(2, 256), SmolLM2(dataclasses.replace(SMALL, num_hidden_layers=1))
    of.initialize(5)
    documents, positions = document_places(tokens, END)
    with torch.no_grad():
        compiled = torch.compile(of)(tokens, positions, block_mask(documents, compiled=True))
        assert (compiled - of(tokens, positions, boolean_mask(documents))).abs().max() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.timeout(900)  # it compiles
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-3), (True, 0.1)])
def test_on_a_gpu_the_gradients_through_the_block_mask_are_those_of_the_boolean_mask(
    autocast: bool, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(SMALL, hidden_size=576, num_hidden_layers=2)  # heads of 64
    tokens = packed(2, 257).cuda()

    def computed(*, compiled: bool, end: int | None = END) -> dict[str, Tensor]:
        of = SmolLM2(config)
        of.initialize(5)
        of.cuda()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = LossFunction(of, compile_model=compiled, end_token=end)(tokens)
        return gradients(of, loss)

    blocks, boolean = computed(compiled=True), computed(compiled=False)
    assert "torch.compile failed" not in caplog.text
    unmasked = computed(compiled=False, end=None)
    assert blocks.keys() == boolean.keys()
    for name, gradient in boolean.items():
        difference = (blocks[name] - gradient).norm() / gradient.norm()
        without = (unmasked[name] - gradient).norm() / gradient.norm()
        assert difference < tolerance < without, name
