"""The training state, and the files that it becomes in a checkpoint.

model.safetensors       weights, under Hugging Face names
optimizer.safetensors   moments and step counts: "<moment>.<parameter>"
state.json              step, tokens, loss, random numbers, schedule, versions
config.json, generation_config.json, tokenizer files: what `transformers` reads
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.data.tokenizer import TOKENIZER_FILE_TYPES
from app.errors import Damaged, IncompatibleRun
from app.model.huggingface import MODEL_FILE, MOST_PARAMETERS, config_files
from app.model.smollm2 import SmolLM2
from app.settings.presets import ModelConfig
from app.state.identity import RunRecord
from app.state.progress import STATE_FILE, Progress, read_progress
from app.state.tensor_files import check_float32, read_shapes, read_tensors, tensor_file
from app.state.weights import check_finite, load_weights, same_tensors, shapes_of
from app.stores.contract import Data

OPTIMIZER_FILE = "optimizer.safetensors"
ADAMW_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)
STATE_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)

# A snapshot stays on the card if this many times its size is free there.
ROOM_FOR_SNAPSHOT = 1.5

# Of the header of a tensor file, or of all of another file: a tokenizer's may have 30 MB.
_MOST_BYTES_BESIDE_TENSORS = 64 * 2**20


@dataclass
class Snapshot:
    """A copy of the training state; training may go on while it is written.

    If the GPU has room for it, the copy is made within the GPU, which takes milliseconds, and
    stays there until `bring_to_host`. `made` is the event after which the copy is complete.
    """

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    made: torch.cuda.Event | None = None

    @property
    def step(self) -> int:
        return self.progress.step

    def bring_to_host(self) -> None:
        """Copy a snapshot that is on a GPU to the host, on a stream beside that of the training."""
        if self.made is None:
            return
        stream = torch.cuda.Stream(next(iter(self.model.values())).device)
        stream.wait_event(self.made)
        with torch.cuda.stream(stream):
            self.model = {name: _on_host(tensor) for name, tensor in self.model.items()}
            self.optimizer = {name: _on_host(tensor) for name, tensor in self.optimizer.items()}
        self.made = None

    def files(self, extra: Mapping[str, bytes]) -> dict[str, Data]:
        """File name to content, once on the host; `extra` holds config.json and the like."""
        state = self.progress.model_dump_json(indent=1).encode()
        return {
            MODEL_FILE: tensor_file(self.model),
            OPTIMIZER_FILE: tensor_file(self.optimizer),
            STATE_FILE: [state],
            **{name: [content] for name, content in extra.items()},
        }


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    room: float = ROOM_FOR_SNAPSHOT,
) -> Snapshot:
    """Copy weights and moments. This is all that the training loop waits for.

    On a card with `room` times the size of the copy free, the copy stays there.
    """
    weights = model.state_dict()
    state = _named_moments(model, optimizer)
    stays = _fits_on_card([*weights.values(), *state.values()], room)
    copy = torch.clone if stays else _host_copy
    return Snapshot(
        progress=progress,
        model={name: copy(tensor.detach()) for name, tensor in weights.items()},
        optimizer={name: copy(tensor.detach()) for name, tensor in state.items()},
        made=torch.cuda.current_stream().record_event() if stays else None,
    )


def restore(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load a verified checkpoint into `model` and `optimizer`, and the random numbers.

    Raises Damaged for an unreadable file and for numbers that no training makes, IncompatibleRun
    for tensors of another model or optimizer.
    """
    progress = read_progress(directory / STATE_FILE)
    check_float32(directory / MODEL_FILE)
    load_weights([directory / MODEL_FILE], model)
    _load_optimizer(directory / OPTIMIZER_FILE, model, optimizer, progress.step)
    progress.random.restore()
    return progress


@dataclass(frozen=True)
class Expected:
    """What a checkpoint has to be to belong to the run of `record`. None: whatever run it is of."""

    record: RunRecord | None

    def check(self, step: int, directory: Path) -> None:
        """Raises Damaged unless the files are the state after `step`, IncompatibleRun for a newer
        format, and OSError.

        A checkpoint that says that it is of this run, and has other tensors, is damaged. One that
        does not say its run may be of another model or optimizer: IncompatibleRun.
        """
        progress = read_progress(directory / STATE_FILE)
        progress.check(step, self.record)
        try:
            self.read(directory, progress)
        except IncompatibleRun as error:
            if progress.run is None:
                raise IncompatibleRun(f"the checkpoint of step {step}: {error}") from error
            raise Damaged(f"its tensors are not those of its run: {error}") from error

    def read(self, directory: Path, progress: Progress) -> None:
        """Judge each tensor; one is in memory at a time.

        So `checkpoints verify` and the like read a checkpoint twice: for its SHA-256, and here. A
        start reads it twice too, since its own `read` loads what it judges.
        """
        model_file, optimizer_file = directory / MODEL_FILE, directory / OPTIMIZER_FILE
        found, kept = read_shapes(model_file), read_shapes(optimizer_file)
        run = progress.run or self.record
        if run and (config := run.identity.config):
            model = _without_memory(config, model_file, found)
            same_tensors(model_file, shapes_of(model), found)
            inside = matrices_of_layers(model) if run.identity.optimizer == "muon" else {}
            expected = _moment_shapes(
                (name, parameter, MUON_MOMENTS if name in inside else ADAMW_MOMENTS)
                for name, parameter in model.named_parameters()
            )
            _same_moments(optimizer_file, expected, kept)
        for file in (model_file, optimizer_file):
            check_float32(file)
        for name, tensor in read_tensors(model_file, found):
            check_finite(model_file, name, tensor)
        for name, tensor in read_tensors(optimizer_file, kept):
            _check_moment(optimizer_file, name, tensor, progress.step)

    def most_bytes(self, file: str) -> int:
        """How long a file of a checkpoint can be."""
        tensors = {MODEL_FILE: self._weights, OPTIMIZER_FILE: 2 * self._weights}
        return tensors.get(file, 0) + _MOST_BYTES_BESIDE_TENSORS

    @property
    def most_bytes_in_all(self) -> int:
        """How long they can be together: a tokenizer's files are bounded as one file is."""
        return 3 * self._weights + 4 * _MOST_BYTES_BESIDE_TENSORS

    @property
    def _weights(self) -> int:
        """How many bytes the weights can have."""
        config = self.record.identity.config if self.record else None
        return 4 * (min(config.parameter_count, MOST_PARAMETERS) if config else MOST_PARAMETERS)


def checkpoint_bytes(config: ModelConfig, optimizer: str) -> int:
    """About the size of a checkpoint: float32 weights and moments, and a few megabytes.

    AdamW keeps two moments of a parameter. Muon keeps one, of each matrix inside the layers.
    """
    total = config.parameter_count
    parts = config.parameter_breakdown()
    with_two = parts["embedding"] + parts["norms"] if optimizer == "muon" else total
    return 4 * (2 * total + with_two) + 4_000_000


def library_versions() -> dict[str, str]:
    """Versions that can change results, for state.json."""
    packages = ("torch", "pytorch-lightning", "safetensors", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def huggingface_files(
    config: ModelConfig, tokenizer_directory: Path, bos_token_id: int | None, eos_token_id: int
) -> dict[str, bytes]:
    """config.json, generation_config.json and the tokenizer's files, for `transformers`."""
    files = config_files(config, bos_token_id, eos_token_id)
    for path in sorted(tokenizer_directory.iterdir()):
        if path.is_file() and path.suffix in TOKENIZER_FILE_TYPES:
            files[path.name] = path.read_bytes()
    return files


def tokenizer_files(files: Iterable[str]) -> list[str]:
    """Those of a checkpoint's files that are its tokenizer's."""
    others = {STATE_FILE, "config.json", "generation_config.json"}
    return [f for f in files if f.endswith(TOKENIZER_FILE_TYPES) and f not in others]


def shared_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments, those of the optimizer itself and no copies, in one order everywhere."""
    state = _named_moments(model, optimizer)
    return {**model.state_dict(), **{name: state[name] for name in sorted(state)}}


def _named_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{moment}.{name}": tensor
        for name, parameter in model.named_parameters()
        for moment, tensor in optimizer.state[parameter].items()
    }


def make_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer moments of the right shapes, all 0, to be overwritten."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            counts_at = parameter.device if group.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {
                moment: torch.zeros((), device=counts_at)
                if moment == "step"
                else torch.zeros_like(parameter)
                for moment in moments(group)
            }


def _load_optimizer(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [(p, moments(group)) for group in optimizer.param_groups for p in group["params"]]
    shapes = _moment_shapes((names[parameter], parameter, kinds) for parameter, kinds in ordered)
    _same_moments(path, shapes, read_shapes(path))
    check_float32(path)
    host = torch.device("cpu")
    devices = {
        f"{moment}.{names[parameter]}": host if moment == "step" else parameter.device
        for parameter, its_moments in ordered
        for moment in its_moments
    }
    tensors = {}
    for name, tensor in read_tensors(path, devices):
        _check_moment(path, name, tensor, step)
        tensors[name] = tensor.to(devices[name])
    state = {
        index: {moment: tensors[f"{moment}.{names[parameter]}"] for moment in its_moments}
        for index, (parameter, its_moments) in enumerate(ordered)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _moment_shapes(
    parameters: Iterable[tuple[str, Tensor, Sequence[str]]],
) -> dict[str, torch.Size]:
    """Of the optimizer's file, from (name, parameter, what is kept for it)."""
    return {
        f"{moment}.{name}": torch.Size([]) if moment == "step" else parameter.shape
        for name, parameter, kinds in parameters
        for moment in kinds
    }


def _same_moments(
    path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]
) -> None:
    if _kinds(found) != _kinds(expected):
        raise IncompatibleRun(
            f"{path.name} holds {', '.join(_kinds(found))}, and OPTIMIZER as the run has it needs "
            f"{', '.join(_kinds(expected))}"
        )
    same_tensors(path, expected, found)


def _check_moment(path: Path, name: str, tensor: Tensor, step: int) -> None:
    """Raises Damaged for numbers that no optimizer has after `step` steps."""
    check_finite(path, name, tensor)
    kind = name.split(".", 1)[0]
    if kind == "exp_avg_sq" and (tensor < 0).any():
        raise Damaged(f"{path} holds squares in {name} that are below 0")
    if kind == "step" and not 1 <= tensor.item() <= step:
        raise Damaged(f"{path} counts {tensor.item():g} steps in {name}, its run has made {step}")


def _without_memory(config: ModelConfig, path: Path, found: Mapping[str, torch.Size]) -> SmolLM2:
    """The model of `config`, of shapes alone. Raises IncompatibleRun where it has another size
    than the file: so a wrong config never builds more modules than the file has tensors for."""
    numbers = sum(shape.numel() for shape in found.values())
    if config.parameter_count != numbers:
        raise IncompatibleRun(
            f"{path.name} belongs to another model: it holds {numbers:,} numbers, that of the run "
            f"{config.parameter_count:,}"
        )
    return SmolLM2.empty(config, torch.device("meta"))


def matrices_of_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name every matrix but the embedding, which is the output layer too: those of Muon."""
    embeddings: set[Tensor] = {
        module.weight for module in model.modules() if isinstance(module, nn.Embedding)
    }
    parameters = model.named_parameters()
    return {name: p for name, p in parameters if p.dim() == 2 and p not in embeddings}


def _kinds(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".", 1)[0] for name in names})


def _fits_on_card(tensors: Sequence[Tensor], room: float) -> bool:
    """Whether the card has `room` times the size of `tensors` free.

    Memory that torch has taken before does not count as free: the next step needs it again.
    """
    on_card = [tensor for tensor in tensors if tensor.is_cuda]
    if not on_card:
        return False
    free, _ = torch.cuda.mem_get_info(on_card[0].device)
    return free > room * sum(tensor.nbytes for tensor in on_card)


def _host_copy(tensor: Tensor) -> Tensor:
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return host.copy_(tensor)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "cpu" else _host_copy(tensor)


def moments(group: dict[str, Any]) -> tuple[str, ...]:
    """What the optimizer of a parameter group keeps for each of its parameters.

    All have the parameter's shape, but for AdamW's `step`, which is a scalar.
    """
    return MUON_MOMENTS if "ns_steps" in group else ADAMW_MOMENTS
