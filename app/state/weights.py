"""Reading weights into a model, from a checkpoint or from a Hugging Face directory."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import Damaged, IncompatibleRun, NotFound
from app.model.huggingface import INDEX_FILE, MODEL_FILE
from app.state.tensor_files import read_shapes, read_tensors
from app.stores.durable_files import blocks_of

# What some files hold beside the weights: the output layer, which is tied to the embedding, and
# buffers of older versions of transformers that follow from rope_theta.
_REDUNDANT = (
    "lm_head.weight",
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
)


def load_weights(paths: Sequence[Path], model: nn.Module) -> None:
    """Copy safetensors files into `model`; what follows from other tensors is left out.

    Raises Damaged for an unreadable file or for numbers that are not finite, IncompatibleRun for
    tensors of another model.
    """
    _check_shapes(paths, model)
    own = dict(model.state_dict())
    with torch.no_grad():
        for path in paths:
            for name, tensor in read_tensors(path, own):
                check_finite(path, name, tensor)
                own[name].copy_(tensor)


def check_finite(path: Path, name: str, tensor: Tensor) -> None:
    """Raises Damaged for numbers that are not finite."""
    if not tensor.isfinite().all():
        raise Damaged(f"{path} holds numbers in {name} that are not finite")


def _check_shapes(paths: Sequence[Path], model: nn.Module) -> None:
    found = {
        name: shape
        for path in paths
        for name, shape in read_shapes(path).items()
        if not name.endswith(_REDUNDANT)
    }
    same_tensors(paths[0], shapes_of(model), found)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def same_tensors(
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


def load_pretrained(directory: Path, model: nn.Module) -> None:
    """Copy the directory's weights into `model`. Raises NotFound, Damaged, IncompatibleRun."""
    load_weights(weight_files(directory), model)


def check_pretrained(directory: Path, model: nn.Module) -> None:
    """As `load_pretrained`, but only names and shapes are read, and nothing is copied."""
    _check_shapes(weight_files(directory), model)


def weights_digest(directory: Path, alive: Callable[[], None] = lambda: None) -> str:
    """SHA-256 (hex) of the directory's weights. `alive` is called for each block that is read.

    Raises NotFound, Damaged and OSError.
    """
    digest = hashlib.sha256()
    for path in weight_files(directory):
        try:
            for block in blocks_of(path, alive):
                digest.update(block)
        except FileNotFoundError as error:
            raise Damaged(f"{path} is missing") from error
    return digest.hexdigest()


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory. Raises NotFound and Damaged."""
    if (directory / MODEL_FILE).is_file():
        return [directory / MODEL_FILE]
    try:
        index = json.loads((directory / INDEX_FILE).read_text("utf-8"))
        names = sorted({Path(name).name for name in index["weight_map"].values()})
    except FileNotFoundError as error:
        raise NotFound(f"{directory} holds no {MODEL_FILE}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{directory / INDEX_FILE} is not an index of shards") from error
    return [directory / name for name in names]
