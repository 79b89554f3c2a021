"""The weights of a checkpoint in another type, as a file that `transformers` loads."""

import json
from pathlib import Path
from typing import Literal

import torch

from app.model.huggingface import MODEL_FILE, read_config
from app.model.smollm2 import SmolLM2
from app.state.tensor_files import read_shapes, read_tensors, tensor_file
from app.state.weights import check_finite, check_pretrained

ExportType = Literal["bfloat16", "float32"]

_TYPES: dict[ExportType, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def export_weights(checkpoint: Path, target: Path, dtype: ExportType) -> None:
    """Write model.safetensors and config.json of the folder `checkpoint` to the folder `target`.

    Numbers are rounded to the nearest one of the type, to even where two are as near. The output
    layer is the embedding, which is in the file once. All of the weights are in memory in the type
    that is written. Raises Damaged for numbers that are not finite, IncompatibleRun for tensors of
    another model than config.json says, and OSError.
    """
    config = read_config(checkpoint)
    check_pretrained(checkpoint, SmolLM2.empty(config, torch.device("meta")))
    source = checkpoint / MODEL_FILE
    tensors = {}
    for name, tensor in read_tensors(source, read_shapes(source)):
        tensors[name] = tensor.to(_TYPES[dtype])
        check_finite(source, name, tensors[name])
    with (target / MODEL_FILE).open("wb") as file:
        for part in tensor_file(tensors):
            file.write(part)
    said = json.loads((checkpoint / "config.json").read_text("utf-8"))
    said |= {"dtype": dtype, "torch_dtype": dtype}
    text = json.dumps(said, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text, "utf-8")
