"""The training state, and the files that it becomes in a checkpoint.

model.safetensors       weights, under Hugging Face names
optimizer.safetensors   moments and step counts: "<moment>.<parameter>"
state.json              step, tokens, loss, random numbers, schedule, versions
config.json, generation_config.json, tokenizer files: what `transformers` reads
"""

import base64
import json
import platform
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from app.data.tokenizer import TOKENIZER_FILE_TYPES
from app.errors import Damaged, IncompatibleRun
from app.settings.presets import ModelConfig
from app.state.tensor_files import read_shapes, read_tensors, tensor_file
from app.stores.contract import Data
from app.stores.formats import check_format
from app.training.optimizer import moments

STATE_FORMAT = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
STATE_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)

_MAX_STATE_BYTES = 16 * 2**20
_ROOM = 1.5  # times a snapshot, free on the card, for a snapshot to stay there


class RandomState(BaseModel):
    """Every generator that training could draw from. Byte strings are base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    torch_cpu: str
    torch_cuda: list[str]
    numpy: dict[str, Any]
    python: list[Any]

    @classmethod
    def capture(cls) -> "RandomState":
        numpy_state = dict(np.random.get_state(legacy=False))
        inner = dict(numpy_state["state"])
        numpy_state["state"] = {**inner, "key": inner["key"].tolist()}
        version_, internal, gauss = random.getstate()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            torch_cpu=_to_base64(torch.get_rng_state()),
            torch_cuda=[_to_base64(state) for state in cuda],
            numpy=numpy_state,
            python=[version_, list(internal), gauss],
        )

    def restore(self) -> None:
        torch.set_rng_state(_from_base64(self.torch_cpu))
        if self.torch_cuda and len(self.torch_cuda) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([_from_base64(state) for state in self.torch_cuda])
        legacy = dict(self.numpy)
        state = legacy["state"]
        legacy["state"] = {**state, "key": np.asarray(state["key"], dtype=np.uint32)}
        np.random.set_state(legacy)
        version_, internal, gauss = self.python
        random.setstate((version_, tuple(internal), gauss))


class Progress(BaseModel):
    """state.json: where the run stands, and what it was made with.

    Losses in nats per token; `saved_at` in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = STATE_FORMAT
    step: int
    tokens: int
    train_loss: float | None
    validation_loss: float | None = None
    validation_perplexity: float | None = None
    learning_rate: float | None = None
    saved_at: float
    trainer: str
    optimizer: dict[str, Any]
    document_mask: bool = False
    versions: dict[str, str]
    random: RandomState


@dataclass
class Snapshot:
    """A copy of the training state; training may go on while it is written.

    On a GPU with room for it, it is made within the device, which takes milliseconds, and stays
    there until `bring_to_host`. `made` is the point in the device's work at which it is whole.
    """

    progress: Progress
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    made: torch.cuda.Event | None = None

    @property
    def step(self) -> int:
        return self.progress.step

    def bring_to_host(self) -> None:
        """Give a GPU its memory back; a stream of its own does it, beside the training."""
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


def capture(model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Snapshot:
    """Copy weights and moments. This is all that the training loop waits for."""
    weights, state = model.state_dict(), dict(_optimizer_tensors(model, optimizer))
    stays = _fits_on_card([*weights.values(), *state.values()])
    copy = torch.clone if stays else _host_copy
    return Snapshot(
        progress=progress,
        model={name: copy(tensor.detach()) for name, tensor in weights.items()},
        optimizer={name: copy(tensor.detach()) for name, tensor in state.items()},
        made=torch.cuda.current_stream().record_event() if stays else None,
    )


def restore(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Load a verified checkpoint into `model` and `optimizer`, and the random numbers.

    Raises Damaged for an unreadable file, IncompatibleRun for tensors of another model.
    """
    progress = read_progress(directory / STATE_FILE)
    load_weights([directory / MODEL_FILE], model)
    _load_optimizer(directory / OPTIMIZER_FILE, model, optimizer)
    progress.random.restore()
    return progress


def read_progress(path: Path) -> Progress:
    """Raises Damaged if the file is not a state.json, IncompatibleRun if it is a newer one."""
    if path.stat().st_size > _MAX_STATE_BYTES:
        raise Damaged(f"{path.name} has {path.stat().st_size} bytes: it is no training state")
    content = path.read_bytes()
    check_format(content, STATE_FORMAT, path.name)
    try:
        return Progress.model_validate_json(content)
    except ValidationError as error:
        raise Damaged(f"{path.name} is not a training state: {error.errors()[0]['msg']}") from error


def load_weights(paths: Sequence[Path], model: nn.Module) -> None:
    """Copy safetensors files into `model`; a redundant lm_head.weight is left out."""
    own = dict(model.state_dict())
    found = {name: shape for path in paths for name, shape in read_shapes(path).items()}
    found.pop("lm_head.weight", None)
    _same_tensors(paths[0], {name: tensor.shape for name, tensor in own.items()}, found)
    with torch.no_grad():
        for path in paths:
            for name, tensor in read_tensors(path, own):
                own[name].copy_(tensor)


def checkpoint_bytes(config: ModelConfig, optimizer: str) -> int:
    """About the size of a checkpoint: float32 weights and moments, and a few megabytes.

    AdamW keeps two moments of a parameter, Muon one, of the matrices inside the layers.
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
    special = {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    shape = asdict(config)
    shape.update(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_act="silu",
        head_dim=config.head_dim,
        attention_bias=False,
        mlp_bias=False,
        attention_dropout=0.0,
        rope_scaling=None,
        tie_word_embeddings=True,
        use_cache=True,
        dtype="float32",
        torch_dtype="float32",
        **special,
    )
    files = {
        "config.json": _json_bytes(shape),
        "generation_config.json": _json_bytes({"_from_model_config": True, **special}),
    }
    for path in sorted(tokenizer_directory.iterdir()):
        if path.is_file() and path.suffix in TOKENIZER_FILE_TYPES:
            files[path.name] = path.read_bytes()
    return files


def _optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterable[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            yield f"{key}.{name}", value


def _load_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [(p, moments(group)) for group in optimizer.param_groups for p in group["params"]]
    shapes = {
        f"{moment}.{names[parameter]}": torch.Size([]) if moment == "step" else parameter.shape
        for parameter, its_moments in ordered
        for moment in its_moments
    }
    found = read_shapes(path)
    if _kinds(found) != _kinds(shapes):
        raise IncompatibleRun(
            f"{path.name} holds {', '.join(_kinds(found))}, and this OPTIMIZER needs "
            f"{', '.join(_kinds(shapes))}: set OPTIMIZER back, or choose another RUN_NAME"
        )
    _same_tensors(path, shapes, found)
    host = torch.device("cpu")
    devices = {
        f"{moment}.{names[parameter]}": host if moment == "step" else parameter.device
        for parameter, its_moments in ordered
        for moment in its_moments
    }
    tensors = {name: tensor.to(devices[name]) for name, tensor in read_tensors(path, devices)}
    state = {
        index: {moment: tensors[f"{moment}.{names[parameter]}"] for moment in its_moments}
        for index, (parameter, its_moments) in enumerate(ordered)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _kinds(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".", 1)[0] for name in names})


def _same_tensors(
    path: Path, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]
) -> None:
    """Raises IncompatibleRun unless names and shapes are those of this model."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        example = f"{missing[0]} is missing" if missing else f"{extra[0]} is unknown"
        raise IncompatibleRun(f"{path.name} belongs to another model: {example}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise IncompatibleRun(
                f"{path.name} belongs to another model: {name} is {tuple(found[name])}, "
                f"expected {tuple(shape)}"
            )


def _fits_on_card(tensors: Sequence[Tensor]) -> bool:
    """Beside all that torch has ever taken of the device: the next step takes it again."""
    on_card = [tensor for tensor in tensors if tensor.is_cuda]
    if not on_card:
        return False
    free, _ = torch.cuda.mem_get_info(on_card[0].device)
    return free > _ROOM * sum(tensor.nbytes for tensor in on_card)


def _host_copy(tensor: Tensor) -> Tensor:
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return host.copy_(tensor)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "cpu" else _host_copy(tensor)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _to_base64(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _from_base64(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
